/* SPDX-License-Identifier: GPL-2.0 */
/*
 * A guest under SVM executes RDTSCP, with RDTSC and RDTSCP intercepted.
 *
 * Each has an exit code of its own: VMEXIT_RDTSC is 6Eh, VMEXIT_RDTSCP is 87h (AMD APM
 * volume 2, section 15.9 and appendix C).
 */
#include "test.h"

static void guest(void)
{
	asm volatile("rdtscp; vmmcall" : : : "rax", "rcx", "rdx");
}

int main(void)
{
	end(run_guest(guest, RDTSC_INTERCEPT, RDTSCP_INTERCEPT, 0) == 0x87);
}
