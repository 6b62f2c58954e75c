/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Connect standard input and output with a socket or terminal, until either side ends. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "helpers.h"
#include "link.h"

struct way {
	int from, to;
	size_t start, end;
	char data[65536];
};

static int fail(const char *path)
{
	fprintf(stderr, "%s: %s\n", path, strerror(errno));
	return 1;
}

/* One step in one direction; false at its end. */
static bool step(struct way *w, const struct pollfd *in, const struct pollfd *out)
{
	if (out->revents && w->start < w->end) {
		ssize_t n = write(w->to, w->data + w->start, w->end - w->start);
		if (n < 0 && errno != EAGAIN && errno != EINTR)
			return false;
		w->start += n > 0 ? (size_t)n : 0;
	}
	if (w->start == w->end)
		w->start = w->end = 0;
	if (in->revents && w->end == 0) {
		ssize_t n = read(w->from, w->data, sizeof w->data);
		if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR))
			return false;
		w->end = n > 0 ? (size_t)n : 0;
	}
	return true;
}

static int bridge(int other)
{
	static struct way in, out;
	bool alive = true;

	signal(SIGPIPE, SIG_IGN);
	fcntl(0, F_SETFL, fcntl(0, F_GETFL) | O_NONBLOCK);
	fcntl(1, F_SETFL, fcntl(1, F_GETFL) | O_NONBLOCK);
	in = (struct way){ .from = 0, .to = other };
	out = (struct way){ .from = other, .to = 1 };
	while (alive) {
		/* Leave out idle descriptors: their POLLHUP would make this a busy loop. */
		struct pollfd p[] = {
			{ .fd = in.end ? -1 : 0, .events = POLLIN },
			{ .fd = in.end ? other : -1, .events = POLLOUT },
			{ .fd = out.end ? -1 : other, .events = POLLIN },
			{ .fd = out.end ? 1 : -1, .events = POLLOUT },
		};
		if (poll(p, 4, -1) < 0 && errno != EINTR)
			return 1;
		alive = step(&in, &p[0], &p[1]) && step(&out, &p[2], &p[3]);
	}
	return 0;
}

int bridge_socket(const char *path)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (strlen(path) >= sizeof address.sun_path) {
		errno = ENAMETOOLONG;
		return fail(path);
	}
	strcpy(address.sun_path, path);
	if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address) < 0 ||
	    fcntl(fd, F_SETFL, O_NONBLOCK) < 0)
		return fail(path);
	return bridge(fd);
}

int bridge_tty(const char *path)
{
	int fd = open(path, O_RDWR | O_NOCTTY | O_NONBLOCK | O_CLOEXEC);

	if (fd < 0 || set_raw(fd) < 0)
		return fail(path);
	return bridge(fd);
}
