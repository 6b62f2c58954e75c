// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Plays tcmu-runner's side of its plugin interface for the LUN server, which is linked into this
 * program: one caller at a time for a device, as its command thread is, and answers from any
 * thread. The test (lun_player.py) sends lines on standard input and reads one for each:
 *
 *	open DEVICE SECTOR BLOCKS CONFIG	"1", or "0" where the server refused
 *	submit DEVICE OPERATION LBA BLOCKS BYTES FUA TIMES, then BYTES of data
 *						the command's number, or "-1" where it was refused
 *	wait COMMAND MS				"STATUS BYTES", then BYTES that were read
 *	block DEVICE				"0"
 *	remove DEVICE				"0"; the first half of close: control_remove()
 *	close DEVICE				"0"
 *	logged					"0 BYTES", then the server's last error or warning
 *
 * Its first line is what handler_init() returned.
 */
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "libtcmu.h"
#include "tcmu-runner.h"

#include "control.h"
#include "lun.h"

#define DEVICES 256
#define COMMANDS 65536
#define ANSWER_MS 5000

struct tcmu_device {
	char config[512], name[32];
	uint32_t sector;
	uint64_t blocks;
	void *private;
	bool blocked, removed;
};

struct command {
	struct tcmur_cmd command; /* first: what comes back */
	struct tcmulib_cmd lib;
	uint8_t cdb[16];
	struct iovec *iov;
	char *data;
	uint32_t bytes;
	int operation, answered, status;
	struct tcmur_cmd whole; /* of an unmap: what tcmu-runner splits */
	struct unmap_state {
		pthread_mutex_t lock;
		unsigned int refcount;
		int status;
	} state;
};

int handler_init(void);

static struct tcmur_handler none, *handler = &none;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t answered = PTHREAD_COND_INITIALIZER;
static struct tcmu_device *devices[DEVICES];
static struct command *commands[COMMANDS];
static int n_commands;
static char logged[4096];

int tcmur_register_handler(struct tcmur_handler *it)
{
	handler = it;
	return 0;
}

void tcmur_dev_set_private(struct tcmu_device *dev, void *private)
{
	dev->private = private;
}

void *tcmur_dev_get_private(struct tcmu_device *dev)
{
	return dev->private;
}

char *tcmu_dev_get_cfgstring(struct tcmu_device *dev)
{
	return dev->config;
}

uint32_t tcmu_dev_get_block_size(struct tcmu_device *dev)
{
	return dev->sector;
}

uint64_t tcmu_dev_get_num_lbas(struct tcmu_device *dev)
{
	return dev->blocks;
}

void tcmu_dev_set_write_cache_enabled(struct tcmu_device *dev, bool enabled)
{
	(void)dev, (void)enabled;
}

void tcmu_dev_set_unmap_gran_align(struct tcmu_device *dev, uint32_t blocks)
{
	(void)dev, (void)blocks;
}

void tcmu_dev_set_unmap_enabled(struct tcmu_device *dev, bool enabled)
{
	(void)dev, (void)enabled;
}

const char *tcmu_dev_get_uio_name(struct tcmu_device *dev)
{
	return dev->name;
}

/* Of sysfs and configfs, what the server reads: "…/uioN/name", "…/lunN/action/block_dev". */
char *tcmu_cfgfs_get_str(const char *path)
{
	const char *number = strstr(path, "/uio/uio");
	char *text = NULL;
	bool blocked;
	int n;

	if (number && sscanf(number, "/uio/uio%d/name", &n) == 1)
		return asprintf(&text, "tcm-user/0/lun%d/ledger", n) < 0 ? NULL : text;
	number = strstr(path, "/user_0/lun");
	if (!number || sscanf(number, "/user_0/lun%d/action/block_dev", &n) != 1)
		return NULL;
	pthread_mutex_lock(&lock);
	blocked = devices[n] && devices[n]->blocked;
	pthread_mutex_unlock(&lock);
	return strdup(blocked ? "blocked" : "unblocked");
}

/* For commands that the player does not send. */
size_t tcmu_memcpy_into_iovec(struct iovec *iov, size_t iov_cnt, void *src, size_t len)
{
	(void)iov;
	(void)iov_cnt;
	(void)src;
	(void)len;
	abort();
}

size_t tcmu_memcpy_from_iovec(void *dest, size_t len, struct iovec *iov, size_t iov_cnt)
{
	size_t done = 0;

	for (size_t i = 0; i < iov_cnt && done < len; i++) {
		size_t some = iov[i].iov_len < len - done ? iov[i].iov_len : len - done;

		memcpy((char *)dest + done, iov[i].iov_base, some);
		done += some;
	}
	return done;
}

/* tcmu-runner's own writes to files and the system's log: errno is what they left. */
static void log_message(const char *format, va_list arguments)
{
	pthread_mutex_lock(&lock);
	vsnprintf(logged, sizeof(logged), format, arguments);
	pthread_mutex_unlock(&lock);
	errno = 0;
}

void tcmu_err_message(struct tcmu_device *dev, const char *function, int line, const char *format,
		      ...)
{
	va_list arguments;

	(void)dev, (void)function, (void)line;
	va_start(arguments, format);
	log_message(format, arguments);
	va_end(arguments);
}

void tcmu_warn_message(struct tcmu_device *dev, const char *function, int line, const char *format,
		       ...)
{
	va_list arguments;

	(void)dev, (void)function, (void)line;
	va_start(arguments, format);
	log_message(format, arguments);
	va_end(arguments);
}

void tcmur_cmd_complete(struct tcmu_device *dev, void *data, int status)
{
	struct command *command = data;

	(void)dev;
	/* As unmap_put() of tcmu-runner has it. */
	if (command->operation == 4)
		status = command->state.status ? status : 0;
	pthread_mutex_lock(&lock);
	command->answered++;
	command->status = status;
	pthread_cond_broadcast(&answered);
	pthread_mutex_unlock(&lock);
}

static bool open_device(int number, const char *config, uint32_t sector, uint64_t blocks)
{
	struct tcmu_device *dev = calloc(1, sizeof(*dev));

	if (!dev)
		abort();
	snprintf(dev->config, sizeof(dev->config), "%s", config);
	snprintf(dev->name, sizeof(dev->name), "uio%d", number);
	dev->sector = sector;
	dev->blocks = blocks;
	pthread_mutex_lock(&lock);
	devices[number] = dev;
	pthread_mutex_unlock(&lock);
	if (!handler->open(dev, false))
		return true;
	pthread_mutex_lock(&lock);
	devices[number] = NULL;
	pthread_mutex_unlock(&lock);
	free(dev);
	return false;
}

static struct tcmu_device *device(int number)
{
	if (number < 0 || number >= DEVICES || !devices[number])
		abort();
	return devices[number];
}

static void close_device(int number)
{
	struct tcmu_device *dev = device(number);

	if (dev->removed)
		lun_close(dev->private);
	else
		handler->close(dev);
	pthread_mutex_lock(&lock);
	devices[number] = NULL;
	pthread_mutex_unlock(&lock);
	free(dev);
}

static void free_command(struct command *c)
{
	free(c->iov);
	free(c);
}

/* Data in vectors of odd lengths, as the kernel's may be; none is longer than it says. */
static struct command *submit(struct tcmu_device *dev, int operation, uint64_t lba, uint64_t blocks,
			      char *data, uint32_t bytes, bool fua)
{
	static const uint32_t pieces[] = { 4096, 1000, 24, 3072, 8192, 1, 511 };
	struct command *c = calloc(1, sizeof(*c));
	size_t length = blocks * dev->sector, n = 0;
	uint64_t offset = lba * dev->sector;
	int refused;

	if (!c || !(c->iov = calloc(bytes / 100 + 8, sizeof(*c->iov))))
		abort();
	for (uint32_t at = 0; at < bytes; n++) {
		uint32_t piece = pieces[n % 7] < bytes - at ? pieces[n % 7] : bytes - at;

		c->iov[n] = (struct iovec){ data + at, piece };
		at += piece;
	}
	c->data = data;
	c->bytes = bytes;
	c->operation = operation;
	c->cdb[0] = operation == 1 ? 0x28 : 0x2a;
	c->cdb[1] = fua ? 8 : 0;
	c->lib.cdb = c->cdb;
	c->command.lib_cmd = &c->lib;
	c->lib.hm_private = &c->whole;
	c->whole.cmd_state = &c->state;
	pthread_mutex_init(&c->state.lock, NULL);
	switch (operation) {
	case 1:
		refused = handler->read(dev, &c->command, c->iov, n, length, (off_t)offset);
		break;
	case 2:
		refused = handler->write(dev, &c->command, c->iov, n, length, (off_t)offset);
		break;
	case 3:
		refused = handler->flush(dev, &c->command);
		break;
	case 4:
		refused = handler->unmap(dev, &c->command, offset, length);
		break;
	default:
		refused = handler->writesame(dev, &c->command, offset, length, c->iov, n);
	}
	if (!refused)
		return c;
	free_command(c);
	return NULL;
}

/* The status; -1 where none comes in time, -2 where one came twice. */
static int wait_for(const struct command *c, int ms)
{
	struct timespec until;
	int status = -1;

	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_sec += ms / 1000;
	until.tv_nsec += ms % 1000 * 1000000l;
	if (until.tv_nsec >= 1000000000) {
		until.tv_sec++;
		until.tv_nsec -= 1000000000;
	}
	pthread_mutex_lock(&lock);
	while (!c->answered && !pthread_cond_timedwait(&answered, &lock, &until))
		;
	if (c->answered)
		status = c->answered == 1 ? c->status : -2;
	pthread_mutex_unlock(&lock);
	return status;
}

static int submit_line(const char *line)
{
	int number, operation, fua, times;
	struct command *c = NULL;
	uint64_t lba, blocks;
	uint32_t bytes;
	char *data;

	if (sscanf(line, "submit %d %d %" SCNu64 " %" SCNu64 " %" SCNu32 " %d %d", &number,
		   &operation, &lba, &blocks, &bytes, &fua, &times) != 7 ||
	    times < 1)
		abort();
	data = malloc(bytes ? bytes : 1);
	if (!data || fread(data, 1, bytes, stdin) != bytes || n_commands == COMMANDS)
		abort();
	/* All but the last have been answered when the next is sent. */
	for (int i = 0; i < times; i++) {
		if (c && wait_for(c, ANSWER_MS) == -1)
			abort();
		if (c)
			free_command(c);
		c = submit(device(number), operation, lba, blocks, data, bytes, fua);
		if (!c) {
			free(data);
			return -1;
		}
	}
	commands[n_commands] = c;
	return n_commands++;
}

static void wait_line(const char *line)
{
	const struct command *c;
	int number, ms, status;

	if (sscanf(line, "wait %d %d", &number, &ms) != 2)
		abort();
	if (number < 0 || number >= n_commands)
		abort();
	c = commands[number];
	status = wait_for(c, ms);
	if (c->operation == 1 && status == 0) {
		printf("%d %" PRIu32 "\n", status, c->bytes);
		fwrite(c->data, 1, c->bytes, stdout);
	} else {
		printf("%d 0\n", status);
	}
}

static void obey(const char *line)
{
	char config[512], log[sizeof(logged)];
	uint32_t sector;
	uint64_t blocks;
	int number;

	if (sscanf(line, "open %d %" SCNu32 " %" SCNu64 " %511[^\n]", &number, &sector, &blocks,
		   config) == 4) {
		printf("%d\n", open_device(number, config, sector, blocks));
	} else if (!strncmp(line, "submit ", 7)) {
		printf("%d\n", submit_line(line));
	} else if (!strncmp(line, "wait ", 5)) {
		wait_line(line);
	} else if (sscanf(line, "block %d", &number) == 1) {
		/* As tcmu-runner does on SIGTERM, but for waiting: that is the test's. */
		pthread_mutex_lock(&lock);
		device(number)->blocked = true;
		pthread_mutex_unlock(&lock);
		printf("0\n");
	} else if (sscanf(line, "remove %d", &number) == 1) {
		control_remove(device(number)->private);
		device(number)->removed = true;
		printf("0\n");
	} else if (sscanf(line, "close %d", &number) == 1) {
		close_device(number);
		printf("0\n");
	} else if (!strncmp(line, "logged", 6)) {
		pthread_mutex_lock(&lock);
		memcpy(log, logged, sizeof(log));
		pthread_mutex_unlock(&lock);
		printf("0 %zu\n%s", strlen(log), log);
	} else {
		abort();
	}
	fflush(stdout);
}

int main(void)
{
	char line[1024];
	int failed = handler_init();

	printf("%d\n", failed);
	fflush(stdout);
	if (!failed && handler == &none)
		return 1;
	while (fgets(line, sizeof(line), stdin))
		obey(line);
	for (int i = 0; i < n_commands; i++) {
		free(commands[i]->data);
		free_command(commands[i]);
	}
	return 0;
}
