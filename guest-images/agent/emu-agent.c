/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * emu-agent — runs commands in a guest for a controller, over a virtio-serial port or a tty.
 *
 *   emu-agent LINK             serve a controller at LINK: a device's path, or fd:N
 *   emu-agent put MODE PATH    write standard input to PATH if its trailer matches
 *   emu-agent get PATH         write PATH and a trailer to standard output
 *   emu-agent connect PATH     connect standard input and output with a Unix socket
 *   emu-agent tty PATH         connect them with a terminal, in raw mode
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
 * Number of pauses of REOPEN_MS before a tty that was hung up is opened again.
 *
 * Linux releases a tty that was hung up and closed from a work queue. An open() before that
 * returns the old tty (hvc_get_by_index() in drivers/tty/hvc/hvc_console.c takes the first with
 * its index), which has the old interrupt after a resume: no input arrives. One long pause is not
 * enough: when the guest's CPU was not scheduled meanwhile, this process may run before the work.
 * Each of several pauses lets the work run first.
 */
#define PAUSES 10

static struct link peer;
static int pauses;	  /* pauses left before the link is opened */
static int64_t pause_end; /* end of the current pause, in ms */
static bool stalled;	  /* no request is taken until there is room for its answer */

static int64_t now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static void pause_link(void)
{
	pause_end = now_ms() + REOPEN_MS;
}

static void welcome(const uint8_t *payload)
{
	struct hello h;
	struct welcome w = {
		.version = WIRE_VERSION,
		.chunk = peer.kind == LINK_TTY ? 4096 : PAYLOAD_MAX,
		.window = STDIN_WINDOW,
		.pid = (uint32_t)getpid(),
	};

	memcpy(&h, payload, sizeof h);
	/* A peer that got no answer sends its hello again; only a new nonce is a new peer. */
	if (!peer.joined || memcmp(h.nonce, peer.nonce, NONCE_SIZE)) {
		commands_drop();
		link_reset(&peer);
		memcpy(peer.nonce, h.nonce, NONCE_SIZE);
		peer.joined = true;
		peer.window = h.window;
		if (h.chunk && h.chunk < peer.chunk)
			peer.chunk = h.chunk;
	}
	memcpy(w.nonce, h.nonce, NONCE_SIZE);
	link_send(&peer, WELCOME, 0, 0, &w, sizeof w);
}

static void leave(const char *why)
{
	commands_drop();
	if (why)
		link_send(&peer, TROUBLE, 0, 0, why, strlen(why));
	peer.joined = false;
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
		link_send(&peer, PONG, 0, f->id, payload, f->length);
		break;
	case EXEC:
		command_start(&peer, f->id, payload, f->length);
		break;
	case STDIN:
		command_input(&peer, f->id, payload, f->length);
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
		leave("unknown frame type");
	}
}

/* Process input; false when the link is gone. */
static bool receive(void)
{
	const uint8_t *payload;
	const char *why;
	struct frame f;
	bool alive = true;

	for (;;) {
		enum link_event event;
		while (!(stalled = !link_has_room(&peer)) &&
		       (event = link_next(&peer, &f, &payload, &why)) != LINK_NOTHING) {
			if (event == LINK_HELLO)
				welcome(payload);
			else if (event == LINK_FRAME)
				handle(&f, payload);
			else
				leave(why);
		}
		if (stalled || !peer.can_read || !alive)
			return alive;
		alive = link_fill(&peer);
	}
}

static void lost(void)
{
	commands_drop();
	if (peer.kind == LINK_FD)
		exit(0);
	if (peer.kind == LINK_TTY) {
		/* Hung up, as after a restore: the device reappears under the same name. */
		link_close(&peer);
		pauses = PAUSES;
		pause_link();
		return;
	}
	/* A port stays open; the next peer is reported by an edge. */
	link_reset(&peer);
	peer.in_start = peer.in_end = 0;
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

/* Open the link after all pauses. Returns ms until the next try, 0 when it is open. */
static int open_again(int epoll_fd)
{
	int64_t left = pause_end - now_ms();

	if (left > 0)
		return (int)left;
	if (pauses > 1)
		pauses--;
	else if (link_open(&peer, epoll_fd))
		return 0;
	pause_link();
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
	link_setup(&peer, name);

	for (;;) {
		bool alive = true;
		int n = epoll_wait(epoll_fd, events, 64, wait);

		for (int i = 0; i < n; i++) {
			enum watched what = (enum watched)(events[i].data.u64 >> 32);
			if (what == WATCH_LINK) {
				peer.can_read |= events[i].events != EPOLLOUT;
				peer.can_write |= (events[i].events & EPOLLOUT) != 0;
			} else if (what == WATCH_SIGNALS) {
				reap(signals);
			} else {
				commands_event(what, (uint32_t)events[i].data.u64);
			}
		}
		if (peer.fd < 0 && (wait = open_again(epoll_fd)))
			continue;
		alive = receive();
		wait = -1;
		/* Each flush makes room for the next chunk, until the link takes no more. */
		for (size_t before = 1; alive && before;) {
			wait = commands_pump(&peer);
			before = peer.can_write ? link_queued(&peer) : 0;
			alive = link_flush(&peer);
		}
		if (alive && stalled && link_has_room(&peer))
			wait = 0;
		if (!alive) {
			lost();
			wait = peer.fd < 0 ? REOPEN_MS : -1;
		}
	}
}

static void fill_standard_descriptors(void)
{
	int fd;

	/* 0, 1 and 2 must be in use: dup2() would overwrite a pipe end among them. */
	do
		fd = open("/dev/null", O_RDWR);
	while (fd >= 0 && fd < 3);
	if (fd >= 0)
		close(fd);
}

int main(int argc, char **argv)
{
	fill_standard_descriptors();
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
