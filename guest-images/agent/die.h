/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Errors of emu-grants and emu-xenstore. */
#ifndef EMU_DIE_H
#define EMU_DIE_H

/* Print what failed and errno to standard error. Returns 1, an exit status. */
int die(const char *what);

#endif
