/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * `xl dmesg -c; xl debug-keys g; xl dmesg` in one small program: xl has some thirty libraries, and
 * under emulation each start of it takes a quarter of a second. Hypercall and layouts: Xen's
 * public/sysctl.h. Xen prints before the call that presses the key returns.
 */
#include "keys.h"
#include "die.h"
#include "privcmd.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>

#define HYPERVISOR_SYSCTL 35
#define SYSCTL_READCONSOLE 1
#define SYSCTL_DEBUG_KEYS 7
/* The interface has a version; Xen refuses any but its own (4.14 has 0x13, 4.17 0x15). */
#define OLDEST_INTERFACE 0x13
#define NEWEST_INTERFACE 0x20

#define ROOM 65536

struct readconsole {
	uint8_t clear, incremental, pad[2];
	uint32_t index; /* where to read on, if incremental; where the reading ended */
	uint64_t buffer;
	uint32_t count; /* bytes: of room, then of text */
};

struct debug_keys {
	uint64_t keys;
	uint32_t number;
};

struct sysctl {
	uint32_t command, interface;
	union {
		struct readconsole console;
		struct debug_keys keys;
		uint8_t pad[128];
	};
};

/* Read and written by Xen. */
static struct shared {
	struct sysctl call;
	char key;
	char text[ROOM];
} *shared;

static int privcmd;

static int ask(uint32_t command)
{
	static uint32_t interface = OLDEST_INTERFACE;
	int result;

	shared->call.command = command;
	do {
		shared->call.interface = interface;
		result = hypercall(privcmd, HYPERVISOR_SYSCTL, (uintptr_t)&shared->call, 0, 0);
	} while (result < 0 && errno == EACCES && interface++ < NEWEST_INTERFACE);
	return result;
}

/* Read from `index`, or from the ring's start. Returns the number of bytes, or -1. */
static int read_console(bool clear, const uint32_t *index)
{
	shared->call.console = (struct readconsole){
		.clear = clear,
		.incremental = index != NULL,
		.index = index ? *index : 0,
		.buffer = (uintptr_t)shared->text,
		.count = ROOM,
	};
	return ask(SYSCTL_READCONSOLE) < 0 ? -1 : (int)shared->call.console.count;
}

int print_mapped(void)
{
	int got;

	privcmd = open_privcmd();
	if (privcmd < 0)
		return die("/dev/xen/privcmd");
	shared = locked_memory(sizeof(*shared));
	if (!shared)
		return die("memory for a hypercall");
	while ((got = read_console(true, NULL)) > 0)
		;
	if (got < 0)
		return die("XEN_SYSCTL_readconsole");
	shared->key = 'g';
	shared->call.keys = (struct debug_keys){ (uintptr_t)&shared->key, 1 };
	if (ask(SYSCTL_DEBUG_KEYS) < 0)
		return die("XEN_SYSCTL_debug_keys");
	for (got = read_console(false, NULL); got > 0;) {
		uint32_t index = shared->call.console.index;

		fwrite(shared->text, 1, got, stdout);
		got = read_console(false, &index);
	}
	if (got < 0)
		return die("XEN_SYSCTL_readconsole");
	return fflush(stdout) ? die("standard output") : 0;
}
