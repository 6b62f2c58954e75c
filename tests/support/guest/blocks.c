// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * blocks write|check DEVICE COUNT BYTES [sync]: write or check COUNT blocks of BYTES, each after a
 * gap of its size, all submitted at once. A block's number determines its data. Prints a line for
 * each completion; status 0 if all succeeded (and, with check, have the expected data).
 *
 * Asynchronous, because a task that sleeps in read() or write() can't be frozen, and the guest not
 * be saved, while a request is held.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static void fill(unsigned char *block, size_t bytes, unsigned number)
{
	uint64_t state = 0x9e3779b97f4a7c15ull * (number + 1);

	for (size_t i = 0; i < bytes; i += sizeof(state)) {
		state ^= state << 13;
		state ^= state >> 7;
		state ^= state << 17;
		memcpy(block + i, &state, sizeof(state));
	}
}

int main(int argc, char **argv)
{
	if (argc < 5) {
		fprintf(stderr, "usage: blocks write|check DEVICE COUNT BYTES [sync]\n");
		return 2;
	}
	int check = !strcmp(argv[1], "check");
	unsigned count = atoi(argv[3]);
	size_t bytes = strtoul(argv[4], NULL, 0);
	int device = open(argv[2], (check ? O_RDONLY : O_WRONLY) | O_DIRECT);
	struct iocb *requests = calloc(count, sizeof(*requests));
	unsigned char *expected = malloc(bytes);
	aio_context_t context = 0;
	int failed = 0;

	if (device < 0 || !requests || !expected || syscall(SYS_io_setup, count, &context)) {
		perror("blocks");
		return 2;
	}
	for (unsigned i = 0; i < count; i++) {
		void *block;

		if (posix_memalign(&block, 4096, bytes))
			return 2;
		if (!check)
			fill(block, bytes, i);
		requests[i] = (struct iocb){
			.aio_data = i,
			.aio_lio_opcode = check ? IOCB_CMD_PREAD : IOCB_CMD_PWRITE,
			.aio_rw_flags = argc > 5 ? RWF_DSYNC : 0,
			.aio_fildes = device,
			.aio_buf = (uintptr_t)block,
			.aio_nbytes = bytes,
			.aio_offset = 2ll * i * bytes,
		};
		struct iocb *one = &requests[i];

		if (syscall(SYS_io_submit, context, 1, &one) != 1) {
			perror("blocks: io_submit");
			return 2;
		}
	}
	for (unsigned ended = 0; ended < count; ended++) {
		struct io_event event;
		long got;

		do
			got = syscall(SYS_io_getevents, context, 1, 1, &event, NULL);
		while (got < 0 && errno == EINTR);
		if (got != 1) {
			perror("blocks: io_getevents");
			return 2;
		}
		int good = event.res == (int64_t)bytes;

		if (good && check) {
			fill(expected, bytes, (unsigned)event.data);
			good = !memcmp(expected, (void *)(uintptr_t)requests[event.data].aio_buf,
				       bytes);
		}
		printf("%llu %lld%s\n", (unsigned long long)event.data, (long long)event.res,
		       good ? "" : " wrong");
		fflush(stdout);
		failed |= !good;
	}
	return failed;
}
