/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * emu-memory — what this kernel has allocated, after it has settled, without disturbing it.
 *
 * One process does it all, and reads into memory that it allocates at the start: no pipe is filled
 * and no process starts or ends before the last file has been read. To settle:
 *
 *	- drop page, dentry and inode caches, several times: the first time leaves what was
 *	  used since the last one (drop_slab_node() in mm/vmscan.c, a referenced dentry);
 *	- wait for RCU grace periods; what kfree_rcu() batches for 5 s, the same shrinkers free at
 *	  once (kfree_rcu_shrink_scan() in kernel/rcu/tree.c);
 *	- shrink every slab cache: until then, and again after the next allocation, SLUB counts all
 *	  objects of a CPU's own slabs as used (count_partial() in mm/slub.c). The write to sysfs
 *	  itself allocates: the cache it uses comes last.
 *
 * Output: /proc/slabinfo, "@@", the number of vmalloc areas without those that are lazily freed,
 * "@@", the number of free unpopulated pages of drivers/xen/unpopulated-alloc.c (empty for a kernel
 * without them), "@@", and readings of /proc/zoneinfo and /proc/meminfo with "@" after each;
 * emu/xen/memory.py parses it.
 */
#include "kcore.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define ROUNDS 3
#define READINGS 3
#define GRACE 10000 /* µs; a grace period takes some 3 ticks of 4 ms */
#define GRACES 3    /* separate sleeps: one may pass while the guest has no CPU */
#define ROOM (1 << 20)

static char text[ROOM];
static size_t used;

static void die(const char *what)
{
	fprintf(stderr, "emu-memory: %s: %s\n", what, strerror(errno));
	exit(1);
}

static void append(const char *words)
{
	size_t length = strlen(words);

	if (used + length >= ROOM) {
		errno = ENOBUFS;
		die(words);
	}
	memcpy(text + used, words, length);
	used += length;
}

static int open_file(const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		die(path);
	return fd;
}

/* Append the rest of a file to the text. Returns where it starts there. */
static char *copy_rest(int fd)
{
	char *begin = text + used;
	ssize_t got;

	while ((got = read(fd, text + used, ROOM - 1 - used)) > 0)
		used += got;
	if (got < 0)
		die("read");
	text[used] = 0;
	return begin;
}

static char *copy(const char *path)
{
	int fd = open_file(path);
	char *begin = copy_rest(fd);

	close(fd);
	return begin;
}

static void put(const char *path, const char *word)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);

	if (fd < 0 || write(fd, word, strlen(word)) < 0)
		die(path);
	close(fd);
}

static void shrink(const char *cache)
{
	char path[512];

	snprintf(path, sizeof path, "/sys/kernel/slab/%s/shrink", cache);
	put(path, "1");
}

static void shrink_slabs(void)
{
	DIR *slabs = opendir("/sys/kernel/slab");
	struct dirent *cache;

	if (!slabs)
		die("/sys/kernel/slab");
	while ((cache = readdir(slabs))) {
		/* A link is an alias of a merged cache. */
		if (cache->d_name[0] != '.' && cache->d_type != DT_LNK)
			shrink(cache->d_name);
	}
	closedir(slabs);
	shrink("kmalloc-8"); /* for the copy of the "1" in kernfs_fop_write_iter() */
}

static void settle(void)
{
	for (int i = 0; i < ROUNDS; i++) {
		put("/proc/sys/vm/drop_caches", "3");
		for (int j = 0; j < GRACES; j++)
			usleep(GRACE);
	}
	shrink_slabs();
}

static void append_areas(void)
{
	size_t before = used;
	char count[32], *at = copy("/proc/vmallocinfo");
	int areas = 0;

	for (char *line = strtok(at, "\n"); line; line = strtok(NULL, "\n"))
		areas += !strstr(line, "unpurged");
	used = before;
	snprintf(count, sizeof count, "%d\n@@\n", areas);
	append(count);
}

static void append_unpopulated(void)
{
	static const char *const name = "list_count";
	uint64_t address;
	uint32_t count;
	char line[32];

	if (!kcore_find("/run/emu-memory.symbols", &name, &address, 1))
		die(kcore_failed);
	if (address) {
		if (!kcore_peek(address, &count, sizeof count))
			die(kcore_failed);
		snprintf(line, sizeof line, "%u\n", count);
		append(line);
	}
	append("@@\n");
}

int main(void)
{
	int slabs = open_file("/proc/slabinfo");

	memset(text, 1, sizeof text); /* allocates its pages */
	copy_rest(slabs);	      /* allocates the kernel's buffer for this file */
	used = 0;
	if (lseek(slabs, 0, SEEK_SET) < 0)
		die("/proc/slabinfo");
	settle();
	copy_rest(slabs);
	append("@@\n");
	append_areas();
	append_unpopulated();
	for (int i = 0; i < READINGS; i++) {
		/* Reading it folds per-CPU counters into the zones' numbers. */
		copy("/proc/sys/vm/stat_refresh");
		copy("/proc/zoneinfo");
		copy("/proc/meminfo");
		append("@\n");
	}
	for (size_t at = 0; at < used;) {
		ssize_t put = write(1, text + at, used - at);

		if (put < 0)
			die("standard output");
		at += put;
	}
	return 0;
}
