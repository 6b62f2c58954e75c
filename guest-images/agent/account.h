/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The running kernel's grant reference allocator. */
#ifndef EMU_ACCOUNT_H
#define EMU_ACCOUNT_H

/* Returns an exit status; reports errors on standard error. */
int print_account(void);

#endif
