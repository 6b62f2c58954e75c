/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * emu-io show ACCOUNT: copy the valid part of an account to standard output.
 * emu-io DEVICE ACCOUNT key=value …: keep `outstanding` requests of `bytes` in flight, writes and
 * reads (`reads` per cent, of blocks written before), each at one of `blocks` offsets `stride` bytes
 * apart from `start` on, and log requests and completions in an account. Continues in the
 * background once everything is set up; on SIGTERM it submits no more, waits for what is in flight,
 * and exits.
 *
 * Data encodes its block and generation, so that each read is verified by itself; no two requests
 * for a block are in flight at once. Waiting is asynchronous: a task that sleeps in read() or
 * write() can't be frozen, and the guest not be saved, while a request is held.
 */
#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "io.h"

static struct account settings = {
	.magic = ACCOUNT_MAGIC,
	.seed = 1,
	.bytes = 4096,
	.room = 1 << 20,
	.state = RUNNING,
};
static struct io io = { .outstanding = 32, .percent_reads = 30 };

static const struct {
	const char *key;
	uint32_t *small;
	uint64_t *large;
} keys[] = {
	{ "outstanding", &io.outstanding, NULL },
	{ "reads", &io.percent_reads, NULL },
	{ "rate", &io.rate, NULL },
	{ "seed", &settings.seed, NULL },
	{ "bytes", &settings.bytes, NULL },
	{ "blocks", &settings.blocks, NULL },
	{ "start", NULL, &settings.start },
	{ "stride", NULL, &settings.stride },
	{ "events", NULL, &settings.room },
};

static void __attribute__((noreturn)) die(const char *what)
{
	fprintf(stderr, "emu-io: %s: %s\n", what, strerror(errno));
	exit(2);
}

static void on_term(int signal)
{
	(void)signal;
	io_stop = 1;
}

static int take(const char *word)
{
	const char *equals = strchr(word, '=');

	for (unsigned i = 0; equals && i < sizeof(keys) / sizeof(keys[0]); i++) {
		char *rest;
		uint64_t value;

		if (strlen(keys[i].key) != (size_t)(equals - word) ||
		    strncmp(keys[i].key, word, equals - word))
			continue;
		value = strtoull(equals + 1, &rest, 10);
		if (keys[i].small && value > UINT32_MAX)
			return -1;
		if (keys[i].small)
			*keys[i].small = (uint32_t)value;
		else
			*keys[i].large = value;
		return !*rest && equals[1] ? 0 : -1;
	}
	return -1;
}

static void prepare(const char *device, const char *path)
{
	size_t size = sizeof(settings) + settings.room * sizeof(struct event);
	int file = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

	io.device = open(device, O_RDWR | O_DIRECT | O_CLOEXEC);
	if (io.device < 0)
		die(device);
	if (file < 0 || ftruncate(file, size))
		die(path);
	io.account = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	if (io.account == MAP_FAILED)
		die(path);
	close(file);
	*io.account = settings;
	io.events = (struct event *)(io.account + 1);
	io.blocks = calloc(settings.blocks, sizeof(*io.blocks));
	io.requests = calloc(io.outstanding, sizeof(*io.requests));
	io.expected = malloc(settings.bytes);
	if (!io.blocks || !io.requests || !io.expected)
		die("memory");
	for (unsigned i = 0; i < io.outstanding; i++) {
		struct request *r = &io.requests[i];
		void *buffer;

		errno = posix_memalign(&buffer, 4096, settings.bytes);
		if (errno)
			die("memory");
		r->buffer = buffer;
		r->next = io.idle;
		io.idle = r;
	}
	if (syscall(SYS_io_setup, io.outstanding, &io.context))
		die("io_setup");
}

static int show(const char *path)
{
	int file = open(path, O_RDONLY);
	off_t at = sizeof(settings);
	off_t end;

	/* It may still grow: send as many events as the head counts. */
	if (read(file, &settings, sizeof(settings)) != sizeof(settings))
		die(path);
	end = at + settings.events * sizeof(struct event);
	if (write(STDOUT_FILENO, &settings, sizeof(settings)) != sizeof(settings))
		die("standard output");
	while (at < end)
		if (sendfile(STDOUT_FILENO, file, &at, end - at) <= 0)
			die("standard output");
	return 0;
}

int main(int argc, char **argv)
{
	struct sigaction action = { .sa_handler = on_term };
	char ok = 0;
	int ready[2];
	pid_t child;

	if (argc == 3 && !strcmp(argv[1], "show"))
		return show(argv[2]);
	for (int i = 3; i < argc; i++)
		if (take(argv[i])) {
			fprintf(stderr, "emu-io: invalid argument %s\n", argv[i]);
			return 2;
		}
	if (argc < 3) {
		fprintf(stderr, "usage: emu-io DEVICE ACCOUNT [key=value ...]\n");
		return 2;
	}
	if (!settings.blocks)
		settings.blocks = 2 * io.outstanding;
	if (!settings.stride)
		settings.stride = 2 * (uint64_t)settings.bytes;
	if (!io.outstanding || io.outstanding > 4096 || !settings.bytes || settings.bytes % 4096 ||
	    settings.blocks <= io.outstanding || settings.stride < settings.bytes ||
	    settings.room < 4 * io.outstanding + 4) {
		fprintf(stderr, "emu-io: needs more blocks than requests, and whole pages\n");
		return 2;
	}
	io.draws = 0x9e3779b97f4a7c15ull * (settings.seed + 1ull);
	io.began = io_now_ms();
	/* An AIO context belongs to a process: the child sets it up. */
	if (pipe2(ready, O_CLOEXEC))
		die("pipe");
	child = fork();
	if (child < 0)
		die("fork");
	if (child) {
		close(ready[1]);
		if (read(ready[0], &ok, 1) != 1)
			return 2;
		printf("%d\n", child);
		return 0;
	}
	setsid();
	sigaction(SIGTERM, &action, NULL);
	prepare(argv[1], argv[2]);
	for (int fd = 0, null = open("/dev/null", O_RDWR); fd < 3; fd++)
		dup2(null, fd);
	if (write(ready[1], &ok, 1) != 1)
		return 2;
	io_work(&io);
	return 0;
}
