// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * bare-page read|write|long DEVICE SECRET: in a domU, read or write the device's first sector, past the
 * page cache, at the third sector of a page whose every other byte spells SECRET (eight characters).
 * What is written, and has to be read, are 'W's; status 3 if other bytes came, or others than those
 * of the sector changed. "long": write 16 whole pages of 'W's.
 *
 * bare-page dirty SECRET: fill all memory that is free with SECRET, and give it back.
 *
 * bare-page find DOMID SECRET REF...: in dom0, map pages that a domU grants, and print for each
 * "REF N M": how often SECRET is in it, and how many of its bytes outside the third sector are
 * not zero.
 */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE 4096
#define SECTOR 512
#define PLACE (2 * SECTOR)
#define WORD 8
#define LONG (16 * PAGE)
#define LEFT (24 << 20) /* bytes of memory that `dirty` does not touch */

/* Linux' include/uapi/xen/gntdev.h, which lacks the types for user space. */
struct map_grant_ref {
	uint32_t count, pad;
	uint64_t index;
	struct {
		uint32_t domid, ref;
	} refs[1];
};
#define IOCTL_MAP_GRANT_REF _IOC(_IOC_NONE, 'G', 0, sizeof(struct map_grant_ref))

static int failed(const char *what)
{
	perror(what);
	return 1;
}

static void spell(unsigned char *where, size_t bytes, const char *secret)
{
	for (size_t at = 0; at < bytes; at += WORD)
		memcpy(where + at, secret, WORD);
}

static int transfer(int writes, const char *path, const char *secret)
{
	int device = open(path, (writes ? O_WRONLY : O_RDONLY) | O_DIRECT);
	unsigned char *page = aligned_alloc(PAGE, PAGE);
	static unsigned char want[PAGE];
	ssize_t done;

	if (device < 0 || !page)
		return failed(path);
	spell(want, PAGE, secret);
	memcpy(page, want, PAGE);
	memset(want + PLACE, 'W', SECTOR);
	if (writes)
		memcpy(page, want, PAGE);
	if (writes)
		done = pwrite(device, page + PLACE, SECTOR, 0);
	else
		done = pread(device, page + PLACE, SECTOR, 0);
	if (done != SECTOR)
		return failed("bare-page: transfer");
	return memcmp(page, want, PAGE) ? 3 : 0;
}

static int write_long(const char *path)
{
	int device = open(path, O_WRONLY | O_DIRECT);
	unsigned char *pages = aligned_alloc(PAGE, LONG);

	if (device < 0 || !pages)
		return failed(path);
	memset(pages, 'W', LONG);
	return pwrite(device, pages, LONG, 0) == LONG ? 0 : failed("bare-page: transfer");
}

static int dirty(const char *secret)
{
	size_t bytes = (size_t)sysconf(_SC_AVPHYS_PAGES) * PAGE;
	unsigned char *memory;

	bytes = bytes > LEFT ? bytes - LEFT : 0;
	memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED)
		return failed("bare-page: memory");
	spell(memory, bytes, secret);
	printf("%zu\n", bytes >> 20);
	return 0;
}

static int find(int gntdev, uint32_t domid, const char *secret, uint32_t ref)
{
	struct map_grant_ref map = { .count = 1, .refs = { { domid, ref } } };
	unsigned found = 0, set = 0;
	const unsigned char *page;

	if (ioctl(gntdev, IOCTL_MAP_GRANT_REF, &map))
		return failed("bare-page: gntdev");
	page = mmap(NULL, PAGE, PROT_READ, MAP_SHARED, gntdev, map.index);
	if (page == MAP_FAILED)
		return failed("bare-page: mmap");
	for (size_t at = 0; at < PAGE; at += WORD)
		found += !memcmp(page + at, secret, WORD);
	for (size_t at = 0; at < PAGE; at++)
		set += page[at] && (at < PLACE || at >= PLACE + SECTOR);
	printf("%u %u %u\n", ref, found, set);
	return munmap((void *)page, PAGE);
}

int main(int argc, char **argv)
{
	const char *verb = argc > 2 ? argv[1] : "";
	int gntdev, status = 0;

	if (argc == 4 && (!strcmp(verb, "read") || !strcmp(verb, "write")))
		return transfer(*verb == 'w', argv[2], argv[3]);
	if (argc == 4 && !strcmp(verb, "long"))
		return write_long(argv[2]);
	if (argc == 3 && !strcmp(verb, "dirty"))
		return dirty(argv[2]);
	if (argc < 5 || strcmp(verb, "find")) {
		fprintf(stderr, "usage: bare-page read|write|long DEVICE SECRET\n"
				"       bare-page dirty SECRET\n"
				"       bare-page find DOMID SECRET REF...\n");
		return 2;
	}
	gntdev = open("/dev/xen/gntdev", O_RDWR | O_CLOEXEC);
	if (gntdev < 0)
		return failed("bare-page: gntdev");
	for (int n = 4; n < argc && !status; n++)
		status = find(gntdev, (uint32_t)atoi(argv[2]), argv[3],
			      (uint32_t)strtoul(argv[n], NULL, 0));
	return status;
}
