/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef EMU_SPAWN_H
#define EMU_SPAWN_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct spawned {
	uint16_t flags;
	pid_t pid;		      /* leader of a session of its own */
	int stdin_fd, out_fd, err_fd; /* non-blocking; -1 where there is none */
};

/* Start the program that an EXEC frame's payload describes. Returns 0 or an errno. */
int spawn(const uint8_t *request, size_t length, struct spawned *s);

#endif
