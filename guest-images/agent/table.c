/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The frames of a grant table are mapped with privcmd's "map resource" (Linux'
 * include/uapi/xen/privcmd.h, Xen's XENMEM_acquire_resource). Query their number first:
 * mapping a frame past the last makes Xen grow the table. Layouts and numbers: Xen's
 * public/grant_table.h and public/memory.h.
 */
#include "table.h"
#include "die.h"
#include "privcmd.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#define PAGE 4096UL
#define AT_ONCE 32 /* frames: Xen before 4.15 maps no more (E2BIG) */

#define HYPERVISOR_GRANT_TABLE_OP 20
#define GNTTABOP_QUERY_SIZE 6
#define GNTTABOP_GET_VERSION 10
#define XENMEM_RESOURCE_GRANT_TABLE 1
#define RESOURCE_SHARED 0
#define RESOURCE_STATUS 1

#define GTF_TYPE_MASK 3
#define GTF_IN_USE 0x18 /* reading, writing: Xen sets them, in table or in status frames */

struct query_size {
	uint16_t dom;
	uint32_t nr_frames, max_nr_frames;
	int16_t status;
};

struct get_version {
	uint16_t dom, pad;
	uint32_t version;
};

struct entry_v1 {
	uint16_t flags, domid;
	uint32_t frame;
};

struct entry_v2 {
	uint16_t flags, domid;
	uint32_t pad;
	uint64_t frame;
};

struct map_resource {
	uint16_t dom;
	uint32_t type, id, idx;
	uint64_t num, addr;
};

#define IOCTL_MAP_RESOURCE _IOC(_IOC_NONE, 'P', 7, sizeof(struct map_resource))

_Static_assert(sizeof(struct entry_v1) == 8, "an entry of version 1");
_Static_assert(sizeof(struct entry_v2) == 16, "an entry of version 2");

static int grant_op(int privcmd, unsigned op, void *argument)
{
	return hypercall(privcmd, HYPERVISOR_GRANT_TABLE_OP, op, (uintptr_t)argument, 1);
}

static volatile void *map(int privcmd, uint16_t domid, uint32_t id, uint64_t frames)
{
	/* The kernel takes a mapping of privcmd as a whole: reserve the room, then map parts of it. */
	char *at = mmap(NULL, frames * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (at == MAP_FAILED)
		return NULL;
	for (uint64_t first = 0; first < frames; first += AT_ONCE) {
		uint64_t count = frames - first < AT_ONCE ? frames - first : AT_ONCE;
		char *part = at + first * PAGE;
		struct map_resource request = {
			.dom = domid,
			.type = XENMEM_RESOURCE_GRANT_TABLE,
			.id = id,
			.idx = (uint32_t)first,
			.num = count,
			.addr = (uintptr_t)part,
		};

		if (mmap(part, count * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
			 privcmd, 0) == MAP_FAILED ||
		    ioctl(privcmd, IOCTL_MAP_RESOURCE, &request))
			return NULL;
	}
	return at;
}

static void print_entry(unsigned long ref, unsigned flags, unsigned domid, uint64_t frame)
{
	if (flags & GTF_TYPE_MASK)
		printf("entry %lu %#x %u %#lx\n", ref, flags, domid, (unsigned long)frame);
}

static void print_v1(const volatile struct entry_v1 *table, unsigned long entries)
{
	for (unsigned long ref = 0; ref < entries; ref++)
		print_entry(ref, table[ref].flags, table[ref].domid, table[ref].frame);
}

/* Version 2 has the in-use bits in a table of its own; a reference ended while in use has only those. */
static void print_v2(const volatile struct entry_v2 *table, const volatile uint16_t *status,
		     unsigned long entries)
{
	for (unsigned long ref = 0; ref < entries; ref++) {
		unsigned flags = table[ref].flags | (status[ref] & GTF_IN_USE);

		if (flags & GTF_IN_USE && !(flags & GTF_TYPE_MASK))
			printf("entry %lu %#x %u %#lx\n", ref, flags, table[ref].domid,
			       (unsigned long)table[ref].frame);
		else
			print_entry(ref, flags, table[ref].domid, table[ref].frame);
	}
}

int print_table(const char *name)
{
	char *end;
	unsigned long number = strtoul(name, &end, 10);
	uint16_t domid = (uint16_t)number;
	int privcmd = open_privcmd();
	struct {
		struct query_size size;
		struct get_version version;
	} *ask;

	if (*end || end == name || number > 0x7fef) {
		fprintf(stderr, "emu-grants: %s is not a domain id\n", name);
		return 2;
	}
	if (privcmd < 0)
		return die("/dev/xen/privcmd");
	ask = locked_memory(sizeof(*ask));
	if (!ask)
		return die("memory for a hypercall");
	ask->size.dom = domid;
	ask->version.dom = domid;
	if (grant_op(privcmd, GNTTABOP_QUERY_SIZE, &ask->size))
		return die("GNTTABOP_query_size");
	if (ask->size.status) {
		fprintf(stderr, "emu-grants: GNTTABOP_query_size of domain %u: status %d\n", domid,
			ask->size.status);
		return 3;
	}
	if (grant_op(privcmd, GNTTABOP_GET_VERSION, &ask->version))
		return die("GNTTABOP_get_version");

	unsigned version = ask->version.version;
	uint64_t frames = ask->size.nr_frames;

	printf("version %u\nframes %lu %u\n", version, (unsigned long)frames,
	       ask->size.max_nr_frames);
	if (!frames)
		return 0;

	volatile void *shared = map(privcmd, domid, RESOURCE_SHARED, frames);

	if (!shared && errno == EBUSY) /* Xen: the domain is dying */
		return 3;
	if (!shared)
		return die("mapping the grant table");
	if (version != 2) {
		print_v1(shared, frames * PAGE / sizeof(struct entry_v1));
	} else {
		unsigned long entries = frames * PAGE / sizeof(struct entry_v2);
		uint64_t pages = (entries * sizeof(uint16_t) + PAGE - 1) / PAGE;
		volatile void *status = map(privcmd, domid, RESOURCE_STATUS, pages);

		if (!status)
			return die("mapping the grant table's status");
		print_v2(shared, status, entries);
	}
	return fflush(stdout) ? die("standard output") : 0;
}
