// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * one-request DEVICE fsync
 * one-request DEVICE read|write OFFSET BYTES [SHIFT [dsync]]: one request, past the page cache, from
 * a buffer that begins SHIFT bytes into a page. Written are bytes of 0x5a.
 *
 * Prints "done", or the error by its name. Status 0 in both cases.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char *name_of(int error)
{
	switch (error) {
	case EIO:
		return "EIO";
	case EINVAL:
		return "EINVAL";
	case EOPNOTSUPP:
		return "EOPNOTSUPP";
	default:
		return strerror(error);
	}
}

static ssize_t ask(int argc, char **argv)
{
	int writes = !strcmp(argv[2], "write");
	int flags = writes ? O_WRONLY : O_RDONLY;
	off_t offset = argc > 4 ? strtoll(argv[3], NULL, 0) : 0;
	size_t bytes = argc > 4 ? strtoul(argv[4], NULL, 0) : 0;
	size_t shift = argc > 5 ? strtoul(argv[5], NULL, 0) : 0;
	int device = open(argv[1], flags | O_DIRECT | (argc > 6 ? O_DSYNC : 0));
	void *buffer;
	ssize_t done;

	if (device < 0)
		return -1;
	if (!strcmp(argv[2], "fsync"))
		return fsync(device);
	errno = posix_memalign(&buffer, 4096, shift + bytes);
	if (errno)
		return -1;
	memset(buffer, 0x5a, shift + bytes);
	if (writes)
		done = pwrite(device, (char *)buffer + shift, bytes, offset);
	else
		done = pread(device, (char *)buffer + shift, bytes, offset);
	if (done >= 0 && (size_t)done < bytes) {
		errno = EIO;
		return -1;
	}
	return done;
}

int main(int argc, char **argv)
{
	if (argc < 3) {
		fprintf(stderr, "usage: one-request DEVICE fsync|read|write [OFFSET BYTES ...]\n");
		return 2;
	}
	puts(ask(argc, argv) < 0 ? name_of(errno) : "done");
	return 0;
}
