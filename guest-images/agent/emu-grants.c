/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * emu-grants — what a guest grants, as it stands in memory.
 *
 *	emu-grants mapped	(dom0)	what Xen prints for debug key g: all that is mapped right now
 *	emu-grants table DOMID	(dom0)	every entry of that domain's grant table that grants something
 *	emu-grants account	(guest)	what this kernel's allocator of references says of itself
 *
 * All work on any kernel, with any driver. emu/xen/grants.py reads what Xen prints; lines of the
 * others are "word value…", for emu/xen/granted.py.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "account.h"
#include "die.h"
#include "keys.h"
#include "table.h"

int die(const char *what)
{
	fprintf(stderr, "emu-grants: %s: %s\n", what, strerror(errno));
	return 1;
}

int main(int argc, char **argv)
{
	if (argc == 2 && !strcmp(argv[1], "mapped"))
		return print_mapped();
	if (argc == 3 && !strcmp(argv[1], "table"))
		return print_table(argv[2]);
	if (argc == 2 && !strcmp(argv[1], "account"))
		return print_account();
	fprintf(stderr, "usage: emu-grants mapped | emu-grants table DOMID | emu-grants account\n");
	return 2;
}
