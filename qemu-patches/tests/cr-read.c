/* SPDX-License-Identifier: GPL-2.0 */
/*
 * A guest under SVM reads CR2 with reads of CR0 intercepted, and then with those of CR2.
 *
 * It has to arrive at the VMMCALL behind it (81h) with the former, and to exit with
 * VMEXIT_CR2_READ, 02h, with the latter: bit n of the first vector is for reads of CRn, whose
 * exit code is n (AMD APM volume 2, section 15.9 and appendices B and C).
 */
#include "test.h"

static void guest(void)
{
	asm volatile("mov %%cr2, %%rax; vmmcall" : : : "rax");
}

static uint64_t reading_cr2_with_intercept_of(unsigned int n)
{
	vmcb.intercept_other[0] = 1u << n;
	return run_guest(guest, 0, 0, 0);
}

int main(void)
{
	end(reading_cr2_with_intercept_of(0) == 0x81 && reading_cr2_with_intercept_of(2) == 2);
}
