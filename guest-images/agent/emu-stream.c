// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * emu-stream connect ADDRESS PORT: connect standard input and output with a TCP connection.
 * emu-stream listen ADDRESS PORT PROGRAM [ARGUMENT…]: accept one connection and exec PROGRAM with
 * it as standard input and output; "-" as PROGRAM: copy its data to standard output.
 *
 * In place of ssh for `xl migrate`. Data is spliced between pipe and socket: copies are expensive
 * under emulation.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define PIPE_SIZE (1 << 20)
/* The listener is started first, but on another host. */
#define TRIES 100
#define RETRY_NS 100000000
/* Milliseconds for data to be acknowledged; then the peer is considered gone. */
#define ACK_TIMEOUT_MS 10000u

static int die(const char *what)
{
	fprintf(stderr, "emu-stream: %s: %s\n", what, strerror(errno));
	return 1;
}

static bool parse(const char *host, const char *port, struct sockaddr_in *address)
{
	address->sin_family = AF_INET;
	address->sin_port = htons((uint16_t)atoi(port));
	return inet_pton(AF_INET, host, &address->sin_addr) == 1 && address->sin_port;
}

static int connect_to(const struct sockaddr_in *address)
{
	static const struct timespec interval = { .tv_nsec = RETRY_NS };

	for (int tries = 0; tries < TRIES; tries++) {
		int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

		if (fd < 0 || !connect(fd, (const struct sockaddr *)address, sizeof *address))
			return fd;
		close(fd);
		if (errno != ECONNREFUSED)
			return -1;
		nanosleep(&interval, NULL);
	}
	return -1;
}

static int accept_one(const struct sockaddr_in *address)
{
	int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1, fd;

	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
	if (listener < 0 || bind(listener, (const struct sockaddr *)address, sizeof *address) < 0 ||
	    listen(listener, 1) < 0)
		return -1;
	fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
	close(listener);
	return fd;
}

/* Where splice() fails: neither is a pipe. */
static ssize_t copy(int from, int to)
{
	static char data[65536];
	ssize_t n = read(from, data, sizeof data), at = 0;

	while (at < n) {
		ssize_t written = write(to, data + at, (size_t)(n - at));

		if (written < 0 && errno != EINTR)
			return -1;
		at += written > 0 ? written : 0;
	}
	return n;
}

/* Move available data; 0 at the end, -1 when either side is gone. */
static ssize_t move(int from, int to)
{
	ssize_t n;

	do {
		n = splice(from, NULL, to, NULL, PIPE_SIZE, SPLICE_F_MOVE);
		if (n < 0 && errno == EINVAL)
			n = copy(from, to);
	} while (n < 0 && errno == EINTR);
	return n;
}

static int drain(int from, int to)
{
	ssize_t n;

	do
		n = move(from, to);
	while (n > 0);
	return n ? die("copying") : 0;
}

/* Until the peer closes the connection; unsent data has no reader then. */
static int both_ways(int fd)
{
	bool ended = false;

	for (;;) {
		struct pollfd p[] = {
			{ .fd = fd, .events = POLLIN },
			{ .fd = ended ? -1 : 0, .events = POLLIN },
		};
		ssize_t n;

		if (poll(p, 2, -1) < 0) {
			if (errno == EINTR)
				continue;
			return die("poll");
		}
		if (p[0].revents) {
			n = move(fd, 1);
			if (n <= 0)
				return n ? die("receiving") : 0;
		}
		if (p[1].revents) {
			n = move(0, fd);
			if (n < 0)
				return die("sending");
			if (!n) {
				ended = true;
				shutdown(fd, SHUT_WR);
			}
		}
	}
}

int main(int argc, char **argv)
{
	struct sockaddr_in address = { 0 };
	bool listens = argc > 4 && !strcmp(argv[1], "listen");
	int fd;

	if (!(listens || (argc == 4 && !strcmp(argv[1], "connect"))) ||
	    !parse(argv[2], argv[3], &address)) {
		fputs("usage: emu-stream connect ADDRESS PORT\n"
		      "       emu-stream listen ADDRESS PORT PROGRAM|- [ARGUMENT…]\n",
		      stderr);
		return 2;
	}
	signal(SIGPIPE, SIG_IGN);
	/* Fewer switches between the ends of a pipe; fails harmlessly on others. */
	fcntl(0, F_SETPIPE_SZ, PIPE_SIZE);
	fcntl(1, F_SETPIPE_SZ, PIPE_SIZE);
	fd = listens ? accept_one(&address) : connect_to(&address);
	if (fd < 0)
		return die(listens ? "listening" : "connecting");
	setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &(unsigned){ ACK_TIMEOUT_MS },
		   sizeof(unsigned));
	if (!listens)
		return both_ways(fd);
	if (!strcmp(argv[4], "-"))
		return drain(fd, 1);
	signal(SIGPIPE, SIG_DFL);
	dup2(fd, 0);
	dup2(fd, 1);
	execvp(argv[4], argv + 4);
	return die(argv[4]);
}
