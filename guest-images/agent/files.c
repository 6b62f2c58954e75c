/* SPDX-License-Identifier: GPL-2.0-or-later */
/* File transfer: the bytes, then a trailer with their number and checksum. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../common/crc32.h"
#include "helpers.h"
#include "wire.h"

#define BUFFER (128u * 1024)

static char temporary[PATH_MAX];
static uint8_t buffer[BUFFER + sizeof(struct trailer)];

static int __attribute__((format(printf, 1, 2))) fail(const char *format, ...)
{
	va_list args;

	if (*temporary)
		unlink(temporary);
	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fputc('\n', stderr);
	return 1;
}

static void on_signal(int signal)
{
	if (*temporary)
		unlink(temporary);
	_exit(128 + signal);
}

static int write_all(int fd, const uint8_t *data, size_t length)
{
	while (length) {
		ssize_t n = write(fd, data, length);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -1;
		data += n;
		length -= (size_t)n;
	}
	return 0;
}

/* Copy standard input except its last 16 bytes, which go to *t. */
static int receive(int fd, struct trailer *t, struct trailer *found)
{
	size_t held = 0;
	ssize_t n;

	while ((n = read(0, buffer + held, BUFFER)) != 0) {
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -1;
		held += (size_t)n;
		if (held <= sizeof *t)
			continue;
		size_t ready = held - sizeof *t;
		found->crc = crc32(found->crc, buffer, ready);
		found->length += ready;
		if (write_all(fd, buffer, ready) < 0)
			return -1;
		memmove(buffer, buffer + ready, sizeof *t);
		held = sizeof *t;
	}
	if (held == sizeof *t)
		memcpy(t, buffer, sizeof *t);
	return 0;
}

int put_file(const char *mode, const char *path)
{
	struct trailer t = { .magic = 0 }, found = { .length = 0 };
	unsigned long bits = strtoul(mode, NULL, 8);

	signal(SIGTERM, on_signal);
	if (snprintf(temporary, sizeof temporary, "%s.emu-XXXXXX", path) >= (int)sizeof temporary) {
		*temporary = 0;
		return fail("%s: file name too long", path);
	}
	int fd = mkostemp(temporary, O_CLOEXEC);
	if (fd < 0) {
		*temporary = 0;
		return fail("%s: %s", path, strerror(errno));
	}
	if (receive(fd, &t, &found) < 0)
		return fail("%s: %s", path, strerror(errno));
	if (t.magic != MAGIC_TRAILER || t.length != found.length || t.crc != found.crc)
		return fail("%s: the %llu bytes that came are not those that were sent", path,
			    (unsigned long long)found.length);
	if (fchmod(fd, (mode_t)bits) < 0 || close(fd) < 0 || rename(temporary, path) < 0)
		return fail("%s: %s", path, strerror(errno));
	return 0;
}

int get_file(const char *path)
{
	struct trailer t = { .magic = MAGIC_TRAILER };
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n;

	if (fd < 0)
		return fail("%s: %s", path, strerror(errno));
	while ((n = read(fd, buffer, BUFFER)) != 0) {
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return fail("%s: %s", path, strerror(errno));
		t.crc = crc32(t.crc, buffer, (size_t)n);
		t.length += (uint64_t)n;
		if (write_all(1, buffer, (size_t)n) < 0)
			return 1;
	}
	return write_all(1, (const uint8_t *)&t, sizeof t) < 0;
}
