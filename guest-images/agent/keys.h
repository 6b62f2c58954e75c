/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Xen's debug keys and their output. */
#ifndef EMU_KEYS_H
#define EMU_KEYS_H

/* Print Xen's output for key 'g'. Returns an exit status; reports errors. */
int print_mapped(void);

#endif
