/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef EMU_TREE_H
#define EMU_TREE_H

#include <sys/types.h>

/* SIGKILL a session leader, its whole session, and its descendants in other sessions. */
void kill_tree(pid_t leader);

#endif
