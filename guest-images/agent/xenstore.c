/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "xenstore.h"

#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define PAYLOAD_MAX 4096u
#define TOKEN "emu"
#define RETRIES 100

/* Names and numbers as in xs_wire.h. */
enum {
	XS_DIRECTORY = 1,
	XS_READ = 2,
	XS_WATCH = 4,
	XS_UNWATCH = 5,
	XS_TRANSACTION_START = 6,
	XS_TRANSACTION_END = 7,
	XS_WRITE = 11,
	XS_WATCH_EVENT = 15,
	XS_ERROR = 16,
	XS_IS_DOMAIN_INTRODUCED = 17,
};

struct message {
	uint32_t type, request, transaction, length;
};

static int sock = -1;
static uint32_t last_request;
static bool changed;
static char answer[PAYLOAD_MAX + 1];

int xs_open(void)
{
	static const char *const places[] = { "/run/xenstored/socket",
					      "/var/run/xenstored/socket" };
	const char *given = getenv("XENSTORED_PATH"); /* as in libxenstore */

	for (size_t i = 0; i < 3; i++) {
		const char *place = i ? places[i - 1] : given;
		struct sockaddr_un address = { .sun_family = AF_UNIX };
		if (!place || strlen(place) >= sizeof address.sun_path)
			continue;
		strcpy(address.sun_path, place);
		sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
		if (sock >= 0 && connect(sock, (struct sockaddr *)&address, sizeof address) == 0)
			return sock;
		if (sock >= 0)
			close(sock);
	}
	return sock = -1;
}

static bool send_all(const void *data, size_t length)
{
	const char *p = data;

	while (length) {
		ssize_t n = send(sock, p, length, MSG_NOSIGNAL);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return false;
		p += n;
		length -= (size_t)n;
	}
	return true;
}

static bool receive_all(void *data, size_t length)
{
	char *p = data;

	while (length) {
		ssize_t n = recv(sock, p, length, 0);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return false;
		p += n;
		length -= (size_t)n;
	}
	return true;
}

/* Receive one message into `answer`; a watch event sets `changed`. */
static bool next_message(struct message *m)
{
	if (!receive_all(m, sizeof *m) || m->length > PAYLOAD_MAX ||
	    !receive_all(answer, m->length)) {
		close(sock);
		sock = -1;
		return false;
	}
	answer[m->length] = 0;
	if (m->type == XS_WATCH_EVENT)
		changed = true;
	return true;
}

/* Send a request and wait. Returns the length of the answer, or -1 with errno. */
static ssize_t ask(uint32_t type, uint32_t transaction, const char *payload, size_t length)
{
	struct message m = { type, ++last_request, transaction, (uint32_t)length };

	if (sock < 0 || !send_all(&m, sizeof m) || !send_all(payload, length)) {
		errno = EPIPE;
		return -1;
	}
	do
		if (!next_message(&m)) {
			errno = EPIPE;
			return -1;
		}
	while (m.type == XS_WATCH_EVENT || m.request != last_request);
	if (m.type == XS_ERROR) {
		errno = !strcmp(answer, "EAGAIN")   ? EAGAIN
			: !strcmp(answer, "ENOENT") ? ENOENT
						    : EIO;
		return -1;
	}
	return m.length;
}

static ssize_t ask_path(uint32_t type, uint32_t transaction, const char *path)
{
	return ask(type, transaction, path, strlen(path) + 1);
}

const char *xs_value(const char *path, size_t *length)
{
	ssize_t n = ask_path(XS_READ, 0, path);

	*length = n < 0 ? 0 : (size_t)n;
	return n < 0 ? NULL : answer;
}

bool xs_read(const char *path, char value[XS_VALUE_MAX])
{
	size_t length;
	const char *found = xs_value(path, &length);

	if (!found || length >= XS_VALUE_MAX)
		return false;
	memcpy(value, found, length + 1);
	return true;
}

char *xs_children(const char *path, size_t *length)
{
	ssize_t n = ask_path(XS_DIRECTORY, 0, path);
	char *names = n < 0 ? NULL : malloc((size_t)n + 1);

	*length = n < 0 ? 0 : (size_t)n;
	return names ? memcpy(names, answer, *length + 1) : NULL;
}

/* Two strings in one message; the second without its NUL where `bare` (a value). */
static bool ask_two(uint32_t type, uint32_t transaction, const char *one, const char *two,
		    bool bare)
{
	char payload[PAYLOAD_MAX];
	int n = snprintf(payload, sizeof payload, "%s%c%s", one, 0, two);

	if (n < 0 || (size_t)n >= sizeof payload)
		return false;
	return ask(type, transaction, payload, (size_t)n + !bare) >= 0;
}

bool xs_write(const char *path, const char *value)
{
	return ask_two(XS_WRITE, 0, path, value, true);
}

bool xs_replace(const char *path, const char *value)
{
	for (int i = 0; i < RETRIES; i++) {
		if (ask(XS_TRANSACTION_START, 0, "", 1) < 0)
			return false;
		uint32_t transaction = (uint32_t)strtoul(answer, NULL, 10);
		bool good = ask_path(XS_READ, transaction, path) >= 0 &&
			    ask_two(XS_WRITE, transaction, path, value, true);
		if (ask(XS_TRANSACTION_END, transaction, good ? "T" : "F", 2) >= 0)
			return good;
		if (errno != EAGAIN)
			return false;
	}
	return false;
}

unsigned xs_first_device(const char *path)
{
	ssize_t n = ask_path(XS_DIRECTORY, 0, path);

	for (const char *name = answer; n > 0 && name < answer + n; name += strlen(name) + 1) {
		unsigned long number = strtoul(name, NULL, 10);
		if (number > 0 && number < 1024)
			return (unsigned)number;
	}
	return 0;
}

bool xs_watch(const char *path)
{
	return ask_two(XS_WATCH, 0, path, TOKEN, false);
}

bool xs_unwatch(const char *path)
{
	return ask_two(XS_UNWATCH, 0, path, TOKEN, false);
}

bool xs_is_introduced(unsigned domid)
{
	char number[16];

	snprintf(number, sizeof number, "%u", domid);
	return ask_path(XS_IS_DOMAIN_INTRODUCED, 0, number) >= 0 && answer[0] == 'T';
}

bool xs_receive(void)
{
	struct pollfd p = { .fd = sock, .events = POLLIN };
	struct message m;

	while (sock >= 0 && poll(&p, 1, 0) > 0)
		if (!next_message(&m))
			return false;
	return sock >= 0;
}

bool xs_changed(void)
{
	bool was = changed;

	changed = false;
	return was;
}
