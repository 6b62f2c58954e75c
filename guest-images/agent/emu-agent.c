/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * emu-agent — runs commands in a guest for the host, over a virtio-serial port or a tty.
 *
 *   emu-agent LINK             serve a host at LINK: a device's path, or fd:N
 *   emu-agent put MODE PATH    standard input, checked by its trailer, becomes PATH
 *   emu-agent get PATH         PATH and a trailer to standard output
 *   emu-agent connect PATH     standard input and output to and from a Unix socket
 *   emu-agent tty PATH         the same with a terminal, in raw mode
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <time.h>
#include <unistd.h>

#include "command.h"
#include "helpers.h"
#include "link.h"

#define REOPEN_MS 20
/*
 * How often to rest for so long before a tty that was hung up is opened again.
 *
 * Linux forgets a tty that was hung up and closed in a work queue. Opened before that, hvc gives
 * the same one once more (hvc_get_by_index() of drivers/tty/hvc/hvc_console.c takes the first of
 * its number), and after a resume that has the interrupt of before: nothing the host says is
 * heard. One long rest is not enough: a guest whose CPU was away for all of it goes on with us
 * before the work. Each of several lets the work go first.
 */
#define RESTS 10

static struct link host;
static int rests;	 /* to go, before the link is opened */
static int64_t rest_end; /* of the present one, in ms */
static bool stalled;	 /* requests wait until there is room for their answers */

static int64_t now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static void rest(void)
{
	rest_end = now_ms() + REOPEN_MS;
}

static void welcome(const uint8_t *payload)
{
	struct hello h;
	struct welcome w = {
		.version = WIRE_VERSION,
		.chunk = host.kind == LINK_TTY ? 4096 : PAYLOAD_MAX,
		.window = STDIN_WINDOW,
		.pid = (uint32_t)getpid(),
	};

	memcpy(&h, payload, sizeof h);
	/* A host that got no answer at once asks again; only a new one starts afresh. */
	if (!host.joined || memcmp(h.nonce, host.nonce, NONCE_SIZE)) {
		commands_drop();
		link_reset(&host);
		memcpy(host.nonce, h.nonce, NONCE_SIZE);
		host.joined = true;
		host.window = h.window;
		if (h.chunk && h.chunk < host.chunk)
			host.chunk = h.chunk;
	}
	memcpy(w.nonce, h.nonce, NONCE_SIZE);
	link_send(&host, WELCOME, 0, 0, &w, sizeof w);
}

static void leave(const char *why)
{
	commands_drop();
	if (why)
		link_send(&host, TROUBLE, 0, 0, why, strlen(why));
	host.joined = false;
}

static void handle(const struct frame *f, const uint8_t *payload)
{
	uint32_t number[2] = { 0, 0 };
	uint16_t size[2] = { 0, 0 };

	if (f->length >= sizeof size)
		memcpy(size, payload, sizeof size);
	memcpy(number, payload, f->length < sizeof number ? f->length : sizeof number);
	switch (f->type) {
	case BYE:
		leave(NULL);
		break;
	case PING:
		link_send(&host, PONG, 0, f->id, payload, f->length);
		break;
	case EXEC:
		command_start(&host, f->id, payload, f->length);
		break;
	case STDIN:
		command_input(&host, f->id, payload, f->length);
		break;
	case STDIN_END:
		command_input_end(f->id);
		break;
	case CREDIT:
		command_credit(f->id, f->stream, number[0]);
		break;
	case SIGNAL:
		command_signal(f->id, (int32_t)number[0], number[1]);
		break;
	case RESIZE:
		command_resize(f->id, size[0], size[1]);
		break;
	default:
		leave("a frame of an unknown type");
	}
}

/* Take what came in; false when the link itself is gone. */
static bool receive(void)
{
	const uint8_t *payload;
	const char *why;
	struct frame f;
	bool alive = true;

	for (;;) {
		enum link_event event;
		while (!(stalled = !link_has_room(&host)) &&
		       (event = link_next(&host, &f, &payload, &why)) != LINK_NOTHING) {
			if (event == LINK_HELLO)
				welcome(payload);
			else if (event == LINK_FRAME)
				handle(&f, payload);
			else
				leave(why);
		}
		if (stalled || !host.can_read || !alive)
			return alive;
		alive = link_fill(&host);
	}
}

static void lost(void)
{
	commands_drop();
	if (host.kind == LINK_FD)
		exit(0);
	if (host.kind == LINK_TTY) {
		/* Hung up, as after a restore: the device comes back under the same name. */
		link_close(&host);
		rests = RESTS;
		rest();
		return;
	}
	/* A port opens once and stays; its next host comes with an edge. */
	link_reset(&host);
	host.in_start = host.in_end = 0;
}

static void reap(int signals)
{
	struct signalfd_siginfo info;

	while (read(signals, &info, sizeof info) == sizeof info)
		if (info.ssi_signo != SIGCHLD) {
			commands_drop();
			exit(0);
		}
	commands_reap();
}

/* Open the link once all rests are over; the ms to wait before the next try, 0 when it is open. */
static int open_again(int epoll_fd)
{
	int64_t left = rest_end - now_ms();

	if (left > 0)
		return (int)left;
	if (rests > 1)
		rests--;
	else if (link_open(&host, epoll_fd))
		return 0;
	rest();
	return REOPEN_MS;
}

static int serve(const char *name)
{
	struct epoll_event events[64], ev = { .events = EPOLLIN };
	int epoll_fd = epoll_create1(EPOLL_CLOEXEC), wait = 0;
	sigset_t set;

	signal(SIGPIPE, SIG_IGN);
	signal(SIGHUP, SIG_IGN);
	sigemptyset(&set);
	sigaddset(&set, SIGCHLD);
	sigaddset(&set, SIGTERM);
	sigprocmask(SIG_BLOCK, &set, NULL);
	int signals = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	ev.data.u64 = (uint64_t)WATCH_SIGNALS << 32;
	if (epoll_fd < 0 || signals < 0 || epoll_ctl(epoll_fd, EPOLL_CTL_ADD, signals, &ev) < 0) {
		perror("emu-agent");
		return 1;
	}
	commands_setup(epoll_fd);
	link_setup(&host, name);

	for (;;) {
		bool alive = true;
		int n = epoll_wait(epoll_fd, events, 64, wait);

		for (int i = 0; i < n; i++) {
			enum watched what = (enum watched)(events[i].data.u64 >> 32);
			if (what == WATCH_LINK) {
				host.can_read |= events[i].events != EPOLLOUT;
				host.can_write |= (events[i].events & EPOLLOUT) != 0;
			} else if (what == WATCH_SIGNALS) {
				reap(signals);
			} else {
				commands_event(what, (uint32_t)events[i].data.u64);
			}
		}
		if (host.fd < 0 && (wait = open_again(epoll_fd)))
			continue;
		alive = receive();
		wait = -1;
		/* Room made by one flush lets the next chunk in, until the link takes no more. */
		for (size_t before = 1; alive && before;) {
			wait = commands_pump(&host);
			before = host.can_write ? link_queued(&host) : 0;
			alive = link_flush(&host);
		}
		if (alive && stalled && link_has_room(&host))
			wait = 0;
		if (!alive) {
			lost();
			wait = host.fd < 0 ? REOPEN_MS : -1;
		}
	}
}

static void tidy_descriptors(void)
{
	int fd;

	/* 0, 1 and 2 must be taken: a pipe end among them would be lost in dup2. */
	do
		fd = open("/dev/null", O_RDWR);
	while (fd >= 0 && fd < 3);
	if (fd >= 0)
		close(fd);
}

int main(int argc, char **argv)
{
	tidy_descriptors();
	if (argc == 2 && argv[1][0] != '-')
		return serve(argv[1]);
	if (argc == 4 && !strcmp(argv[1], "put"))
		return put_file(argv[2], argv[3]);
	if (argc == 3 && !strcmp(argv[1], "get"))
		return get_file(argv[2]);
	if (argc == 3 && !strcmp(argv[1], "connect"))
		return bridge_socket(argv[2]);
	if (argc == 3 && !strcmp(argv[1], "tty"))
		return bridge_tty(argv[2]);
	fputs("usage: emu-agent LINK | put MODE PATH | get PATH | connect PATH | tty PATH\n",
	      stderr);
	return 2;
}
