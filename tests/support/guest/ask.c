// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * ask DEVICE [together] < REQUESTS: ask for what standard input has, a request a line, past the page
 * cache, and answer each in a line: "NUMBER RESULT", bytes or -errno, with " wrong ..." where a read
 * did not bring what it should have.
 *
 *   write OFFSET GENERATION PIECES [dsync]
 *   read OFFSET GENERATION PIECES
 *   fsync
 *   discard|secure|zero|punch OFFSET BYTES  (punch: fallocate(), zeros that may be unmapped)
 *   scsi-write OFFSET BYTES                 (SG_IO, zeros: the answer is the sense key)
 *   cdrom                                   (CDROM_GET_CAPABILITY)
 *
 * PIECES are MEMORY:BYTES,...: so many bytes each, MEMORY bytes from the beginning of a page on. A
 * sector has its number and its generation in it, again and again; in generation 0 it is zero. What
 * is around a piece in memory is not to be touched.
 *
 * One after the other, or (together) all reads and writes at once; then a failing io_submit() is an
 * answer, too. Asynchronous, because a task that sleeps in read() can't be frozen.
 */
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/aio_abi.h>
#include <linux/cdrom.h>
#include <linux/fs.h>
#include <scsi/sg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define SECTOR 512u
#define MARK 0x21736b61u
#define AROUND 0xa5
#define PAGE 4096u
#define MOST 512
#define PIECES 300

struct words {
	uint64_t sector;
	uint32_t generation, mark;
};

struct request {
	struct iocb iocb;
	struct iovec iov[PIECES];
	uint8_t *memory[PIECES];
	size_t room[PIECES];
	int pieces, reads;
	uint64_t offset;
	uint32_t generation;
	long result;
	char wrong[120];
};

static struct request requests[MOST];
static int count;

static void __attribute__((noreturn)) die(const char *what)
{
	perror(what);
	exit(2);
}

static void fill(uint8_t *sector, uint64_t number, uint32_t generation)
{
	struct words words = { number, generation, MARK };

	if (!generation)
		memset(sector, 0, SECTOR);
	else
		for (unsigned i = 0; i < SECTOR; i += sizeof(words))
			memcpy(sector + i, &words, sizeof(words));
}

/* "MEMORY:BYTES,..." */
static void lay_out(struct request *r, char *pieces)
{
	char *rest;
	uint64_t at = r->offset;

	for (char *one = strtok_r(pieces, ",", &rest); one; one = strtok_r(NULL, ",", &rest)) {
		size_t memory, bytes;
		int n = r->pieces++;

		if (n == PIECES || sscanf(one, "%zu:%zu", &memory, &bytes) != 2) {
			fprintf(stderr, "ask: invalid piece %s\n", one);
			exit(2);
		}
		r->room[n] = (memory + bytes + PAGE - 1) & ~(size_t)(PAGE - 1);
		if (posix_memalign((void **)&r->memory[n], PAGE, r->room[n]))
			die("memory");
		memset(r->memory[n], AROUND, r->room[n]);
		r->iov[n] = (struct iovec){ r->memory[n] + memory, bytes };
		for (size_t i = 0; !r->reads && i + SECTOR <= bytes; i += SECTOR, at += SECTOR)
			fill(r->memory[n] + memory + i, at / SECTOR, r->generation);
	}
}

/* What a read brought, and what it should not have touched. */
static void check(struct request *r)
{
	uint64_t at = r->offset;

	for (int n = 0; n < r->pieces && !*r->wrong; n++) {
		uint8_t *begin = r->iov[n].iov_base, *end = begin + r->iov[n].iov_len;

		for (uint8_t *p = r->memory[n]; p < r->memory[n] + r->room[n]; p++)
			if ((p < begin || p >= end) && *p != AROUND) {
				snprintf(r->wrong, sizeof(r->wrong),
					 "byte %td around piece %d was written to",
					 p - r->memory[n], n);
				return;
			}
		for (uint8_t *p = begin; r->result >= 0 && p < end; p += SECTOR, at += SECTOR) {
			uint8_t expected[SECTOR];
			struct words found;

			fill(expected, at / SECTOR, r->generation);
			if (!memcmp(p, expected, SECTOR))
				continue;
			memcpy(&found, p, sizeof(found));
			if (found.mark == MARK)
				snprintf(r->wrong, sizeof(r->wrong),
					 "sector %" PRIu64 " brought sector %" PRIu64
					 ", generation %u",
					 at / SECTOR, found.sector, found.generation);
			else
				snprintf(r->wrong, sizeof(r->wrong),
					 "sector %" PRIu64 " brought bytes %02x %02x %02x %02x",
					 at / SECTOR, p[0], p[1], p[2], p[3]);
			return;
		}
	}
}

static void submit(aio_context_t context, struct request *r)
{
	struct iocb *one = &r->iocb;

	r->result = -EINPROGRESS;
	if (syscall(SYS_io_submit, context, 1, &one) != 1)
		r->result = -errno;
}

static void reap(aio_context_t context, int submitted)
{
	while (submitted) {
		struct io_event event;
		long got = syscall(SYS_io_getevents, context, 1, 1, &event, NULL);

		if (got == 1) {
			requests[event.data].result = (long)event.res;
			submitted--;
		} else if (got >= 0 || errno != EINTR) {
			die("ask: io_getevents");
		}
	}
}

static void transfer(struct request *r, int device, const char *verb, uint64_t offset,
		     uint32_t generation, char *pieces, const char *flag)
{
	r->reads = *verb == 'r';
	r->offset = offset;
	r->generation = generation;
	lay_out(r, pieces);
	r->iocb = (struct iocb){
		.aio_data = count,
		.aio_lio_opcode = r->reads ? IOCB_CMD_PREADV : IOCB_CMD_PWRITEV,
		.aio_rw_flags = !strcmp(flag, "dsync") ? RWF_DSYNC : 0,
		.aio_fildes = device,
		.aio_buf = (uintptr_t)r->iov,
		.aio_nbytes = r->pieces,
		.aio_offset = offset,
	};
}

/* Past whatever the kernel knows of the disk: WRITE (10), SBC-3. */
static long scsi_write(int device, uint64_t offset, uint64_t bytes)
{
	uint32_t first = htobe32((uint32_t)(offset / SECTOR));
	uint16_t blocks = htobe16((uint16_t)(bytes / SECTOR));
	uint8_t cdb[10] = { 0x2a };
	uint8_t sense[32] = { 0 };
	void *zeros = calloc(1, bytes);
	struct sg_io_hdr io = {
		.interface_id = 'S',
		.dxfer_direction = SG_DXFER_TO_DEV,
		.cmd_len = sizeof(cdb),
		.cmdp = cdb,
		.mx_sb_len = sizeof(sense),
		.sbp = sense,
		.dxfer_len = (unsigned int)bytes,
		.dxferp = zeros,
		.timeout = 30000,
	};
	int failed;

	memcpy(cdb + 2, &first, sizeof(first));
	memcpy(cdb + 7, &blocks, sizeof(blocks));
	failed = ioctl(device, SG_IO, &io);
	free(zeros);
	return failed ? -errno : sense[2] & 0x0f;
}

static long control(int device, const char *verb, uint64_t offset, uint64_t bytes)
{
	uint64_t range[2] = { offset, bytes };
	int failed;

	if (!strcmp(verb, "fsync"))
		failed = fsync(device);
	else if (!strcmp(verb, "discard"))
		failed = ioctl(device, BLKDISCARD, range);
	else if (!strcmp(verb, "secure"))
		failed = ioctl(device, BLKSECDISCARD, range);
	else if (!strcmp(verb, "zero"))
		failed = ioctl(device, BLKZEROOUT, range);
	else if (!strcmp(verb, "punch"))
		failed = fallocate(device, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
				   (off_t)offset, (off_t)bytes);
	else if (!strcmp(verb, "scsi-write"))
		return scsi_write(device, offset, bytes);
	else if (!strcmp(verb, "cdrom"))
		failed = ioctl(device, CDROM_GET_CAPABILITY, 0);
	else
		return -ENOSYS;
	return failed ? -errno : 0;
}

static void answer(int number)
{
	struct request *r = &requests[number];

	if (r->reads)
		check(r);
	printf("%d %ld%s%s\n", number, r->result, *r->wrong ? " wrong " : "", r->wrong);
	fflush(stdout);
	for (int n = 0; n < r->pieces; n++)
		free(r->memory[n]);
}

int main(int argc, char **argv)
{
	int together = argc > 2 && !strcmp(argv[2], "together");
	int device = argc > 1 ? open(argv[1], O_RDWR | O_DIRECT) : -1;
	aio_context_t context = 0;
	static char line[16384];
	int submitted = 0;

	if (device < 0 && argc > 1)
		device = open(argv[1], O_RDONLY | O_DIRECT);
	if (device < 0 || syscall(SYS_io_setup, MOST, &context))
		die("ask");
	for (; fgets(line, sizeof(line), stdin); count++) {
		if (count == MOST) {
			fprintf(stderr, "ask: more than %d requests\n", MOST);
			return 2;
		}
		static char verb[16], pieces[16384], flag[16];
		uint64_t offset = 0, number = 0;
		struct request *r = &requests[count];

		*flag = *verb = *pieces = 0;
		sscanf(line, "%15s %" SCNu64 " %" SCNu64 " %16383s %15s", verb, &offset, &number,
		       pieces, flag);
		if (!strcmp(verb, "read") || !strcmp(verb, "write")) {
			transfer(r, device, verb, offset, (uint32_t)number, pieces, flag);
			submit(context, r);
			submitted += r->result == -EINPROGRESS;
		} else {
			r->result = control(device, verb, offset, number);
		}
		if (!together) {
			reap(context, submitted);
			submitted = 0;
			answer(count);
		}
	}
	if (together) {
		reap(context, submitted);
		for (int i = 0; i < count; i++)
			answer(i);
	}
	return 0;
}
