/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * emu-grants — what a guest grants, as it stands in memory.
 *
 *	emu-grants table DOMID	(dom0)	every entry of that domain's grant table that grants something
 *	emu-grants account	(guest)	what this kernel's allocator of references says of itself
 *
 * Both work on any kernel, with any driver. Lines are "word value…"; emu/xen/granted.py reads them.
 */
#include <stdio.h>
#include <string.h>

#include "account.h"
#include "table.h"

int main(int argc, char **argv)
{
	if (argc == 3 && !strcmp(argv[1], "table"))
		return print_table(argv[2]);
	if (argc == 2 && !strcmp(argv[1], "account"))
		return print_account();
	fprintf(stderr, "usage: emu-grants table DOMID | emu-grants account\n");
	return 2;
}
