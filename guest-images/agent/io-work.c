/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Submit requests, reap completions, log both. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "io.h"

#define UNIT 512u

volatile sig_atomic_t io_stop;

static void __attribute__((noreturn)) broken(struct io *io)
{
	io->account->error = errno;
	io->account->state = BROKEN;
	exit(2);
}

uint64_t io_now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000ull + ts.tv_nsec / 1000000;
}

static uint32_t draw(struct io *io, uint32_t below)
{
	io->draws ^= io->draws << 13;
	io->draws ^= io->draws >> 7;
	io->draws ^= io->draws << 17;
	return (uint32_t)(io->draws >> 32) % below;
}

/* Each 512 bytes: seed, block, generation and the index of the 512, repeated. */
static void fill(const struct account *account, uint8_t *buffer, uint32_t block,
		 uint32_t generation)
{
	for (uint32_t unit = 0; unit < account->bytes / UNIT; unit++) {
		uint32_t words[4] = { account->seed, block, generation, unit };

		for (unsigned i = 0; i < UNIT; i += sizeof(words), buffer += sizeof(words))
			memcpy(buffer, words, sizeof(words));
	}
}

static uint64_t put(struct io *io, enum kind kind, unsigned tag, uint32_t block,
		    uint32_t generation, int result)
{
	uint64_t number = io->account->events;

	io->events[number] = (struct event){ kind, 0, (uint16_t)tag, block, generation, result };
	io->account->events = number + 1;
	return number;
}

/* A block with no request in flight. There are more blocks than requests. */
static uint32_t pick(struct io *io)
{
	uint32_t block = draw(io, io->account->blocks);

	while (io->blocks[block].busy)
		block = (block + 1) % io->account->blocks;
	return block;
}

/* False when the request could not be queued. */
static int ask(struct io *io)
{
	struct account *account = io->account;
	struct request *r = io->idle;
	uint32_t at = pick(io);
	struct block *block = &io->blocks[at];
	int reads = block->sure && draw(io, 100) < io->percent_reads;
	unsigned tag = (unsigned)(r - io->requests);
	struct iocb *one = &r->iocb;

	r->block = at;
	if (!reads)
		fill(account, r->buffer, at, block->written + 1);
	r->iocb = (struct iocb){
		.aio_data = tag,
		.aio_lio_opcode = reads ? IOCB_CMD_PREAD : IOCB_CMD_PWRITE,
		/* Else io_submit() may sleep where it can't be frozen; the only one may wait. */
		.aio_rw_flags = account->in_flight ? RWF_NOWAIT : 0,
		.aio_fildes = io->device,
		.aio_buf = (uintptr_t)r->buffer,
		.aio_nbytes = account->bytes,
		.aio_offset = account->start + at * account->stride,
	};
	r->asked = put(io, reads ? READ : WRITE, tag, at, block->written + !reads,
		       (int)(io_now_ms() - io->began));
	if (syscall(SYS_io_submit, io->context, 1, &one) != 1) {
		account->events--;
		if (errno != EAGAIN && errno != EINTR)
			broken(io);
		return 0;
	}
	block->written += !reads;
	block->sure = 0;
	block->busy = 1;
	io->idle = r->next;
	account->in_flight++;
	return 1;
}

/* Log the first 512 bytes that differ from what is expected. */
static void log_found(struct io *io, unsigned tag, const uint8_t *buffer)
{
	for (uint32_t at = 0; at < io->account->bytes; at += UNIT)
		if (memcmp(buffer + at, io->expected + at, UNIT)) {
			uint32_t words[4];

			memcpy(words, buffer + at, sizeof(words));
			put(io, FOUND, tag, words[1], words[0] == io->account->seed ? words[2] : 0,
			    at);
			return;
		}
}

static int end(struct io *io, const struct io_event *event)
{
	struct account *account = io->account;
	struct request *r = &io->requests[event->data];
	struct block *block = &io->blocks[r->block];
	unsigned tag = (unsigned)event->data;
	int result = (int)event->res, reads = r->iocb.aio_lio_opcode == IOCB_CMD_PREAD;
	uint32_t generation = io->events[r->asked].generation;

	account->in_flight--;
	block->busy = 0;
	r->next = io->idle;
	io->idle = r;
	if (result == -EAGAIN) {
		/* Not submitted. A read changes nothing; a generation may be skipped. */
		io->events[r->asked].kind = VOID;
		block->sure = reads != 0;
		return 0;
	}
	if (result == (int)account->bytes && reads) {
		fill(account, io->expected, r->block, generation);
		if (memcmp(r->buffer, io->expected, account->bytes)) {
			log_found(io, tag, r->buffer);
			result = -EILSEQ;
		}
	}
	block->sure = result == (int)account->bytes;
	put(io, ENDED, tag, r->block, generation, result);
	return 1;
}

/* The maximum time to wait. Wake-ups are expensive in an emulated guest. */
static struct timespec *pause_of(const struct io *io, int asks, struct timespec *pause)
{
	uint64_t next, ms = 5, passed = io_now_ms() - io->began;

	if (asks && io->rate) {
		/* the first millisecond in which the next is due */
		next = ((io->account->events / 2 + 1) * 1000 + io->rate - 1) / io->rate;
		ms = next <= passed ? 1 : next - passed > 100 ? 100 : next - passed;
	} else if (io->account->in_flight) {
		return NULL; /* until a completion */
	}
	*pause = (struct timespec){ 0, ms * 1000000 };
	return pause;
}

void io_work(struct io *io)
{
	struct account *account = io->account;
	struct io_event done[64];
	int room = 1;

	/* Each request in flight may add three more events. */
	while (!io_stop || account->in_flight) {
		struct timespec pause, *wait;
		uint64_t due = UINT64_MAX;
		long got;

		if (io->rate)
			due = (io_now_ms() - io->began) * io->rate / 1000;
		while (room && !io_stop && io->idle && due * 2 > account->events) {
			if (account->events + 3 * io->outstanding + 3 > account->room) {
				account->state = FULL;
				io_stop = 1;
				break;
			}
			room = ask(io);
		}
		wait = pause_of(io, room && !io_stop && io->idle, &pause);
		got = syscall(SYS_io_getevents, io->context, account->in_flight ? 1 : 0, 64, done,
			      wait);
		if (got < 0 && errno != EINTR)
			broken(io);
		if (!got && !account->in_flight)
			nanosleep(wait, NULL);
		/* After a failed submission, try again after the next completion. */
		for (long i = 0; i < got; i++)
			room = end(io, &done[i]);
		if (!account->in_flight)
			room = 1;
	}
	if (account->state == RUNNING)
		account->state = STOPPED;
}
