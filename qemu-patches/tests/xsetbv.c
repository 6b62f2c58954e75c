/* SPDX-License-Identifier: GPL-2.0 */
/*
 * A guest under SVM writes XCR0, with XSETBV intercepted.
 *
 * It has to exit with VMEXIT_XSETBV, 8Dh (AMD APM volume 2, section 15.9 and appendix C)
 * and not to arrive at the VMMCALL behind it (81h).
 */
#include "test.h"

#define OSXSAVE (1 << 18)

static void guest(void)
{
	asm volatile("xsetbv; vmmcall" : : "a"(1), "c"(0), "d"(0));
}

int main(void)
{
	end(run_guest(guest, 0, XSETBV_INTERCEPT, OSXSAVE) == 0x8d);
}
