/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * emu-channeld — the back end of a domU's second PV console, as a Unix socket.
 *
 * libxl starts it as device_model_override, in place of QEMU: it runs one for a PV or PVH domain
 * with a `channel`, because xenconsoled serves the first console only. libxl waits for "running"
 * in device-model/<domid>/state, sends a few QMP commands, and stops us with SIGHUP. xenconsoled
 * would be too slow: it accepts 30 events in 200 ms from a console.
 *
 * The console is at /run/emu/channel/<domid>, for one client; a new one replaces the old.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "qmp.h"
#include "ring.h"
#include "xenstore.h"

#define DIRECTORY "/run/emu/channel"
#define PATH_SIZE 160
/* Linux' hvc reads 16 bytes at a time from its ring and sends an event for each: too many for
 * dom0 on an emulated CPU. While data flows, poll the ring at this interval instead. */
#define POLL_NS 300000
/* Seconds in which a front end has to answer that we are connected. */
#define ANSWER_S 20

/* xen/include/public/io/xenbus.h */
enum xenbus_state {
	INITIALISING = 1,
	INIT_WAIT = 2,
	INITIALISED = 3,
	CONNECTED = 4,
	CLOSING = 5,
	CLOSED = 6,
};

static unsigned domid;
static char backend[PATH_SIZE]; /* empty until the device exists */
static char frontend[XS_VALUE_MAX];
static char watched[XS_VALUE_MAX + 16];
static struct ring ring;
static struct sockaddr_un address = { .sun_family = AF_UNIX };
static time_t answer_due; /* CLOCK_MONOTONIC; 0: none is awaited */
static int listener = -1, client = -1;
static int qmp_listener = -1, qmp_client = -1;

static void report(const char *what)
{
	fprintf(stderr, "emu-channeld %u: %s\n", domid, what);
}

static int die(const char *what)
{
	fprintf(stderr, "emu-channeld %u: %s: %s\n", domid, what, strerror(errno));
	return 1;
}

static unsigned read_number(const char *directory, const char *node)
{
	char path[XS_VALUE_MAX + 32], value[XS_VALUE_MAX];

	snprintf(path, sizeof path, "%s/%s", directory, node);
	return xs_read(path, value) ? (unsigned)strtoul(value, NULL, 10) : 0;
}

static void set_state(enum xenbus_state state)
{
	char path[PATH_SIZE + 16], value[8];

	if (read_number(backend, "state") == state)
		return;
	snprintf(path, sizeof path, "%s/state", backend);
	snprintf(value, sizeof value, "%d", state);
	xs_replace(path, value);
}

static void hang_up(void)
{
	if (client >= 0)
		close(client);
	client = -1;
}

static void disconnect(void)
{
	if (!ring.page)
		return;
	ring_disconnect(&ring);
	hang_up();
	report("disconnected");
}

static time_t now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec;
}

/*
 * Let the guest probe its device anew when the front end has not answered.
 *
 * Linux 7 takes a front end's state that it has just read, and which the driver has changed
 * meanwhile, for one that was reset (xenbus_dev_changed(), seen with 7.3.4 on a busy machine): it
 * drops the device, and does not probe a new one because the state is no longer Initialising.
 */
static void expect_answer(void)
{
	char path[XS_VALUE_MAX + 16];

	if (!answer_due || now() < answer_due)
		return;
	answer_due = 0;
	if (read_number(frontend, "state") != INITIALISED)
		return;
	report("the front end does not answer: resetting it");
	disconnect();
	snprintf(path, sizeof path, "%s/state", frontend);
	xs_replace(path, "1");
	set_state(INIT_WAIT);
}

static void connect_ring(void)
{
	uint32_t ref = read_number(frontend, "ring-ref"), port = read_number(frontend, "port");

	if (!ref || !port || (ring.page && ref == ring.ref && port == ring.remote_port))
		return;
	disconnect(); /* a resumed front end has a new ring */
	if (ring_connect(&ring, domid, ref, port) < 0) {
		die("mapping the console's ring");
		return;
	}
	set_state(CONNECTED);
	report("connected");
}

/* True once the device and its front end are in xenstore. */
static bool find_device(void)
{
	char directory[PATH_SIZE], path[PATH_SIZE];
	unsigned devid;

	if (*backend)
		return true;
	snprintf(directory, sizeof directory, "/local/domain/0/backend/console/%u", domid);
	devid = xs_first_device(directory);
	if (!devid)
		return false;
	snprintf(path, sizeof path, "/local/domain/0/backend/console/%u/%u/frontend", domid, devid);
	if (!xs_read(path, frontend))
		return false;
	snprintf(backend, sizeof backend, "/local/domain/0/backend/console/%u/%u", domid, devid);
	snprintf(watched, sizeof watched, "%s/state", frontend);
	xs_watch(watched);
	return true;
}

/* Follow the states in xenstore; false when the domain is gone. */
static bool follow(void)
{
	if (!find_device())
		return xs_is_introduced(domid);

	unsigned front = read_number(frontend, "state"), back = read_number(backend, "state");
	if (!back || (back == CLOSING && !read_number(backend, "online"))) {
		disconnect();
		set_state(CLOSED);
		return back || xs_is_introduced(domid);
	}
	if (front != INITIALISED)
		answer_due = 0;
	switch (front) {
	case INITIALISING:
		/* First connection, or the front end's module was loaded again. */
		disconnect();
		set_state(INIT_WAIT);
		break;
	case INITIALISED:
		connect_ring();
		if (!answer_due)
			answer_due = now() + ANSWER_S;
		break;
	case CONNECTED:
		connect_ring();
		break;
	case CLOSING:
		set_state(CLOSING);
		break;
	case 0:
	case CLOSED:
		disconnect();
		set_state(CLOSED);
		break;
	}
	return xs_is_introduced(domid);
}

static int listen_socket(void)
{
	mkdir("/run/emu", 0700);
	mkdir(DIRECTORY, 0700);
	snprintf(address.sun_path, sizeof address.sun_path, DIRECTORY "/%u", domid);
	unlink(address.sun_path);
	listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (listener < 0 || bind(listener, (struct sockaddr *)&address, sizeof address) < 0 ||
	    listen(listener, 4) < 0)
		return -1;
	return 0;
}

static void accept_client(void)
{
	int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

	if (fd < 0)
		return;
	hang_up();
	client = fd;
}

static bool is_error(ssize_t n)
{
	return n < 0 && errno != EAGAIN && errno != EINTR;
}

/* Move data both ways; true when any was moved. */
static bool shuttle(short client_events)
{
	ssize_t out, in = 0;

	if (client < 0 || !ring.page)
		return false;
	if (ring_readable(&ring) < 0 || ring_writable(&ring) < 0) {
		report("invalid ring indices");
		disconnect();
		set_state(CLOSED);
		return false;
	}
	out = ring_to_fd(&ring, client);
	if (is_error(out)) {
		hang_up();
		return false;
	}
	if (client_events & (POLLIN | POLLHUP | POLLERR) && ring_writable(&ring) > 0) {
		in = fd_to_ring(&ring, client);
		if (in == 0 || is_error(in))
			hang_up();
	}
	return out > 0 || in > 0;
}

static int serve(int xenstore, int signals)
{
	static const struct timespec interval = { .tv_nsec = POLL_NS }, second = { .tv_sec = 1 };

	for (;;) {
		expect_answer();
		/* Before poll(): an event may have arrived with an answer. */
		while (xs_changed())
			if (!follow())
				return 0;

		bool to_read = client >= 0 && ring.page && ring_readable(&ring) > 0;
		bool to_write = client >= 0 && ring.page && ring_writable(&ring) > 0;
		/* Not while the ring is full: POLLHUP would make this a busy loop. */
		bool to_poll = client >= 0 && (to_read || to_write || !ring.page);
		struct pollfd p[] = {
			{ .fd = signals, .events = POLLIN },
			{ .fd = xenstore, .events = POLLIN },
			{ .fd = listener, .events = POLLIN },
			{ .fd = ring.page && !ring.masked ? ring.evtchn : -1, .events = POLLIN },
			{ .fd = to_poll ? client : -1,
			  .events = (short)((to_read ? POLLOUT : 0) | (to_write ? POLLIN : 0)) },
			{ .fd = qmp_listener, .events = POLLIN },
			{ .fd = qmp_client, .events = POLLIN },
		};
		const struct timespec *limit = ring.page && ring.masked ? &interval
					       : answer_due		? &second
									: NULL;
		if (ppoll(p, sizeof p / sizeof *p, limit, NULL) < 0)
			return die("poll");
		if (p[0].revents)
			return 0;
		if (p[3].revents)
			ring_event(&ring);
		if (!ring.page && p[4].revents)
			hang_up(); /* no events requested: it is POLLHUP */
		if (!shuttle(p[4].revents) && ring.page && ring.masked)
			ring_unmask(&ring);
		if (p[2].revents)
			accept_client();
		if (p[6].revents)
			qmp_client = qmp_answer();
		if (p[5].revents)
			qmp_client = qmp_accept();
		if (p[1].revents && !xs_receive())
			return die("connection to xenstored lost");
	}
}

static unsigned parse_domid(int argc, char **argv)
{
	for (int i = 1; i + 1 < argc; i++)
		if (!strcmp(argv[i], "-xen-domid"))
			return (unsigned)strtoul(argv[i + 1], NULL, 10);
	return 0;
}

int main(int argc, char **argv)
{
	char path[PATH_SIZE];
	sigset_t set;
	int status, xenstore;

	domid = parse_domid(argc, argv);
	if (!domid) {
		status = qmp_probe(argc, argv);
		if (status >= 0)
			return status;
		fputs("usage: emu-channeld … -xen-domid N …\n", stderr);
		return 2;
	}
	sigemptyset(&set);
	sigaddset(&set, SIGHUP);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigprocmask(SIG_BLOCK, &set, NULL);
	signal(SIGPIPE, SIG_IGN);
	int signals = signalfd(-1, &set, SFD_CLOEXEC);
	ring_setup(&ring);
	xenstore = xs_open();
	if (xenstore < 0)
		return die("connecting to xenstored");
	if (listen_socket() < 0)
		return die(address.sun_path);
	qmp_listener = qmp_listen(argc, argv);
	if (qmp_listener < 0)
		return die("serving QMP to libxl");
	snprintf(path, sizeof path, "/local/domain/0/backend/console/%u", domid);
	if (!xs_watch("@releaseDomain") || !xs_watch(path))
		return die("watching xenstore");
	snprintf(path, sizeof path, "/local/domain/0/device-model/%u/state", domid);
	if (!xs_write(path, "running"))
		return die(path);

	status = serve(xenstore, signals);

	disconnect();
	if (*backend)
		set_state(CLOSED);
	unlink(address.sun_path);
	qmp_close();
	return status;
}
