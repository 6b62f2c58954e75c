/* SPDX-License-Identifier: GPL-2.0-or-later */
/* emu-io's account, and what it asks for; emu/xen/account.py reads the account. */
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
	uint32_t written;   /* the generation last asked for */
	uint8_t busy, sure; /* sure: that generation is what a read has to find */
};

struct request {
	struct iocb iocb;
	uint8_t *buffer;
	uint32_t block;
	uint64_t asked; /* the number of its event */
	struct request *next;
};

/* One run: what main() has set up and io_work() works on. */
struct io {
	struct account *account;
	struct event *events;
	struct block *blocks;
	struct request *requests, *idle;
	uint8_t *expected;
	aio_context_t context;
	int device;
	unsigned outstanding, percent_reads, rate; /* rate: a second; 0: as many as go */
	uint64_t draws, began;
};

extern volatile sig_atomic_t io_stop;

uint64_t io_now_ms(void);
/* Until told to stop, and nothing is in flight. The account says how it ended. */
void io_work(struct io *io);

#endif
