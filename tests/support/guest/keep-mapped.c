// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * keep-mapped DOMID REF: in dom0, map a page that a domU grants, and keep it mapped.
 *
 * For each line on standard input prints the page's checksum, and whether it changed since the last
 * line (checked every millisecond): "8f3a… same" or "8f3a… changed". Unmaps at the end of input.
 */
#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE 4096

/* Linux' include/uapi/xen/gntdev.h, which lacks the types for user space. */
struct map_grant_ref {
	uint32_t count, pad;
	uint64_t index;
	struct {
		uint32_t domid, ref;
	} refs[1];
};
#define IOCTL_MAP_GRANT_REF _IOC(_IOC_NONE, 'G', 0, sizeof(struct map_grant_ref))

static uint64_t sum(const volatile uint64_t *page)
{
	uint64_t hash = 0xcbf29ce484222325ull;

	for (unsigned i = 0; i < PAGE / sizeof(*page); i++)
		hash = (hash ^ page[i]) * 0x100000001b3ull;
	return hash;
}

int main(int argc, char **argv)
{
	struct map_grant_ref map = { .count = 1 };
	int gntdev = open("/dev/xen/gntdev", O_RDWR | O_CLOEXEC);
	struct pollfd input = { .fd = STDIN_FILENO, .events = POLLIN };
	char line[16];

	if (argc != 3) {
		fprintf(stderr, "usage: keep-mapped DOMID REF\n");
		return 2;
	}
	map.refs[0].domid = atoi(argv[1]);
	map.refs[0].ref = (uint32_t)strtoul(argv[2], NULL, 0);
	if (gntdev < 0 || ioctl(gntdev, IOCTL_MAP_GRANT_REF, &map)) {
		perror("keep-mapped: gntdev");
		return 1;
	}
	/* Read only: the page must not change by this mapping. */
	const volatile uint64_t *page = mmap(NULL, PAGE, PROT_READ, MAP_SHARED, gntdev, map.index);

	if (page == MAP_FAILED) {
		perror("keep-mapped: mmap");
		return 1;
	}
	uint64_t last = sum(page);
	int changed = 0;

	for (;;) {
		uint64_t now = sum(page);

		changed |= now != last;
		last = now;
		if (poll(&input, 1, 1) <= 0)
			continue;
		if (read(STDIN_FILENO, line, sizeof(line)) <= 0)
			return 0;
		printf("%016lx %s\n", (unsigned long)now, changed ? "changed" : "same");
		fflush(stdout);
		changed = 0;
	}
}
