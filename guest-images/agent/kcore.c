/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "kcore.h"

#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

const char *kcore_failed;

static bool fail(const char *what)
{
	kcore_failed = what;
	return false;
}

static bool read_kept(const char *path, uint64_t *address, int count)
{
	FILE *file = fopen(path, "re");
	bool whole = file && fread(address, sizeof *address, count, file) == (size_t)count;

	if (file)
		fclose(file);
	return whole;
}

static bool keep(const char *path, const uint64_t *address, int count)
{
	char other[128];
	ssize_t size = count * sizeof *address;
	int fd;

	snprintf(other, sizeof other, "%s.XXXXXX", path);
	fd = mkostemp(other, O_CLOEXEC);
	if (fd < 0 || write(fd, address, size) != size || close(fd) || rename(other, path))
		return fail(path);
	return true;
}

bool kcore_find(const char *kept, const char *const *names, uint64_t *address, int count)
{
	char line[256], name[128];
	unsigned long long at;
	FILE *file;

	if (read_kept(kept, address, count))
		return true;
	memset(address, 0, count * sizeof *address);
	file = fopen("/proc/kallsyms", "re");
	if (!file)
		return fail("/proc/kallsyms");
	while (fgets(line, sizeof line, file)) {
		/* Modules' symbols follow the kernel's, with "[name]" appended. */
		if (strchr(line, '['))
			break;
		for (int i = 0; i < count; i++)
			if (!address[i] && strstr(line, names[i]) &&
			    sscanf(line, "%llx %*c %127s", &at, name) == 2 &&
			    !strcmp(name, names[i]))
				address[i] = at;
	}
	fclose(file);
	return keep(kept, address, count);
}

/* False, with errno, unless all of it could be read. */
static bool read_at(int fd, void *into, size_t size, uint64_t offset)
{
	ssize_t got = pread(fd, into, size, (off_t)offset);

	if (got >= 0 && (size_t)got < size)
		errno = EIO;
	return got >= 0 && (size_t)got == size;
}

/* The program headers, to be freed; NULL, with errno, when they can't be read. */
static Elf64_Phdr *read_segments(int kcore, unsigned *count)
{
	Elf64_Phdr *segments;
	Elf64_Ehdr head;
	size_t bytes;

	if (!read_at(kcore, &head, sizeof head, 0))
		return NULL;
	bytes = (size_t)head.e_phnum * sizeof *segments;
	segments = malloc(bytes);
	if (segments && !read_at(kcore, segments, bytes, head.e_phoff)) {
		free(segments);
		return NULL;
	}
	*count = head.e_phnum;
	return segments;
}

bool kcore_peek(uint64_t at, void *into, size_t size)
{
	static int kcore = -1;
	static Elf64_Phdr *segments;
	static unsigned count;

	if (kcore < 0)
		kcore = open("/proc/kcore", O_RDONLY | O_CLOEXEC);
	if (kcore < 0)
		return fail("/proc/kcore");
	if (!segments)
		segments = read_segments(kcore, &count);
	if (!segments)
		return fail("/proc/kcore");
	for (unsigned i = 0; i < count; i++) {
		const Elf64_Phdr *segment = &segments[i];

		if (segment->p_type != PT_LOAD || at < segment->p_vaddr ||
		    at - segment->p_vaddr + size > segment->p_memsz)
			continue;
		if (read_at(kcore, into, size, segment->p_offset + at - segment->p_vaddr))
			return true;
		return fail("/proc/kcore");
	}
	errno = EFAULT;
	return fail("/proc/kcore");
}
