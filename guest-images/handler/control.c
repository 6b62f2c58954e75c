/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The control socket. A connection sends one line, "VERB LUN key=value …", and receives the
 * answer, "ok key=value …" with data or "error TEXT"; verbs.c has the verbs.
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "tcmu-runner.h"

#include "control.h"
#include "verbs.h"

#define SOCKET "/run/emu/lun.sock"

static pthread_mutex_t luns_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t unused = PTHREAD_COND_INITIALIZER;
static struct list_head luns = LIST_HEAD_INIT(luns);

void control_add(struct lun *lun)
{
	pthread_mutex_lock(&luns_lock);
	list_add_tail(&luns, &lun->luns);
	pthread_mutex_unlock(&luns_lock);
}

void control_remove(struct lun *lun)
{
	pthread_mutex_lock(&lun->lock);
	lun->removed = true;
	pthread_cond_broadcast(&lun->changed);
	pthread_cond_broadcast(&lun->counted);
	pthread_mutex_unlock(&lun->lock);
	pthread_mutex_lock(&luns_lock);
	list_del(&lun->luns);
	while (lun->users)
		pthread_cond_wait(&unused, &luns_lock);
	pthread_mutex_unlock(&luns_lock);
}

static struct lun *take(const char *name)
{
	struct lun *lun, *found = NULL;

	pthread_mutex_lock(&luns_lock);
	list_for_each(&luns, lun, luns)
		if (!strcmp(lun->name, name))
			found = lun;
	if (found)
		found->users++;
	pthread_mutex_unlock(&luns_lock);
	return found;
}

static void put(struct lun *lun)
{
	pthread_mutex_lock(&luns_lock);
	lun->users--;
	pthread_cond_broadcast(&unused);
	pthread_mutex_unlock(&luns_lock);
}

static void list_luns(struct answer *answer)
{
	struct lun *lun;

	answer_text(answer, "ok\n");
	pthread_mutex_lock(&luns_lock);
	list_for_each(&luns, lun, luns)
		answer_text(answer, "%s\n", lun->name);
	pthread_mutex_unlock(&luns_lock);
}

static void obey(char *line, struct answer *answer)
{
	struct words words = { .count = 0 };
	char *rest;

	for (char *word = strtok_r(line, " \n", &rest); word; word = strtok_r(NULL, " \n", &rest)) {
		if (words.count == WORDS) {
			answer_text(answer, "error more than %d words\n", WORDS);
			return;
		}
		words.word[words.count++] = word;
	}
	if (words.count == 1 && !strcmp(words.word[0], "luns")) {
		list_luns(answer);
	} else if (words.count < 2) {
		answer_text(answer, "error usage: VERB LUN key=value …\n");
	} else {
		struct lun *lun = take(words.word[1]);

		if (!lun) {
			answer_text(answer, "error no LUN %s\n", words.word[1]);
			return;
		}
		obey_verb(lun, &words, answer);
		put(lun);
	}
}

static void *serve_connection(void *argument)
{
	int fd = (int)(intptr_t)argument;
	struct answer answer = { NULL, 0, 0 };
	char line[1024];
	size_t length = 0, sent = 0;

	while (length < sizeof(line) - 1 && !memchr(line, '\n', length)) {
		ssize_t got = read(fd, line + length, sizeof(line) - 1 - length);

		if (got <= 0)
			break;
		length += got;
	}
	line[length] = 0;
	obey(line, &answer);
	while (sent < answer.length) {
		ssize_t n = send(fd, answer.text + sent, answer.length - sent, MSG_NOSIGNAL);

		if (n <= 0)
			break;
		sent += n;
	}
	free(answer.text);
	close(fd);
	return NULL;
}

static void *listen_to(void *argument)
{
	int server = (int)(intptr_t)argument;

	while (1) {
		int fd = accept4(server, NULL, NULL, SOCK_CLOEXEC);
		pthread_t thread;

		if (fd < 0) {
			if (errno != EINTR && errno != ECONNABORTED)
				usleep(100000);
			continue;
		}
		if (pthread_create(&thread, NULL, serve_connection, (void *)(intptr_t)fd))
			close(fd);
		else
			pthread_detach(thread);
	}
	return NULL;
}

int control_start(void)
{
	const char *other = getenv("EMU_LUN_SOCKET");
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	sigset_t all, before;
	pthread_t thread;
	int server, failed;

	snprintf(address.sun_path, sizeof(address.sun_path), "%s", other ? other : SOCKET);
	unlink(address.sun_path);
	server = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (server < 0 || bind(server, (struct sockaddr *)&address, sizeof(address)) ||
	    listen(server, 64)) {
		failed = errno;
		tcmu_err("control socket %s: %s\n", address.sun_path, strerror(failed));
		if (server >= 0)
			close(server);
		return -failed;
	}
	/* tcmu-runner's own threads handle signals; our threads inherit this mask. */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	failed = pthread_create(&thread, NULL, listen_to, (void *)(intptr_t)server);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (failed) {
		close(server);
		return -failed;
	}
	pthread_detach(thread);
	return 0;
}
