/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Requests come in, are served at once, or wait: until they are released, until their delay is
 * over, or until tcmu-runner is stopped.
 *
 * tcmu-runner calls us on its one thread for a LUN. What need not wait is served there: no
 * thread switch. What waits is served by the LUN's worker.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tcmu-runner.h"

#include "clock.h"
#include "lun.h"

#define RECORDS (16ull << 20)
#define LOOK_EVERY 100000000ull /* ns between two looks at whether the device is blocked */

/*
 * On SIGTERM tcmu-runner has the kernel block the device (no request comes any more) and waits,
 * for ever, until those it has are answered; only then is a handler told. So look at configfs.
 */
static bool blocked(const struct lun *lun)
{
	char *word = lun->block_path ? tcmu_cfgfs_get_str(lun->block_path) : NULL;
	bool is = word && !strncmp(word, "blocked", 7);

	free(word);
	return is;
}

/* Under the lock: the next request whose time has come. When there is none, when to look. */
static struct request *next_due(struct lun *lun, uint64_t *look)
{
	uint64_t at = clock_ns();
	struct request *r;

	*look = list_empty(&lun->waiting) ? UINT64_MAX : at + LOOK_EVERY;
	list_for_each(&lun->waiting, r, waiting) {
		if (lun_stopping(lun) || r->state == RELEASED ||
		    (r->state == DELAYED && r->due <= at))
			return r;
		if (r->state == DELAYED && r->due < *look)
			*look = r->due;
	}
	return NULL;
}

static void *work(void *argument)
{
	struct lun *lun = argument;

	pthread_mutex_lock(&lun->lock);
	while (!lun->closing || !list_empty(&lun->waiting)) {
		uint64_t look;
		struct request *r = next_due(lun, &look);

		if (r) {
			list_del(&r->waiting);
			if (r->state == HELD)
				lun->held--;
			if (r->state != RELEASED && lun_stopping(lun))
				r->flags |= WAS_STOPPED;
			r->state = RUNNING;
			pthread_mutex_unlock(&lun->lock);
			lun_serve(lun, r);
			free(r);
			pthread_mutex_lock(&lun->lock);
		} else if (look == UINT64_MAX) {
			pthread_cond_wait(&lun->changed, &lun->lock);
		} else {
			struct timespec until = clock_timespec(look);

			if (pthread_cond_timedwait(&lun->changed, &lun->lock, &until) ==
			    ETIMEDOUT) {
				bool is;

				pthread_mutex_unlock(&lun->lock);
				is = blocked(lun);
				pthread_mutex_lock(&lun->lock);
				lun->blocked = is;
			}
		}
	}
	pthread_mutex_unlock(&lun->lock);
	return NULL;
}

/* "tcm-user/0/lun0/…", the UIO device's name, tells where the LUN is in configfs. */
static char *blocked_path(struct tcmu_device *device)
{
	char *name, *path = NULL, hba[16], lun[128];

	if (asprintf(&path, "/sys/class/uio/%s/name", tcmu_dev_get_uio_name(device)) < 0)
		return NULL;
	name = tcmu_cfgfs_get_str(path);
	free(path);
	path = NULL;
	if (!name || strncmp(name, "tcm-user/", 9)) {
		free(name);
		return NULL;
	}
	char *second = strchr(name + 9, '/');
	char *third = second ? strchr(second + 1, '/') : NULL;

	if (third && second - name - 9 < (int)sizeof(hba) &&
	    third - second - 1 < (int)sizeof(lun)) {
		*second = *third = 0;
		if (asprintf(&path, CFGFS_CORE "/user_%s/%s/action/block_dev", name + 9,
			     second + 1) < 0)
			path = NULL;
	}
	free(name);
	return path;
}

static void name_lun(struct lun *lun, const char *path)
{
	const char *last = strrchr(path, '/');
	char *dot;

	snprintf(lun->name, sizeof(lun->name), "%s", last ? last + 1 : path);
	dot = strrchr(lun->name, '.');
	if (dot)
		*dot = 0;
}

struct lun *lun_new(struct tcmu_device *device, const char *path, uint32_t sector, uint64_t size)
{
	struct lun *lun = calloc(1, sizeof(*lun));
	pthread_condattr_t monotonic;
	sigset_t all, before;

	if (!lun)
		return NULL;
	lun->device = device;
	lun->sector = sector;
	lun->size = size;
	name_lun(lun, path);
	list_head_init(&lun->outstanding);
	list_head_init(&lun->waiting);
	lun->fd = open(path, O_RDWR | O_CLOEXEC);
	if (lun->fd < 0) {
		tcmu_err("could not open %s: %m\n", path);
		goto no_file;
	}
	if (records_init(&lun->records, RECORDS)) {
		tcmu_err("no memory for records: %m\n");
		goto no_records;
	}
	lun->block_path = blocked_path(device);
	if (!lun->block_path)
		tcmu_warn("%s has no place in configfs: held requests outlast SIGTERM\n", path);
	pthread_mutex_init(&lun->applying, NULL);
	pthread_mutex_init(&lun->lock, NULL);
	pthread_condattr_init(&monotonic);
	pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
	pthread_cond_init(&lun->changed, &monotonic);
	pthread_cond_init(&lun->counted, &monotonic);
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	int failed = pthread_create(&lun->worker, NULL, work, lun);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (!failed)
		return lun;
	free(lun->block_path);
	records_free(&lun->records);
no_records:
	close(lun->fd);
no_file:
	free(lun);
	return NULL;
}

void lun_close(struct lun *lun)
{
	pthread_mutex_lock(&lun->lock);
	lun->closing = true;
	pthread_cond_broadcast(&lun->changed);
	pthread_mutex_unlock(&lun->lock);
	pthread_join(lun->worker, NULL);
	if (fdatasync(lun->fd))
		tcmu_err("%s: sync: %m\n", lun->name);
	close(lun->fd);
	records_free(&lun->records);
	free(lun->block_path);
	free(lun->sums);
	free(lun);
}

/* Under the lock: whether it is served at once, held or delayed. */
static enum state admit(struct lun *lun, const struct request *r)
{
	unsigned kind = 1u << r->operation;

	if (lun_stopping(lun))
		return RUNNING;
	if (lun->hold & kind && lun->hold_seen++ >= lun->hold_from)
		return HELD;
	return lun->delay_kinds & kind ? DELAYED : RUNNING;
}

int lun_submit(struct lun *lun, const struct request *asked)
{
	struct request here = *asked, *r = &here;

	here.started = clock_ns();
	pthread_mutex_lock(&lun->lock);
	here.state = admit(lun, r);
	if (here.state != RUNNING) {
		r = malloc(sizeof(*r));
		if (!r) {
			pthread_mutex_unlock(&lun->lock);
			return TCMU_STS_NO_RESOURCE;
		}
		*r = here;
	}
	r->sequence = ++lun->arrived;
	list_add_tail(&lun->outstanding, &r->outstanding);
	lun->count++;
	if (r->state != RUNNING) {
		r->flags |= r->state == HELD ? WAS_HELD : WAS_DELAYED;
		r->due = r->started + lun->delay_ms * 1000000ull;
		lun->held += r->state == HELD;
		list_add_tail(&lun->waiting, &r->waiting);
		pthread_cond_signal(&lun->changed);
	}
	if (lun->waiters)
		pthread_cond_broadcast(&lun->counted);
	pthread_mutex_unlock(&lun->lock);
	if (r == &here)
		lun_serve(lun, r);
	return TCMU_STS_OK;
}

void lun_release(struct lun *lun, uint64_t count)
{
	struct request *r;

	list_for_each(&lun->waiting, r, waiting) {
		if (!count)
			break;
		if (r->state != HELD)
			continue;
		r->state = RELEASED;
		lun->held--;
		count--;
	}
	pthread_cond_broadcast(&lun->changed);
}
