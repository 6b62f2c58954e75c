/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Requests are served at once, or wait until they are released, their delay is over, or
 * tcmu-runner is stopped.
 *
 * tcmu-runner has one thread per LUN that calls us. Requests that need not wait are served in it,
 * without a thread switch; those that wait are served by the LUN's worker.
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
#define CHECK_NS 100000000ull /* ns between checks whether the device is blocked */

/*
 * On SIGTERM tcmu-runner makes the kernel block the device (no more requests) and waits, without
 * limit, until all requests are answered; only then it closes the device. So check configfs.
 */
static bool is_blocked(const struct lun *lun)
{
	char *word = lun->block_path ? tcmu_cfgfs_get_str(lun->block_path) : NULL;
	bool is = word && !strncmp(word, "blocked", 7);

	free(word);
	return is;
}

/* Under the lock: the next request that is due; or NULL, and when to check again. */
static struct request *next_due(struct lun *lun, uint64_t *check)
{
	uint64_t at = clock_ns();
	struct request *r;

	*check = list_empty(&lun->waiting) ? UINT64_MAX : at + CHECK_NS;
	list_for_each(&lun->waiting, r, waiting) {
		if (lun_stopping(lun) || r->state == RELEASED ||
		    (r->state == DELAYED && r->due <= at))
			return r;
		if (r->state == DELAYED && r->due < *check)
			*check = r->due;
	}
	return NULL;
}

static void *work(void *argument)
{
	struct lun *lun = argument;

	pthread_mutex_lock(&lun->lock);
	while (!lun->closing || !list_empty(&lun->waiting)) {
		uint64_t check;
		struct request *r = next_due(lun, &check);

		if (r) {
			list_del(&r->waiting);
			if (r->state == HELD)
				lun->held--;
			if (r->state != RELEASED && lun_stopping(lun))
				r->flags |= WAS_STOPPED;
			r->state = RUNNING;
			pthread_mutex_unlock(&lun->lock);
			lun_complete(lun, r, lun_serve(lun, r));
			free(r);
			pthread_mutex_lock(&lun->lock);
		} else if (check == UINT64_MAX) {
			pthread_cond_wait(&lun->changed, &lun->lock);
		} else {
			struct timespec until = clock_timespec(check);

			if (pthread_cond_timedwait(&lun->changed, &lun->lock, &until) ==
			    ETIMEDOUT) {
				bool blocked;

				pthread_mutex_unlock(&lun->lock);
				blocked = is_blocked(lun);
				pthread_mutex_lock(&lun->lock);
				lun->blocked = blocked;
			}
		}
	}
	pthread_mutex_unlock(&lun->lock);
	return NULL;
}

/* "uio0"; may be put into `room`. */
static const char *uio_name(struct tcmu_device *device, char *room, size_t size)
{
#ifdef TCMU_RUNNER_1_5_2 /* its library tells only the descriptor */
	char link[32];
	ssize_t length;
	char *last;

	snprintf(link, sizeof(link), "/proc/self/fd/%d", tcmu_dev_get_fd(device));
	length = readlink(link, room, size - 1);
	room[length < 0 ? 0 : length] = 0;
	last = strrchr(room, '/');
	return last ? last + 1 : room;
#else
	(void)room;
	(void)size;
	return tcmu_dev_get_uio_name(device);
#endif
}

/* From the UIO device's name, "tcm-user/0/lun0/…". */
static char *blocked_path(struct tcmu_device *device)
{
	char *name, *path = NULL, hba[16], lun[128], room[64];
	const char *uio = uio_name(device, room, sizeof(room));

	if (asprintf(&path, "/sys/class/uio/%s/name", uio) < 0)
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
		tcmu_warn("%s not found in configfs: SIGTERM will not release held requests\n",
			  path);
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

/* Under the lock: RUNNING (serve at once), HELD or DELAYED. */
static enum state admit(struct lun *lun, const struct request *r)
{
	unsigned kind = 1u << r->operation;

	if (lun_stopping(lun))
		return RUNNING;
	if (lun->hold & kind && lun->hold_seen++ >= lun->hold_from)
		return HELD;
	return lun->delay_kinds & kind ? DELAYED : RUNNING;
}

int lun_submit(struct lun *lun, const struct request *request)
{
	struct request copy = *request, *r = &copy;

	copy.started = clock_ns();
	pthread_mutex_lock(&lun->lock);
	copy.state = admit(lun, r);
	if (copy.state != RUNNING) {
		r = malloc(sizeof(*r));
		if (!r) {
			pthread_mutex_unlock(&lun->lock);
			return TCMU_STS_NO_RESOURCE;
		}
		*r = copy;
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
	if (r == &copy)
		lun_complete(lun, r, lun_serve(lun, r));
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
