/* SPDX-License-Identifier: GPL-2.0 */
/*
 * A guest under SVM that tells time and again that it runs, and never exits.
 *
 * A machine that was saved meanwhile has to load again and to go on (in guest mode: between
 * VMRUN and #VMEXIT, AMD APM volume 2, sections 15.5 and 15.6).
 */
#include "test.h"

static void guest(void)
{
	for (;;) {
		say("in guest mode\n");
		for (unsigned int n = 0; n < 10000000; n++)
			asm volatile("");
	}
}

int main(void)
{
	run_guest(guest, 0, 0, 0);
	end(0);
}
