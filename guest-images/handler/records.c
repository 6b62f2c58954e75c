/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The bounded store of records. */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "lun.h"

/* Before each record in the ring: its bytes. 0: the next one is at the ring's beginning. */
struct header {
	uint64_t bytes;
};

int records_init(struct records *records, uint64_t size)
{
	memset(records, 0, sizeof(*records));
	records->ring = mmap(NULL, size, PROT_READ | PROT_WRITE,
			     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (records->ring == MAP_FAILED)
		return -1;
	records->size = size;
	records->first = records->next = 1;
	return 0;
}

void records_free(struct records *records)
{
	munmap(records->ring, records->size);
}

static struct header *header_at(const struct records *records, uint64_t at)
{
	return (struct header *)(records->ring + at % records->size);
}

/* Where the record is that `at` leads to: itself, or the ring's beginning. */
static uint64_t skip(const struct records *records, uint64_t at)
{
	uint64_t left = records->size - at % records->size;

	if (left < sizeof(struct header) || header_at(records, at)->bytes == 0)
		return at + left;
	return at;
}

static uint64_t after(const struct records *records, uint64_t at)
{
	return at + sizeof(struct header) + header_at(records, at)->bytes;
}

static void drop_oldest(struct records *records)
{
	records->tail = after(records, skip(records, records->tail));
	records->first++;
}

void records_add(struct records *records, const struct record *record, const uint32_t *sums)
{
	struct record fitting = *record;
	uint64_t room = sizeof(struct header) + sizeof(fitting);
	uint64_t bytes, left;

	/* One that would fill a quarter of the ring keeps no sums: it says so by their number. */
	if (fitting.sums > (records->size / 4 - room) / sizeof(*sums))
		fitting.sums = 0;
	bytes = (sizeof(fitting) + fitting.sums * sizeof(*sums) + 7) & ~7ull;
	left = records->size - records->head % records->size;
	room = sizeof(struct header) + bytes;
	if (left < room)
		room += left;
	while (records->first != records->next &&
	       records->head + room - records->tail > records->size)
		drop_oldest(records);
	if (records->first == records->next)
		records->tail = records->head;
	if (left < sizeof(struct header) + bytes) {
		if (left >= sizeof(struct header))
			header_at(records, records->head)->bytes = 0;
		records->head += left;
	}
	header_at(records, records->head)->bytes = bytes;
	memcpy(header_at(records, records->head) + 1, &fitting, sizeof(fitting));
	if (fitting.sums)
		memcpy((uint8_t *)(header_at(records, records->head) + 1) + sizeof(fitting), sums,
		       fitting.sums * sizeof(*sums));
	records->head += sizeof(struct header) + bytes;
	records->next++;
}

void records_forget(struct records *records)
{
	/* The pages go back: what a checkpoint holds is what was recorded since. */
	madvise(records->ring, records->size, MADV_DONTNEED);
	records->tail = records->head = 0;
	records->first = records->next;
}

int64_t records_copy(const struct records *records, uint64_t since, uint8_t **copy)
{
	uint64_t at = records->tail, length = 0, start;
	uint64_t number = records->first;

	for (; number < since && number < records->next; number++)
		at = after(records, skip(records, at));
	start = at;
	for (uint64_t n = number; n < records->next; n++) {
		at = skip(records, at);
		length += header_at(records, at)->bytes;
		at = after(records, at);
	}
	*copy = malloc(length + 1);
	if (!*copy)
		return -1;
	at = start;
	length = 0;
	for (uint64_t n = number; n < records->next; n++) {
		at = skip(records, at);
		memcpy(*copy + length, header_at(records, at) + 1, header_at(records, at)->bytes);
		length += header_at(records, at)->bytes;
		at = after(records, at);
	}
	return length;
}
