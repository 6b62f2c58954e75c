/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The control socket. */
#ifndef EMU_LUN_CONTROL_H
#define EMU_LUN_CONTROL_H

#include "lun.h"

/* Start to listen. Returns 0 or -errno. */
int control_start(void);
void control_add(struct lun *lun);
/* Forget the LUN and end what waits for it; returns when no connection uses it. */
void control_remove(struct lun *lun);

#endif
