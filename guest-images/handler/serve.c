/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Serve a request: apply a rule, access the file, record. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tcmu-runner.h"

#include "../common/crc32.h"
#include "clock.h"
#include "lun.h"

#define VECTORS 64
#define CHUNK (64u * 1024)

typedef ssize_t (*vector_io)(int fd, const struct iovec *iov, int count, off_t at);

/* Move up to `length` bytes through any number of vectors. Returns the number moved. */
static uint64_t move(vector_io io, int fd, const struct iovec *iov, size_t count, uint64_t length,
		     off_t at)
{
	uint64_t done = 0;
	size_t skip = 0;

	while (done < length && count) {
		struct iovec some[VECTORS];
		uint64_t asked = 0;
		int n = 0;
		ssize_t moved;

		for (size_t i = 0; i < count && n < VECTORS && asked < length - done; i++) {
			size_t from = i ? 0 : skip, bytes = iov[i].iov_len - from;

			if (bytes > length - done - asked)
				bytes = length - done - asked;
			some[n].iov_base = (char *)iov[i].iov_base + from;
			some[n++].iov_len = bytes;
			asked += bytes;
		}
		moved = io(fd, some, n, at + done);
		if (moved < 0 && errno == EINTR)
			continue;
		if (moved <= 0)
			break;
		done += moved;
		skip += moved;
		while (count && skip >= iov->iov_len) {
			skip -= iov->iov_len;
			iov++;
			count--;
		}
	}
	return done;
}

/* The checksums of the sectors in `iov`; a sector may span vectors. */
static void sum_vectors(uint32_t *sums, uint32_t sector, const struct iovec *iov, size_t count)
{
	uint32_t crc = 0;
	size_t have = 0;

	for (size_t i = 0; i < count; i++) {
		const char *data = iov[i].iov_base;
		size_t left = iov[i].iov_len;

		while (left) {
			size_t bytes = sector - have < left ? sector - have : left;

			crc = crc32(crc, data, bytes);
			data += bytes;
			left -= bytes;
			have += bytes;
			if (have == sector) {
				*sums++ = crc;
				crc = 0;
				have = 0;
			}
		}
	}
}

static int sums_for(struct lun *lun, size_t blocks)
{
	uint32_t *more;

	if (blocks <= lun->sums_room)
		return 0;
	more = realloc(lun->sums, blocks * sizeof(*more));
	if (!more)
		return -1;
	lun->sums = more;
	lun->sums_room = blocks;
	return 0;
}

static int read_blocks(struct lun *lun, const struct request *r)
{
	uint64_t length = (uint64_t)r->blocks * lun->sector;
	uint64_t done = move(preadv, lun->fd, r->iov, r->iov_cnt, length, r->lba * lun->sector);

	return done == length ? TCMU_STS_OK : TCMU_STS_RD_ERR;
}

static int write_blocks(struct lun *lun, const struct request *r, uint32_t blocks)
{
	uint64_t length = (uint64_t)blocks * lun->sector;
	uint64_t done = move(pwritev, lun->fd, r->iov, r->iov_cnt, length, r->lba * lun->sector);

	return done == length ? TCMU_STS_OK : TCMU_STS_WR_ERR;
}

/* Write the same block repeatedly; NULL: zeros. */
static int repeat_block(struct lun *lun, uint64_t lba, uint64_t blocks, const char *block)
{
	uint64_t at = lba * lun->sector, left = blocks * lun->sector;
	char *chunk = calloc(1, CHUNK);
	int status = TCMU_STS_OK;

	if (!chunk)
		return TCMU_STS_NO_RESOURCE;
	for (uint32_t i = 0; block && i < CHUNK; i += lun->sector)
		memcpy(chunk + i, block, lun->sector);
	while (left && status == TCMU_STS_OK) {
		struct iovec iov = { chunk, left < CHUNK ? left : CHUNK };

		if (move(pwritev, lun->fd, &iov, 1, iov.iov_len, at) != iov.iov_len)
			status = TCMU_STS_WR_ERR;
		at += iov.iov_len;
		left -= iov.iov_len;
	}
	free(chunk);
	return status;
}

static int unmap_blocks(struct lun *lun, uint64_t lba, uint64_t blocks)
{
	if (!blocks || !fallocate(lun->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
				  lba * lun->sector, blocks * lun->sector))
		return TCMU_STS_OK;
	return errno == EOPNOTSUPP ? repeat_block(lun, lba, blocks, NULL) : TCMU_STS_WR_ERR;
}

static int change_blocks(struct lun *lun, const struct request *r, uint32_t blocks)
{
	char block[4096];

	switch (r->operation) {
	case OP_WRITE:
		return blocks ? write_blocks(lun, r, blocks) : TCMU_STS_OK;
	case OP_UNMAP:
		return unmap_blocks(lun, r->lba, blocks);
	default:
		tcmu_memcpy_from_iovec(block, lun->sector, r->iov, r->iov_cnt);
		return repeat_block(lun, r->lba, blocks, block);
	}
}

int lun_serve(struct lun *lun, struct request *r)
{
	struct record record = {
		.sequence = r->sequence,
		.started = r->started,
		.lba = r->lba,
		.blocks = r->blocks,
		.operation = r->operation,
	};
	int status = TCMU_STS_OK;
	struct rule rule;
	bool matched, fails;

	pthread_mutex_lock(&lun->applying);
	pthread_mutex_lock(&lun->lock);
	matched = rules_match(lun, r, &rule);
	pthread_mutex_unlock(&lun->lock);
	fails = matched && !rule.tear;

	if (r->operation == OP_READ || r->operation == OP_WRITE)
		record.sums = r->blocks;
	else if (r->operation == OP_WRITE_SAME)
		record.sums = 1;
	if (sums_for(lun, record.sums)) {
		status = TCMU_STS_NO_RESOURCE;
		record.sums = 0;
	} else if (r->operation == OP_READ) {
		status = fails ? TCMU_STS_HW_ERR : read_blocks(lun, r);
		if (status == TCMU_STS_OK)
			sum_vectors(lun->sums, lun->sector, r->iov, r->iov_cnt);
		else
			record.sums = 0;
	} else if (r->operation == OP_FLUSH) {
		status = fails ? TCMU_STS_HW_ERR : TCMU_STS_OK;
		if (!fails && fdatasync(lun->fd))
			status = TCMU_STS_WR_ERR;
	} else {
		if (record.sums)
			sum_vectors(lun->sums, lun->sector, r->iov, r->iov_cnt);
		record.written = r->blocks;
		if (fails)
			record.written = 0;
		else if (matched && rule.sectors < r->blocks)
			record.written = rule.sectors;
		status = change_blocks(lun, r, record.written);
		if (status == TCMU_STS_OK && matched && !rule.good)
			status = TCMU_STS_HW_ERR;
		if (status == TCMU_STS_OK && r->flags & WAS_FUA && fdatasync(lun->fd))
			status = TCMU_STS_WR_ERR;
	}
	if (matched)
		r->flags |= rule.tear ? WAS_TORN : WAS_FAILED;
	record.status = (uint8_t)status;
	record.flags = (uint16_t)r->flags;
	record.ended = clock_ns();

	pthread_mutex_lock(&lun->lock);
	records_add(&lun->records, &record, lun->sums);
	list_del(&r->outstanding);
	lun->count--;
	if (lun->waiters)
		pthread_cond_broadcast(&lun->counted);
	pthread_mutex_unlock(&lun->lock);
	pthread_mutex_unlock(&lun->applying);
	return status;
}

/* The checksums of the file's current content. */
int lun_sums(struct lun *lun, uint64_t first, uint32_t blocks, uint32_t *sums)
{
	struct iovec chunk = { malloc(CHUNK), 0 };
	int result = chunk.iov_base ? 0 : -1;

	pthread_mutex_lock(&lun->applying);
	while (blocks && !result) {
		uint32_t some = blocks < CHUNK / lun->sector ? blocks : CHUNK / lun->sector;

		chunk.iov_len = (size_t)some * lun->sector;
		if (move(preadv, lun->fd, &chunk, 1, chunk.iov_len, first * lun->sector) !=
		    chunk.iov_len)
			result = -1;
		else
			sum_vectors(sums, lun->sector, &chunk, 1);
		sums += some;
		first += some;
		blocks -= some;
	}
	pthread_mutex_unlock(&lun->applying);
	free(chunk.iov_base);
	return result;
}
