/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * emu-lun VERB [LUN] [key=value …]: send a command to the LUN server (guest-images/handler/verbs.c)
 * and print the answer. Status 0: ok, 1: refused, 2: no server.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define SOCKET "/run/emu/lun.sock"

int main(int argc, char **argv)
{
	const char *other = getenv("EMU_LUN_SOCKET");
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int server = socket(AF_UNIX, SOCK_STREAM, 0);
	FILE *out = stdout, *talk;
	char buffer[65536];
	size_t got;
	int status = 0, first = 1;

	if (argc < 2) {
		fprintf(stderr, "usage: emu-lun VERB [LUN] [key=value ...]\n");
		return 2;
	}
	snprintf(address.sun_path, sizeof(address.sun_path), "%s", other ? other : SOCKET);
	if (server < 0 || connect(server, (struct sockaddr *)&address, sizeof(address))) {
		fprintf(stderr, "emu-lun: no LUN server at ");
		perror(address.sun_path);
		return 2;
	}
	talk = fdopen(server, "r+");
	if (!talk)
		return 2;
	for (int i = 1; i < argc; i++)
		fprintf(talk, "%s%c", argv[i], i == argc - 1 ? '\n' : ' ');
	fflush(talk);
	while ((got = fread(buffer, 1, sizeof(buffer), talk)) > 0) {
		if (first && (got < 2 || memcmp(buffer, "ok", 2))) {
			out = stderr;
			status = 1;
		}
		first = 0;
		fwrite(buffer, 1, got, out);
	}
	if (first) {
		fprintf(stderr, "emu-lun: the LUN server did not answer\n");
		return 2;
	}
	return fflush(out) ? 2 : status;
}
