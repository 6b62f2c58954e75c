/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Run as commands of their own: a stuck disk must not block the agent. */
#ifndef EMU_HELPERS_H
#define EMU_HELPERS_H

/* Each returns an exit status and reports errors on standard error. */
int put_file(const char *mode, const char *path);
int get_file(const char *path);
int bridge_socket(const char *path);
int bridge_tty(const char *path);

#endif
