/* SPDX-License-Identifier: GPL-2.0-or-later */
/* emu-io's account and requests; emu/xen/account.py parses the account. */
#ifndef EMU_IO_H
#define EMU_IO_H

#include <linux/aio_abi.h>
#include <signal.h>
#include <stdint.h>

#define ACCOUNT_MAGIC 0x316f6975 /* "uio1" */

enum kind { VOID, WRITE, READ, ENDED, FOUND };
enum account_state { RUNNING = 1, STOPPED, FULL, BROKEN };

/* The account: this, then `events` of them. */
struct account {
	uint32_t magic, seed;
	uint32_t bytes, blocks;
	uint64_t start, stride;
	uint32_t state, in_flight;
	uint64_t events, room;
	uint64_t error; /* BROKEN: the errno of emu-io itself */
};

struct event {
	uint8_t kind, reserved;
	uint16_t tag;
	uint32_t block;
	uint32_t generation;
	int32_t result; /* ENDED: bytes or -errno. FOUND: the first wrong byte. Else ms. */
};

struct block {
	uint32_t written;   /* the generation last submitted */
	uint8_t busy, sure; /* sure: a read must return that generation */
};

struct request {
	struct iocb iocb;
	uint8_t *buffer;
	uint32_t block;
	uint64_t asked; /* the number of its event */
	struct request *next;
};

/* One run: set up by main(), used by io_work(). */
struct io {
	struct account *account;
	struct event *events;
	struct block *blocks;
	struct request *requests, *idle;
	uint8_t *expected;
	aio_context_t context;
	int device;
	unsigned outstanding, percent_reads, rate; /* rate: per second; 0: unlimited */
	uint64_t draws, began;
};

extern volatile sig_atomic_t io_stop;

uint64_t io_now_ms(void);
/* Returns when stopped and nothing is in flight. The account has the final state. */
void io_work(struct io *io);

#endif
