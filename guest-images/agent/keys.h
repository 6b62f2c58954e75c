/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Xen's debug keys, and what Xen prints for them. */
#ifndef EMU_KEYS_H
#define EMU_KEYS_H

/* Prints what key 'g' makes Xen say. Returns an exit status; says what went wrong. */
int print_mapped(void);

#endif
