// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Plays tcmu-runner's side of its plugin interface for the LUN server, in a test's process: one
 * caller at a time for a device, as its command thread is, and answers from any thread.
 */
#include <dlfcn.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "libtcmu.h"
#include "tcmu-runner.h"

struct tcmu_device {
	char config[512], name[32];
	uint32_t sector;
	uint64_t blocks;
	void *private;
	int blocked;
};

struct command {
	struct tcmur_cmd command; /* first: what comes back */
	struct tcmulib_cmd lib;
	uint8_t cdb[16];
	struct iovec iov[1024];
	int answered, status;
};

static struct tcmur_handler *handler;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t answered = PTHREAD_COND_INITIALIZER;
static struct tcmu_device *devices[64];
static char said[4096];

int tcmur_register_handler(struct tcmur_handler *it)
{
	handler = it;
	return it->init ? it->init() : 0;
}

void tcmur_dev_set_private(struct tcmu_device *dev, void *private) { dev->private = private; }
void *tcmur_dev_get_private(struct tcmu_device *dev) { return dev->private; }
char *tcmu_dev_get_cfgstring(struct tcmu_device *dev) { return dev->config; }
uint32_t tcmu_dev_get_block_size(struct tcmu_device *dev) { return dev->sector; }
uint64_t tcmu_dev_get_num_lbas(struct tcmu_device *dev) { return dev->blocks; }
void tcmu_dev_set_write_cache_enabled(struct tcmu_device *dev, bool is) { (void)dev, (void)is; }
const char *tcmu_dev_get_uio_name(struct tcmu_device *dev) { return dev->name; }

/* Of sysfs and configfs, what the server looks at: "…/uioN/name", "…/lunN/action/block_dev". */
char *tcmu_cfgfs_get_str(const char *path)
{
	const char *number = strstr(path, "/uio/uio");
	char *text = NULL;
	int n, is;

	if (number && sscanf(number, "/uio/uio%d/name", &n) == 1)
		return asprintf(&text, "tcm-user/0/lun%d/ledger", n) < 0 ? NULL : text;
	number = strstr(path, "/user_0/lun");
	if (!number || sscanf(number, "/user_0/lun%d/action/block_dev", &n) != 1)
		return NULL;
	pthread_mutex_lock(&lock);
	is = devices[n] && devices[n]->blocked;
	pthread_mutex_unlock(&lock);
	return strdup(is ? "blocked" : "unblocked");
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

static void say(const char *format, va_list arguments)
{
	vsnprintf(said, sizeof(said), format, arguments);
}

#define SAYS(name)                                                                                \
	void name(struct tcmu_device *dev, const char *function, int line, const char *format, ...) \
	{                                                                                         \
		va_list arguments;                                                                \
		(void)dev, (void)function, (void)line;                                            \
		va_start(arguments, format);                                                      \
		say(format, arguments);                                                           \
		va_end(arguments);                                                                \
	}
SAYS(tcmu_err_message)
SAYS(tcmu_warn_message)

void tcmur_cmd_complete(struct tcmu_device *dev, void *data, int status)
{
	struct command *command = data;

	(void)dev;
	pthread_mutex_lock(&lock);
	command->answered++;
	command->status = status;
	pthread_cond_broadcast(&answered);
	pthread_mutex_unlock(&lock);
}

/* For the test. */

const char *player_said(void) { return said; }

const char *player_load(const char *path)
{
	void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
	int (*init)(void) = library ? dlsym(library, "handler_init") : NULL;

	if (!init)
		return dlerror();
	return init() ? said : NULL;
}

struct tcmu_device *player_open(int number, const char *config, uint32_t sector, uint64_t blocks)
{
	struct tcmu_device *dev = calloc(1, sizeof(*dev));

	snprintf(dev->config, sizeof(dev->config), "%s", config);
	snprintf(dev->name, sizeof(dev->name), "uio%d", number);
	dev->sector = sector;
	dev->blocks = blocks;
	devices[number] = dev;
	if (!handler->open(dev, false))
		return dev;
	devices[number] = NULL;
	free(dev);
	return NULL;
}

/* As tcmu-runner does on SIGTERM, but for waiting: that is the test's. */
void player_block(struct tcmu_device *dev)
{
	pthread_mutex_lock(&lock);
	dev->blocked = 1;
	pthread_mutex_unlock(&lock);
}

void player_close(int number)
{
	handler->close(devices[number]);
	free(devices[number]);
	devices[number] = NULL;
}

/* Data in vectors of odd lengths, as the kernel's may be. NULL: not taken. */
struct command *player_submit(struct tcmu_device *dev, int operation, uint64_t lba,
			      uint32_t blocks, char *data, uint32_t bytes, int fua)
{
	static const uint32_t pieces[] = {4096, 1000, 24, 3072, 8192, 1, 511};
	struct command *c = calloc(1, sizeof(*c));
	uint64_t offset = lba * dev->sector, length = (uint64_t)blocks * dev->sector;
	uint32_t at = 0;
	int n = 0, refused;

	while (at < bytes) {
		uint32_t piece = n == 1023 ? bytes - at : pieces[n % 7];

		piece = piece < bytes - at ? piece : bytes - at;
		c->iov[n].iov_base = data + at;
		c->iov[n++].iov_len = piece;
		at += piece;
	}
	c->cdb[0] = operation == 1 ? 0x28 : 0x2a;
	c->cdb[1] = fua ? 8 : 0;
	c->lib.cdb = c->cdb;
	c->command.lib_cmd = &c->lib;
	switch (operation) {
	case 1:
		refused = handler->read(dev, &c->command, c->iov, n, length, offset);
		break;
	case 2:
		refused = handler->write(dev, &c->command, c->iov, n, length, offset);
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
	return refused ? NULL : c;
}

/* The status; -1 where none comes in time, -2 where one came twice. */
int player_wait(struct command *c, int ms)
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
