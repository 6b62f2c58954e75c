/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A domain's grant table, mapped by dom0. */
#ifndef EMU_TABLE_H
#define EMU_TABLE_H

/* Returns an exit status; reports errors on standard error. */
int print_table(const char *domid);

#endif
