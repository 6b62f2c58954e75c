/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "spawn.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "wire.h"

#define ENVIRONMENT_MAX 1024

extern char **environ;

/* Each string has a NUL: a frame can't hold more strings than bytes. */
static char *strings[PAYLOAD_MAX + 3];
static char text[PAYLOAD_MAX];

struct request {
	struct exec_request head;
	const char *cwd;
	char **argv, **env;
};

static int parse(const uint8_t *payload, size_t length, struct request *r)
{
	size_t at = 0;

	if (length < sizeof r->head || length > PAYLOAD_MAX)
		return EBADMSG;
	memcpy(&r->head, payload, sizeof r->head);
	length -= sizeof r->head;
	memcpy(text, payload + sizeof r->head, length);
	if (!length || text[length - 1] || !r->head.argc)
		return EBADMSG;

	size_t count = 1u + r->head.argc + r->head.envc, slot = 0;
	if (count > length)
		return EBADMSG;
	for (size_t i = 0; i < count; i++) {
		if (at >= length)
			return EBADMSG;
		strings[slot++] = text + at;
		at += strlen(text + at) + 1;
		if (i == r->head.argc)
			strings[slot++] = NULL;
	}
	strings[slot] = NULL;
	if (at != length)
		return EBADMSG;
	r->cwd = strings[0];
	r->argv = strings + 1;
	r->env = strings + 2 + r->head.argc;
	return 0;
}

static int make_pipe(int *ours, int *theirs, bool reading)
{
	int p[2];

	if (pipe2(p, O_CLOEXEC) < 0)
		return -1;
	*ours = p[reading ? 0 : 1];
	*theirs = p[reading ? 1 : 0];
	return fcntl(*ours, F_SETFL, O_NONBLOCK);
}

static int make_pty(int *master, int *slave, const struct exec_request *head)
{
	struct winsize size = { .ws_row = head->rows, .ws_col = head->columns };
	int unlock = 0;

	*master = open("/dev/ptmx", O_RDWR | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
	if (*master < 0 || ioctl(*master, TIOCSPTLCK, &unlock) < 0)
		return -1;
	*slave = ioctl(*master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
	if (*slave < 0)
		return -1;
	return ioctl(*slave, TIOCSWINSZ, &size);
}

/* The agent's environment, with the request's variables in place of its own. */
static char **merged(char **own, char **extra)
{
	static char *all[ENVIRONMENT_MAX + 1];
	size_t count = 0;

	for (char **e = extra; *e && count < ENVIRONMENT_MAX; e++)
		all[count++] = *e;
	for (char **o = own; *o && count < ENVIRONMENT_MAX; o++) {
		size_t name = strcspn(*o, "=") + 1;
		bool replaced = false;
		for (char **e = extra; *e; e++)
			replaced |= !strncmp(*o, *e, name);
		if (!replaced)
			all[count++] = *o;
	}
	all[count] = NULL;
	return all;
}

static volatile int start_error;

/* Runs in the vfork()ed child, in the parent's memory: system calls only. */
static void __attribute__((noreturn)) become(const struct request *r, const int theirs[3])
{
	/* SIGINT, SIGQUIT: ignored in what a shell starts in the background, as the agent is. */
	static const int ours[] = { SIGHUP, SIGPIPE, SIGINT, SIGQUIT };
	sigset_t none;

	setsid();
	for (size_t i = 0; i < sizeof ours / sizeof *ours; i++)
		signal(ours[i], SIG_DFL);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	/* dup2() of a descriptor onto itself would keep close-on-exec, but all are above 2. */
	for (int i = 0; i < 3; i++)
		if (dup2(theirs[i], i) < 0)
			goto failed;
	if (r->head.flags & EXEC_PTY && ioctl(0, TIOCSCTTY, 0) < 0)
		goto failed;
	if (*r->cwd && chdir(r->cwd) < 0)
		goto failed;
	if (r->head.flags & EXEC_SELF)
		execv("/proc/self/exe", r->argv);
	else
		execvp(r->argv[0], r->argv);
failed:
	start_error = errno;
	_exit(127);
}

/* vfork(): copying the address space takes a PV guest 6 ms under emulation. The agent blocks
 * until the program is loaded; a stuck disk with that program would block it. */
static pid_t launch(const struct request *r, const int theirs[3])
{
	char **own = environ;
	pid_t pid;

	start_error = 0;
	environ = merged(own, r->env);
	pid = vfork();
	if (pid == 0)
		become(r, theirs);
	environ = own;
	return pid;
}

int spawn(const uint8_t *payload, size_t length, struct spawned *s)
{
	int theirs[3] = { -1, -1, -1 }, error;
	struct request r;

	*s = (struct spawned){ .pid = -1, .stdin_fd = -1, .out_fd = -1, .err_fd = -1 };
	error = parse(payload, length, &r);
	if (error)
		return error;
	s->flags = r.head.flags;
	if (r.head.flags & EXEC_PTY) {
		if (make_pty(&s->out_fd, &theirs[0], &r.head) < 0)
			goto failed;
		s->stdin_fd = fcntl(s->out_fd, F_DUPFD_CLOEXEC, 3);
		theirs[1] = theirs[2] = theirs[0];
		if (s->stdin_fd < 0)
			goto failed;
	} else {
		if (r.head.flags & EXEC_NO_STDIN)
			theirs[0] = open("/dev/null", O_RDONLY | O_CLOEXEC);
		else
			make_pipe(&s->stdin_fd, &theirs[0], false);
		if (theirs[0] < 0 || make_pipe(&s->out_fd, &theirs[1], true) < 0 ||
		    make_pipe(&s->err_fd, &theirs[2], true) < 0)
			goto failed;
	}
	s->pid = launch(&r, theirs);
failed:
	error = s->pid < 0 ? errno : start_error;
	for (int i = 0; i < 3; i++)
		if (theirs[i] >= 0 && (i == 0 || theirs[i] != theirs[i - 1]))
			close(theirs[i]);
	if (error) {
		int ours[] = { s->stdin_fd, s->out_fd, s->err_fd };
		for (size_t i = 0; i < sizeof ours / sizeof *ours; i++)
			if (ours[i] >= 0)
				close(ours[i]);
	}
	return error;
}
