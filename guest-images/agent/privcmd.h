/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Hypercalls from dom0's user space (Linux' include/uapi/xen/privcmd.h), for emu-grants. */
#ifndef EMU_PRIVCMD_H
#define EMU_PRIVCMD_H

#include <stddef.h>
#include <stdint.h>

/* privcmd, open; or -1, with errno */
int open_privcmd(void);

/* The hypercall's result; or -1, with errno */
int hypercall(int privcmd, uint64_t op, uint64_t arg0, uint64_t arg1, uint64_t arg2);

/* Zeroed, locked memory for hypercall arguments (no page faults there), or NULL */
void *locked_memory(size_t size);

#endif
