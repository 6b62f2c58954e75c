/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The timer of the local APIC is read in x2APIC mode, where its registers are MSRs, between
 * other instructions (AMD APM volume 2, section 16.11.1 "x2APIC Register Address Space").
 *
 * For QEMU with -icount, which ends with "Bad icount read" if it has not foreseen that RDMSR
 * looks at the clock. A CPU without x2APIC has nothing to get wrong.
 */
#include "test.h"

#define APIC_BASE	0x1b
#define APIC_ENABLED	0xc00		/* EXTD and EN */
#define X2APIC_DIVIDE	0x83e
#define X2APIC_INITIAL	0x838
#define X2APIC_CURRENT	0x839

int main(void)
{
	uint32_t a = 1, b, c = 0, d, first, second;

	asm volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
	if (!(c & (1u << 21)))
		end(1);
	write_msr(APIC_BASE, 0xfee00000 | 0x100 | APIC_ENABLED);	/* 0x100: BSP */
	write_msr(X2APIC_DIVIDE, 0xb);	/* by 1 */
	write_msr(X2APIC_INITIAL, 0xffffffff);
	asm volatile("nop; rdmsr; nop; mov %%eax, %0; nop"
		     : "=r"(first) : "c"(X2APIC_CURRENT) : "eax", "edx");
	for (unsigned int n = 0; n < 100000; n++)
		asm volatile("");
	asm volatile("nop; rdmsr; nop; mov %%eax, %0; nop"
		     : "=r"(second) : "c"(X2APIC_CURRENT) : "eax", "edx");
	end(second < first);
}
