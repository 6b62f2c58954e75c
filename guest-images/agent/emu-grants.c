/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * emu-grants — what a guest grants, read from memory.
 *
 *	emu-grants mapped	(dom0)	Xen's output for debug key g: all current mappings
 *	emu-grants table DOMID	(dom0)	the entries in use of that domain's grant table
 *	emu-grants account	(guest)	the state of this kernel's grant reference allocator
 *
 * All work on any kernel, with any driver. emu/xen/grants.py parses the first; lines of the others
 * are "word value…", for emu/xen/granted.py.
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
