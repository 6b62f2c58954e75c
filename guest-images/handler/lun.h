/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A LUN served from a file: requests, rules for them, records of them. */
#ifndef EMU_LUN_H
#define EMU_LUN_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "ccan/list/list.h"

struct tcmu_device;
struct tcmur_cmd;

enum operation { OP_READ = 1, OP_WRITE, OP_FLUSH, OP_UNMAP, OP_WRITE_SAME };

/* Sets of operations, for rules and holds. */
#define KINDS_READS (1u << OP_READ)
#define KINDS_WRITES (1u << OP_WRITE | 1u << OP_UNMAP | 1u << OP_WRITE_SAME)
#define KINDS_FLUSHES (1u << OP_FLUSH)
#define KINDS_UNMAPS (1u << OP_UNMAP)
#define KINDS_WRITE_SAMES (1u << OP_WRITE_SAME)
#define KINDS_ALL (KINDS_READS | KINDS_WRITES | KINDS_FLUSHES)

/* A request's and its record's `flags`. */
#define WAS_HELD 1u
#define WAS_DELAYED 2u
#define WAS_FAILED 4u /* by a rule, not by the file */
#define WAS_TORN 8u   /* only `written` sectors written to the file */
#define WAS_FUA 16u
#define WAS_STOPPED 32u /* held or delayed until tcmu-runner stopped */

/* A record as sent over the socket, little endian; `sums` CRC-32s of 4 bytes follow. */
struct record {
	uint64_t sequence;	 /* order of arrival, from 1 */
	uint64_t started, ended; /* ns of dom0's monotonic clock */
	uint64_t lba;
	uint32_t blocks;
	uint8_t operation;
	uint8_t status; /* 0: good */
	uint16_t flags;
	uint32_t written;
	uint32_t sums;
};

/*
 * The last records, in the order in which requests were served, in a ring of bytes. The oldest
 * are dropped to make room: `first` is the number of the oldest, `next` that of the next.
 */
struct records {
	uint8_t *ring;
	uint64_t size, head, tail; /* total bytes added and removed */
	uint64_t first, next;
};

int records_init(struct records *records, uint64_t size);
void records_free(struct records *records);
void records_add(struct records *records, const struct record *record, const uint32_t *sums);
void records_forget(struct records *records);
/* A copy (malloc) of all from number `since` on. Returns its length in bytes, or -1. */
int64_t records_copy(const struct records *records, uint64_t since, uint8_t **copy);

/* A fault for requests that touch blocks `first` to `last`. */
struct rule {
	unsigned kinds;
	uint64_t first, last;
	uint32_t per_million;
	uint64_t state; /* of the random generator for the rate */
	uint64_t times; /* 0: always */
	bool tear;
	bool good;	  /* status of a torn write */
	uint32_t sectors; /* of a torn write, written to the file */
};

#define RULES 16

enum state { RUNNING, HELD, DELAYED, RELEASED };

struct request {
	struct list_node outstanding, waiting;
	struct tcmur_cmd *command;
	enum operation operation;
	enum state state;
	uint64_t sequence, started, due;
	uint64_t lba;
	uint32_t blocks;
	unsigned flags;
	struct iovec *iov;
	size_t iov_cnt;
};

struct lun {
	struct list_node luns;
	struct tcmu_device *device;
	char name[64];
	char *block_path; /* of block_dev in configfs; NULL if unknown */
	int fd;
	uint32_t sector;
	unsigned physical_exponent; /* sectors in a physical one, as a power of two */
	uint64_t size;		    /* in sectors */
	bool full, write_protected;

	pthread_mutex_t applying; /* serializes file access; taken before `lock` */
	uint32_t *sums;
	size_t sums_room;

	pthread_mutex_t lock; /* all below */
	pthread_cond_t changed, counted;
	pthread_t worker;
	bool closing;
	bool removed; /* by control_remove() */
	bool blocked; /* in configfs, when last read by the worker */
	unsigned users, waiters;
	struct list_head outstanding, waiting;
	unsigned hold;		       /* set of operations; 0: none */
	uint64_t hold_from, hold_seen; /* the first `hold_from` pass */
	unsigned delay_kinds, delay_ms;
	struct rule rules[RULES];
	unsigned n_rules;
	uint64_t arrived, count, held;
	struct records records;
};

/* Under the lock: true when requests are no longer held or delayed. */
static inline bool lun_stopping(const struct lun *lun)
{
	return lun->removed || lun->blocked || lun->closing;
}

/* requests.c */
struct lun *lun_new(struct tcmu_device *device, const char *path, uint32_t sector, uint64_t size);
void lun_close(struct lun *lun); /* serve what waits, sync the file */
int lun_submit(struct lun *lun, const struct request *request);
void lun_release(struct lun *lun, uint64_t count); /* under the lock */

/* serve.c */
int lun_serve(struct lun *lun, struct request *request); /* its status */
int lun_sums(struct lun *lun, uint64_t first, uint32_t blocks, uint32_t *sums);

/* completion.c */
void lun_complete(struct lun *lun, struct request *request, int status);

/* rules.c */
bool rules_match(struct lun *lun, const struct request *request, struct rule *matched);

#endif
