/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The state of Linux' grant reference allocator is in static variables of
 * drivers/xen/grant-table.c. They are read without locks: a reading is valid if the count of free
 * references equals the number of bits set in the map, before and after.
 *
 * gnttab_free_bitmap came with Linux 5.19, deferred_count and leaked_count with 6.1's stable
 * updates; the line of a missing one is left out. gnttab_size came with 5.19, too: before it a
 * table has as many references as its frames hold.
 */
#include "account.h"
#include "die.h"
#include "kcore.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define KEPT "/run/emu-grants.symbols"
#define PER_FRAME 512 /* references of version 1 */
#define RESERVED 8    /* GNTTAB_NR_RESERVED_ENTRIES: never in the allocator */
#define TRIES 50
#define DEFERRED_MAX 65536

/* struct deferred_entry: next, prev, ref */
struct deferred {
	uint64_t next, prev;
	uint32_t ref;
};

enum { FREE_COUNT, FRAMES, SIZE, BITMAP, DEFERRED, LEAKED, SYMBOLS };

static const char *const names[SYMBOLS] = {
	"gnttab_free_count",  "nr_grant_frames", "gnttab_size",
	"gnttab_free_bitmap", "deferred_list",	 "leaked_count",
};
static uint64_t address[SYMBOLS];

static int find_symbols(void)
{
	if (!kcore_find(KEPT, names, address, SYMBOLS))
		return die(kcore_failed);
	for (int i = 0; i <= FRAMES; i++)
		if (!address[i]) {
			fprintf(stderr, "emu-grants: no address of %s in /proc/kallsyms\n",
				names[i]);
			return 1;
		}
	return 0;
}

static bool read_size(uint32_t *size)
{
	if (address[SIZE])
		return kcore_peek(address[SIZE], size, sizeof *size);
	if (!kcore_peek(address[FRAMES], size, sizeof *size))
		return false;
	*size *= PER_FRAME;
	return true;
}

static bool is_set(const uint8_t *map, uint32_t bit)
{
	return map[bit / 8] >> bit % 8 & 1;
}

static uint32_t count_bits(const uint8_t *map, uint32_t size)
{
	uint32_t count = 0;

	for (uint32_t ref = 0; ref < size; ref++)
		count += is_set(map, ref);
	return count;
}

/* The references in use, as ranges "first-last". */
static void print_taken(const uint8_t *map, uint32_t size)
{
	printf("taken");
	for (uint32_t ref = RESERVED; ref < size; ref++) {
		uint32_t first = ref;

		while (ref < size && !is_set(map, ref))
			ref++;
		if (ref > first)
			printf(" %u-%u", first, ref - 1);
	}
	printf("\n");
}

/* False when the list changes meanwhile: a broken link, or no way back to its head. */
static bool read_deferred(uint32_t *refs, uint32_t *count)
{
	struct deferred entry;
	uint64_t at;

	*count = 0;
	if (!kcore_peek(address[DEFERRED], &at, sizeof at))
		return false;
	for (uint64_t before = address[DEFERRED]; at != address[DEFERRED];
	     before = at, at = entry.next) {
		if (*count == DEFERRED_MAX || !kcore_peek(at, &entry, sizeof entry) ||
		    entry.prev != before)
			return false;
		refs[(*count)++] = entry.ref;
	}
	return true;
}

static bool print_once(void)
{
	static uint32_t refs[DEFERRED_MAX];
	uint32_t free_count, again, size, frames, deferred = 0;
	uint64_t map_at, leaked;
	uint8_t *map = NULL;
	bool good = false;

	if (!kcore_peek(address[FREE_COUNT], &free_count, 4) ||
	    !kcore_peek(address[FRAMES], &frames, 4) || !read_size(&size))
		return false;
	if (address[BITMAP]) {
		map = calloc(1, (size_t)size / 8 + 8);
		if (!map || !kcore_peek(address[BITMAP], &map_at, 8) ||
		    !kcore_peek(map_at, map, ((size_t)size + 7) / 8) ||
		    count_bits(map, size) != free_count)
			goto out;
	}
	if (address[DEFERRED] && !read_deferred(refs, &deferred))
		goto out;
	if (!kcore_peek(address[FREE_COUNT], &again, 4) || again != free_count)
		goto out;
	good = true;
	printf("free %u\nsize %u\nframes %u\n", free_count, size, frames);
	if (map)
		print_taken(map, size);
	if (address[DEFERRED]) {
		printf("deferred");
		for (uint32_t i = 0; i < deferred; i++)
			printf(" %u", refs[i]);
		printf("\n");
	}
	if (address[LEAKED] && kcore_peek(address[LEAKED], &leaked, 8))
		printf("leaked %lu\n", (unsigned long)leaked);
out:
	free(map);
	return good;
}

int print_account(void)
{
	uint32_t size;

	if (find_symbols())
		return 1;
	if (!read_size(&size))
		return die(kcore_failed);
	for (int tries = 0; tries < TRIES; tries++) {
		if (print_once())
			return fflush(stdout) ? die("standard output") : 0;
		usleep(1000);
	}
	fprintf(stderr, "emu-grants: no consistent reading of the references in %d tries\n", TRIES);
	return 1;
}
