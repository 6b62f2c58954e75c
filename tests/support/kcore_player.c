// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * kcore_player FILE ADDRESS: FILE stands in for /proc/kcore. For each line on standard input reads
 * 4 bytes at ADDRESS with kcore_peek() and prints them as a number, or what failed and errno.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kcore.h"

int __real_open(const char *path, int flags);
int __wrap_open(const char *path, int flags);

static const char *file;

/* Linked with --wrap=open. */
int __wrap_open(const char *path, int flags)
{
	return __real_open(strcmp(path, "/proc/kcore") ? path : file, flags);
}

int main(int argc, char **argv)
{
	char line[16];
	uint32_t value;

	if (argc != 3)
		return 2;
	file = argv[1];
	while (fgets(line, sizeof(line), stdin)) {
		errno = 0;
		if (kcore_peek(strtoull(argv[2], NULL, 0), &value, sizeof(value)))
			printf("%u\n", value);
		else
			printf("%s: %s\n", kcore_failed, strerror(errno));
		fflush(stdout);
	}
	return 0;
}
