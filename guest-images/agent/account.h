/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The running kernel's own account of its grant references. */
#ifndef EMU_ACCOUNT_H
#define EMU_ACCOUNT_H

/* Returns an exit status and says on standard error what went wrong. */
int print_account(void);

#endif
