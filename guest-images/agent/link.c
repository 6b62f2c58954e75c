/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "link.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <termios.h>
#include <unistd.h>

#include "../common/crc32.h"

#define TTY_CHUNK 4096u /* a tty is slow, and a ping waits for up to one frame */
#define ROOM_FOR_ANSWERS (2u * PAYLOAD_MAX)
#define PORTS "/dev/virtio-ports/"
#define PORTS_IN_SYSFS "/sys/class/virtio-ports"

int set_raw(int tty)
{
	struct termios t;

	if (tcgetattr(tty, &t) < 0)
		return -1;
	t.c_iflag = 0;
	t.c_oflag = 0;
	t.c_lflag = 0;
	t.c_cflag = (t.c_cflag & ~(CSIZE | PARENB)) | CS8 | CREAD | CLOCAL;
	t.c_cc[VMIN] = 1;
	t.c_cc[VTIME] = 0;
	return tcsetattr(tty, TCSANOW, &t);
}

void link_setup(struct link *l, const char *name)
{
	memset(l, 0, offsetof(struct link, in));
	l->name = name;
	l->fd = -1;
}

/* Without udev there are no links in /dev/virtio-ports; sysfs has the names. */
static int open_port(const char *name)
{
	char path[PATH_MAX], found[64];

	for (int bus = 0; bus < 8; bus++)
		for (int port = 0; port < 32; port++) {
			snprintf(path, sizeof path, PORTS_IN_SYSFS "/vport%dp%d/name", bus, port);
			int fd = open(path, O_RDONLY | O_CLOEXEC);
			if (fd < 0)
				continue;
			ssize_t n = read(fd, found, sizeof found - 1);
			close(fd);
			if (n <= 0)
				continue;
			found[n] = 0;
			found[strcspn(found, "\n")] = 0;
			if (strcmp(found, name))
				continue;
			snprintf(path, sizeof path, "/dev/vport%dp%d", bus, port);
			return open(path, O_RDWR | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
		}
	errno = ENOENT;
	return -1;
}

bool link_open(struct link *l, int epoll_fd)
{
	/* Edge-triggered: a port without a peer reports EPOLLHUP all the time. */
	struct epoll_event ev = { .events = EPOLLIN | EPOLLOUT | EPOLLET, .data.u64 = 0 };

	if (!strncmp(l->name, "fd:", 3)) {
		l->kind = LINK_FD;
		l->fd = atoi(l->name + 3);
		fcntl(l->fd, F_SETFD, FD_CLOEXEC);
		fcntl(l->fd, F_SETFL, fcntl(l->fd, F_GETFL) | O_NONBLOCK);
	} else {
		l->kind = LINK_PORT;
		if (!strncmp(l->name, PORTS, strlen(PORTS)))
			l->fd = open_port(l->name + strlen(PORTS));
		else
			l->fd = open(l->name, O_RDWR | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
	}
	if (l->fd < 0)
		return false;
	if (isatty(l->fd)) {
		l->kind = LINK_TTY;
		if (set_raw(l->fd) < 0) {
			link_close(l);
			return false;
		}
	}
	if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, l->fd, &ev) < 0) {
		link_close(l);
		return false;
	}
	l->can_read = l->can_write = true;
	l->in_start = l->in_end = 0;
	link_reset(l);
	return true;
}

void link_close(struct link *l)
{
	if (l->fd >= 0)
		close(l->fd);
	l->fd = -1;
}

void link_reset(struct link *l)
{
	l->joined = false;
	l->out_start = l->out_end = 0;
	l->seq_in = l->seq_out = 1;
	l->chunk = l->kind == LINK_TTY ? TTY_CHUNK : PAYLOAD_MAX;
}

bool link_fill(struct link *l)
{
	while (l->can_read) {
		if (l->in_start) {
			memmove(l->in, l->in + l->in_start, l->in_end - l->in_start);
			l->in_end -= l->in_start;
			l->in_start = 0;
		}
		if (l->in_end == sizeof l->in)
			return true;
		ssize_t n = read(l->fd, l->in + l->in_end, sizeof l->in - l->in_end);
		if (n > 0) {
			l->in_end += (size_t)n;
			return true;
		}
		if (n < 0 && errno == EINTR)
			continue;
		l->can_read = false;
		return n < 0 && errno == EAGAIN;
	}
	return true;
}

bool link_flush(struct link *l)
{
	while (l->can_write && l->out_start < l->out_end) {
		ssize_t n = write(l->fd, l->out + l->out_start, l->out_end - l->out_start);
		if (n > 0) {
			l->out_start += (size_t)n;
			continue;
		}
		if (n < 0 && errno == EINTR)
			continue;
		l->can_write = false;
		/* A tty's write() may return 0. */
		if (n < 0 && errno != EAGAIN)
			return false;
	}
	if (l->out_start == l->out_end)
		l->out_start = l->out_end = 0;
	return true;
}

size_t link_queued(const struct link *l)
{
	return l->out_end - l->out_start;
}

bool link_has_room(const struct link *l)
{
	return link_queued(l) + ROOM_FOR_ANSWERS + sizeof(struct frame) <= sizeof l->out / 2;
}

/* Space for a payload at the end of the queue, or NULL. */
static uint8_t *reserve(struct link *l, size_t length)
{
	if (l->out_end + sizeof(struct frame) + length > sizeof l->out) {
		memmove(l->out, l->out + l->out_start, link_queued(l));
		l->out_end -= l->out_start;
		l->out_start = 0;
	}
	if (l->out_end + sizeof(struct frame) + length > sizeof l->out)
		return NULL;
	return l->out + l->out_end + sizeof(struct frame);
}

static void commit(struct link *l, uint8_t type, uint8_t stream, uint32_t id, size_t length)
{
	struct frame f = {
		.magic = MAGIC_TO_HOST,
		.type = type,
		.stream = stream,
		.id = id,
		.seq = type == WELCOME ? 0 : l->seq_out++,
		.length = (uint32_t)length,
	};
	uint8_t *head = l->out + l->out_end;

	f.crc = crc32(0, &f, offsetof(struct frame, crc));
	f.crc = crc32(f.crc, head + sizeof f, length);
	memcpy(head, &f, sizeof f);
	l->out_end += sizeof f + length;
}

void link_send(struct link *l, uint8_t type, uint8_t stream, uint32_t id, const void *payload,
	       size_t length)
{
	uint8_t *room = reserve(l, length);

	/* The limits prevent this; the peer notices the gap in seq. */
	if (!room) {
		l->seq_out++;
		return;
	}
	if (length)
		memcpy(room, payload, length);
	commit(l, type, stream, id, length);
}

ssize_t link_send_from(struct link *l, uint8_t stream, uint32_t id, int fd, size_t limit)
{
	if (limit > l->chunk)
		limit = l->chunk;
	uint8_t *room = reserve(l, limit);
	if (!room) {
		errno = EAGAIN;
		return -1;
	}
	ssize_t n = read(fd, room, limit);
	if (n > 0)
		commit(l, OUTPUT, stream, id, (size_t)n);
	return n;
}

static bool crc_right(const struct frame *f, const uint8_t *payload)
{
	uint32_t crc = crc32(0, f, offsetof(struct frame, crc));

	return crc32(crc, payload, f->length) == f->crc;
}

/* Before a hello nothing is trusted: search every offset for one. */
static enum link_event seek_hello(struct link *l, struct frame *f, const uint8_t **payload)
{
	while (l->in_end - l->in_start >= sizeof *f + sizeof(struct hello)) {
		const uint8_t *head = l->in + l->in_start;
		memcpy(f, head, sizeof *f);
		if (f->magic == MAGIC_TO_GUEST && f->type == HELLO &&
		    f->length == sizeof(struct hello) && crc_right(f, head + sizeof *f)) {
			*payload = head + sizeof *f;
			l->in_start += sizeof *f + sizeof(struct hello);
			return LINK_HELLO;
		}
		l->in_start++;
	}
	return LINK_NOTHING;
}

enum link_event link_next(struct link *l, struct frame *f, const uint8_t **payload,
			  const char **why)
{
	if (!l->joined)
		return seek_hello(l, f, payload);
	while (l->in_start < l->in_end && !l->in[l->in_start])
		l->in_start++;
	if (l->in_end - l->in_start < sizeof *f)
		return LINK_NOTHING;
	memcpy(f, l->in + l->in_start, sizeof *f);
	if (f->magic != MAGIC_TO_GUEST)
		*why = "bad magic number";
	else if (f->length > PAYLOAD_MAX)
		*why = "payload too long";
	else if (l->in_end - l->in_start < sizeof *f + f->length)
		return LINK_NOTHING;
	else {
		*payload = l->in + l->in_start + sizeof *f;
		if (!crc_right(f, *payload))
			*why = "bad checksum";
		else if (f->type == HELLO && f->length == sizeof(struct hello)) {
			l->in_start += sizeof *f + f->length;
			return LINK_HELLO;
		} else if (f->seq != l->seq_in)
			*why = "a frame is missing";
		else {
			l->seq_in++;
			l->in_start += sizeof *f + f->length;
			return LINK_FRAME;
		}
	}
	/* Keep the damaged bytes: a hello may start among them. */
	l->joined = false;
	return LINK_DAMAGED;
}
