/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Linux keeps its references in variables of drivers/xen/grant-table.c, which nothing shows.
 * /proc/kallsyms has their addresses and /proc/kcore, an ELF file, the memory there. Nothing is
 * locked: what was read is taken if the count of free references is that of the bits in the map,
 * before and after.
 *
 * gnttab_free_bitmap came with Linux 5.19, deferred_count and leaked_count with 6.1's stable
 * updates; a kernel without one of them has its line left out.
 */
#include "account.h"

#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define KEPT "/run/emu-grants.symbols" /* to read all of kallsyms takes seconds under emulation */
#define RESERVED 8 /* GNTTAB_NR_RESERVED_ENTRIES: never in the allocator */
#define TRIES 50
#define DEFERRED_MAX 65536

/* struct deferred_entry: next, prev, ref */
struct deferred {
	uint64_t next, prev;
	uint32_t ref;
};

enum { FREE_COUNT, SIZE, FRAMES, BITMAP, DEFERRED, LEAKED, SYMBOLS };

static const char *const names[SYMBOLS] = {
	"gnttab_free_count", "gnttab_size", "nr_grant_frames",
	"gnttab_free_bitmap", "deferred_list", "leaked_count",
};
static uint64_t address[SYMBOLS];
static int kcore;

static int die(const char *what)
{
	fprintf(stderr, "emu-grants: %s: %s\n", what, strerror(errno));
	return 1;
}

static bool kept_symbols(void)
{
	FILE *file = fopen(KEPT, "re");
	bool whole = file && fread(address, sizeof address, 1, file) == 1;

	if (file)
		fclose(file);
	return whole;
}

static int keep_symbols(void)
{
	char path[] = KEPT ".XXXXXX";
	int fd = mkostemp(path, O_CLOEXEC);

	if (fd < 0)
		return die(path);
	if (write(fd, address, sizeof address) != sizeof address || close(fd) || rename(path, KEPT))
		return die(KEPT);
	return 0;
}

static int find_symbols(void)
{
	FILE *file = fopen("/proc/kallsyms", "re");
	char line[256], name[128];
	unsigned long long at;

	if (!file)
		return die("/proc/kallsyms");
	while (fgets(line, sizeof line, file)) {
		/* A module's symbols come after the kernel's own, with its name behind. */
		if (strchr(line, '['))
			break;
		for (int i = 0; i < SYMBOLS; i++)
			if (!address[i] && strstr(line, names[i]) &&
			    sscanf(line, "%llx %*c %127s", &at, name) == 2 &&
			    !strcmp(name, names[i]))
				address[i] = at;
	}
	fclose(file);
	for (int i = 0; i <= FRAMES; i++)
		if (!address[i]) {
			fprintf(stderr, "emu-grants: /proc/kallsyms tells no address of %s\n",
				names[i]);
			return 1;
		}
	return keep_symbols();
}

/* Whether so many bytes at a kernel address could be read. */
static bool peek(uint64_t at, void *into, size_t size)
{
	static Elf64_Ehdr head;
	static Elf64_Phdr *segments;

	if (!segments) {
		if (pread(kcore, &head, sizeof head, 0) != sizeof head)
			return false;
		size_t bytes = (size_t)head.e_phnum * sizeof *segments;

		segments = malloc(bytes);
		if (!segments || pread(kcore, segments, bytes, head.e_phoff) != (ssize_t)bytes)
			return false;
	}
	for (int i = 0; i < head.e_phnum; i++) {
		const Elf64_Phdr *segment = &segments[i];

		if (segment->p_type == PT_LOAD && at >= segment->p_vaddr &&
		    at - segment->p_vaddr + size <= segment->p_memsz)
			return pread(kcore, into, size, segment->p_offset + at - segment->p_vaddr)
			       == (ssize_t)size;
	}
	errno = EFAULT;
	return false;
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

/* The references that are taken, as "first-last" of each run. */
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

/* A list that changes under us leads nowhere, or never back to its head: false. */
static bool read_deferred(uint32_t *refs, uint32_t *count)
{
	struct deferred entry;
	uint64_t at;

	*count = 0;
	if (!peek(address[DEFERRED], &at, sizeof at))
		return false;
	for (uint64_t before = address[DEFERRED]; at != address[DEFERRED]; before = at, at = entry.next) {
		if (*count == DEFERRED_MAX || !peek(at, &entry, sizeof entry) ||
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

	if (!peek(address[FREE_COUNT], &free_count, 4) || !peek(address[SIZE], &size, 4) ||
	    !peek(address[FRAMES], &frames, 4))
		return false;
	if (address[BITMAP]) {
		map = calloc(1, (size_t)size / 8 + 8);
		if (!map || !peek(address[BITMAP], &map_at, 8) ||
		    !peek(map_at, map, ((size_t)size + 7) / 8) || count_bits(map, size) != free_count)
			goto out;
	}
	if (address[DEFERRED] && !read_deferred(refs, &deferred))
		goto out;
	if (!peek(address[FREE_COUNT], &again, 4) || again != free_count)
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
	if (address[LEAKED] && peek(address[LEAKED], &leaked, 8))
		printf("leaked %lu\n", (unsigned long)leaked);
out:
	free(map);
	return good;
}

int print_account(void)
{
	kcore = open("/proc/kcore", O_RDONLY | O_CLOEXEC);
	if (kcore < 0)
		return die("/proc/kcore");
	if (!kept_symbols() && find_symbols())
		return 1;
	for (int tries = 0; tries < TRIES; tries++) {
		if (print_once())
			return fflush(stdout) ? die("standard output") : 0;
		usleep(1000);
	}
	fprintf(stderr, "emu-grants: no two readings in %d of the references agreed\n", TRIES);
	return 1;
}
