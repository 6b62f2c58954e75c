/* SPDX-License-Identifier: GPL-2.0 */
/*
 * A guest under SVM saves and restores extended state with CR0.TS set, and its #NM is intercepted.
 *
 * XSAVE, XSAVEOPT and XRSTOR raise #NM then, as FXSAVE and FXRSTOR do (CR0.TS: Intel SDM volume 3,
 * section 2.5; the instructions: volume 1, sections 13.7 to 13.9, and AMD APM volume 4). The exit
 * code of exception 7 is 47h (AMD APM volume 2, appendix C).
 */
#include "test.h"

#define NM_INTERCEPT	(1u << 7)	/* of vector 2 */
#define CR4_OSXSAVE	(1u << 18)
#define VMEXIT_NM	0x47

static uint8_t area[1024] __attribute__((aligned(64)));

#define GUEST(instruction)							\
static void instruction(void)							\
{										\
	asm volatile("mov %%cr0, %%rax; or $8, %%rax; mov %%rax, %%cr0;"	\
		     "mov $3, %%eax; xor %%edx, %%edx;"				\
		     #instruction " %0; vmmcall"				\
		     : "+m"(area) : : "rax", "rdx");				\
}

GUEST(xsave)
GUEST(xsaveopt)
GUEST(xrstor)

int main(void)
{
	vmcb.intercept_other[2] = NM_INTERCEPT;
	end(run_guest(xsave, 0, 0, CR4_OSXSAVE) == VMEXIT_NM &&
	    run_guest(xsaveopt, 0, 0, CR4_OSXSAVE) == VMEXIT_NM &&
	    run_guest(xrstor, 0, 0, CR4_OSXSAVE) == VMEXIT_NM);
}
