/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the agent runs as commands of their own, so that a stuck disk never stops the agent. */
#ifndef EMU_HELPERS_H
#define EMU_HELPERS_H

/* Each returns an exit status and says on standard error what went wrong. */
int put_file(const char *mode, const char *path);
int get_file(const char *path);
int bridge_socket(const char *path);
int bridge_tty(const char *path);

#endif
