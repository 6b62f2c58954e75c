/* SPDX-License-Identifier: GPL-2.0-or-later */
/* How emu-grants and emu-xenstore end in failure. */
#ifndef EMU_DIE_H
#define EMU_DIE_H

/* Says on standard error what failed, and errno; 1, an exit status. */
int die(const char *what);

#endif
