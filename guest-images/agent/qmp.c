/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "qmp.h"

#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define GREETING                                                                          \
	"{\"QMP\": {\"version\": {\"qemu\": {\"major\": 0, \"minor\": 0, \"micro\": 0}, " \
	"\"package\": \"emu-channeld\"}, \"capabilities\": []}}\r\n"

static struct sockaddr_un address = { .sun_family = AF_UNIX };
static int listener = -1, client = -1;
static char line[4096];
static size_t length;

int qmp_listen(int argc, char **argv)
{
	static const char prefix[] = "socket,id=libxl-cmd,path=";
	size_t skip = sizeof prefix - 1;

	for (int i = 1; i < argc; i++) {
		if (strncmp(argv[i], prefix, skip))
			continue;
		size_t end = strcspn(argv[i] + skip, ",");
		if (end >= sizeof address.sun_path)
			return -1;
		memcpy(address.sun_path, argv[i] + skip, end);
		unlink(address.sun_path);
		listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
		if (listener < 0 ||
		    bind(listener, (struct sockaddr *)&address, sizeof address) < 0 ||
		    listen(listener, 4) < 0)
			return -1;
		return listener;
	}
	return -1;
}

static void drop(void)
{
	if (client >= 0)
		close(client);
	client = -1;
	length = 0;
}

static void send_text(const char *text)
{
	if (send(client, text, strlen(text), MSG_NOSIGNAL) != (ssize_t)strlen(text))
		drop();
}

int qmp_accept(void)
{
	drop();
	client = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	if (client >= 0)
		send_text(GREETING);
	return client;
}

static void answer(const char *command)
{
	const char *id = strstr(command, "\"id\":"), *value = "{}";
	char reply[80];

	/* libxl's queries for a PV domain: the first from 4.20 on, the last before 4.15. */
	if (strstr(command, "\"query-command-line-options\"") ||
	    strstr(command, "\"query-chardev\""))
		value = "[]";
	else if (strstr(command, "\"query-vnc\""))
		value = "{\"enabled\": false}";
	snprintf(reply, sizeof reply, "{\"return\": %s, \"id\": %ld}\r\n", value,
		 id ? strtol(id + strlen("\"id\":"), NULL, 10) : 0);
	send_text(reply);
}

int qmp_answer(void)
{
	ssize_t n = recv(client, line + length, sizeof line - 1 - length, 0);

	if (n <= 0) {
		drop();
		return client;
	}
	length += (size_t)n;
	line[length] = 0;
	for (char *end; client >= 0 && (end = strchr(line, '\n'));) {
		*end = 0;
		answer(line);
		size_t used = (size_t)(end + 1 - line);
		length -= length < used ? length : used;
		memmove(line, end + 1, length + 1);
	}
	if (length >= sizeof line - 1)
		drop();
	return client;
}

int qmp_probe(int argc, char **argv)
{
	int fd = -1;

	for (int i = 1; i < argc; i++)
		if (sscanf(argv[i], "socket,id=libxl-cmd,fd=%d,", &fd) == 1)
			break;
	if (fd < 0)
		return -1;
	listener = fd;
	struct pollfd poll_it = { .fd = listener, .events = POLLIN };

	if (poll(&poll_it, 1, -1) < 0)
		return 1;
	for (poll_it.fd = qmp_accept(); poll_it.fd >= 0; poll_it.fd = qmp_answer())
		if (poll(&poll_it, 1, -1) < 0)
			return 1;
	return 0;
}

void qmp_close(void)
{
	drop();
	if (listener >= 0)
		unlink(address.sun_path);
}
