/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "command.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "spawn.h"
#include "tree.h"

/* A terminal's last output arrives a little after its last writer has exited. */
#define PTY_LINGER_MS 500
#define CREDIT_MAX (64u * 1024 * 1024)

struct output {
	int fd;
	bool ready; /* an edge came, and no EAGAIN since */
	uint32_t credit;
};

struct command {
	bool used, exited, pty, gentle;
	uint32_t id;
	pid_t pid;
	int status;
	int64_t exit_time;
	int stdin_fd;
	bool stdin_ready, stdin_end, stdin_closed;
	uint8_t *input; /* STDIN_WINDOW bytes, while any are waiting */
	size_t input_start, input_end;
	struct output out[2];
};

static struct command commands[COMMANDS_MAX];
static int sinks[SINKS_MAX];
static unsigned next_sink;
static int epoll_fd;

static int64_t now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static void watch(int fd, enum watched what, size_t index, uint32_t events)
{
	struct epoll_event ev = { .events = events | EPOLLET,
				  .data.u64 = (uint64_t)what << 32 | index };

	epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &ev);
}

static void close_fd(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

void commands_setup(int epoll)
{
	epoll_fd = epoll;
	for (size_t i = 0; i < SINKS_MAX; i++)
		sinks[i] = -1;
}

static struct command *find(uint32_t id)
{
	for (size_t i = 0; i < COMMANDS_MAX; i++)
		if (commands[i].used && commands[i].id == id)
			return &commands[i];
	return NULL;
}

static void drain(int *sink)
{
	static char waste[16384];
	ssize_t n;

	/* Bounded: endless output must not starve the others. */
	for (int i = 0; *sink >= 0 && i < 16; i++) {
		n = read(*sink, waste, sizeof waste);
		if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR))
			close_fd(sink);
		if (n <= 0)
			return;
	}
	if (*sink >= 0) {
		struct epoll_event ev = { .events = EPOLLIN | EPOLLET,
					  .data.u64 = (uint64_t)WATCH_SINK << 32 |
						      (uint64_t)(sink - sinks) };
		epoll_ctl(epoll_fd, EPOLL_CTL_MOD, *sink, &ev); /* a new edge */
	}
}

/* A background process still has its output open: read and discard it, so that the process
 * neither gets SIGPIPE nor blocks. */
static void to_sink(int *fd)
{
	int *sink = &sinks[next_sink++ % SINKS_MAX];

	epoll_ctl(epoll_fd, EPOLL_CTL_DEL, *fd, NULL);
	close_fd(sink);
	*sink = *fd;
	*fd = -1;
	watch(*sink, WATCH_SINK, (size_t)(sink - sinks), EPOLLIN);
}

static void release(struct command *c)
{
	close_fd(&c->stdin_fd);
	for (int i = 0; i < 2; i++)
		if (c->out[i].fd >= 0 && !c->pty)
			to_sink(&c->out[i].fd);
		else
			close_fd(&c->out[i].fd);
	free(c->input);
	c->input = NULL;
	c->used = false;
}

static void refuse(struct link *l, uint32_t id, int error)
{
	struct exited e = { .kind = EXIT_NOT_STARTED, .value = error };

	link_send(l, EXITED, 0, id, &e, sizeof e);
}

void command_start(struct link *l, uint32_t id, const uint8_t *request, size_t length)
{
	struct command *c = NULL;
	struct spawned s;
	size_t index;

	for (index = 0; index < COMMANDS_MAX && !c; index++)
		if (!commands[index].used)
			c = &commands[index];
	if (!c) {
		refuse(l, id, EAGAIN);
		return;
	}
	index = (size_t)(c - commands);
	int error = spawn(request, length, &s);
	if (error) {
		refuse(l, id, error);
		return;
	}
	uint32_t credit = l->window < CREDIT_MAX ? l->window : CREDIT_MAX;

	*c = (struct command){
		.used = true,
		.id = id,
		.pid = s.pid,
		.pty = s.flags & EXEC_PTY,
		.gentle = s.flags & EXEC_GENTLE,
		.stdin_fd = s.stdin_fd,
		.stdin_ready = true,
		.stdin_closed = s.stdin_fd < 0,
		.out = { { .fd = s.out_fd, .credit = credit },
			 { .fd = s.err_fd, .credit = credit } },
	};
	if (c->stdin_fd >= 0)
		watch(c->stdin_fd, WATCH_STDIN, index, EPOLLOUT);
	watch(c->out[0].fd, WATCH_OUT, index, EPOLLIN);
	if (c->out[1].fd >= 0)
		watch(c->out[1].fd, WATCH_ERR, index, EPOLLIN);
}

void command_input(struct link *l, uint32_t id, const uint8_t *data, size_t length)
{
	struct command *c = find(id);
	uint32_t granted = (uint32_t)length;

	if (!c)
		return;
	if (c->stdin_closed || c->stdin_end) {
		/* Not read any more; let the sender continue to its end. */
		link_send(l, STDIN_CREDIT, 0, id, &granted, sizeof granted);
		return;
	}
	if (!c->input && !(c->input = malloc(STDIN_WINDOW))) {
		command_signal(id, SIGKILL, SCOPE_TREE);
		return;
	}
	if (c->input_start && c->input_end + length > STDIN_WINDOW) {
		memmove(c->input, c->input + c->input_start, c->input_end - c->input_start);
		c->input_end -= c->input_start;
		c->input_start = 0;
	}
	if (c->input_end + length > STDIN_WINDOW) {
		/* More than the credit granted: a broken peer. */
		command_signal(id, SIGKILL, SCOPE_TREE);
		return;
	}
	memcpy(c->input + c->input_end, data, length);
	c->input_end += length;
}

void command_input_end(uint32_t id)
{
	struct command *c = find(id);

	if (c)
		c->stdin_end = true;
}

void command_credit(uint32_t id, uint8_t stream, uint32_t bytes)
{
	struct command *c = find(id);

	if (!c || stream < 1 || stream > 2)
		return;
	struct output *o = &c->out[stream - 1];
	o->credit = bytes > CREDIT_MAX - o->credit ? CREDIT_MAX : o->credit + bytes;
}

void command_signal(uint32_t id, int32_t signal, uint32_t scope)
{
	struct command *c = find(id);

	if (!c || c->exited || signal < 1 || signal > SIGRTMAX)
		return;
	if (scope != SCOPE_TREE)
		kill(-c->pid, signal);
	else if (c->gentle)
		kill(c->pid, SIGTERM);
	else
		kill_tree(c->pid);
}

void command_resize(uint32_t id, uint16_t rows, uint16_t columns)
{
	struct command *c = find(id);
	struct winsize size = { .ws_row = rows, .ws_col = columns };

	if (c && c->pty)
		ioctl(c->out[0].fd, TIOCSWINSZ, &size);
}

void commands_event(enum watched what, uint32_t index)
{
	if (what == WATCH_SINK) {
		if (index < SINKS_MAX)
			drain(&sinks[index]);
		return;
	}
	if (index >= COMMANDS_MAX)
		return;
	if (what == WATCH_STDIN)
		commands[index].stdin_ready = true;
	else
		commands[index].out[what == WATCH_ERR].ready = true;
}

void commands_reap(void)
{
	int status;
	pid_t pid;

	while ((pid = waitpid(-1, &status, WNOHANG)) > 0)
		for (size_t i = 0; i < COMMANDS_MAX; i++) {
			struct command *c = &commands[i];
			if (!c->used || c->exited || c->pid != pid)
				continue;
			c->exited = true;
			c->exit_time = now_ms();
			c->status = status;
			/* Its last output is in the pipes now: read once more. */
			c->out[0].ready = c->out[1].ready = true;
		}
}

static void pump_input(struct link *l, struct command *c)
{
	uint32_t written = 0;

	while (c->stdin_ready && !c->stdin_closed && c->input_start < c->input_end) {
		ssize_t n = write(c->stdin_fd, c->input + c->input_start,
				  c->input_end - c->input_start);
		if (n >= 0) {
			c->input_start += (size_t)n;
			written += (uint32_t)n;
		} else if (errno == EAGAIN) {
			c->stdin_ready = false;
		} else if (errno != EINTR) {
			written += (uint32_t)(c->input_end - c->input_start);
			c->input_start = c->input_end;
			c->stdin_closed = true;
		}
	}
	if (c->input && c->input_start == c->input_end) {
		c->input_start = c->input_end = 0;
		free(c->input);
		c->input = NULL;
	}
	if (c->stdin_end && !c->input)
		c->stdin_closed = true;
	/* A terminal's end of input is a character, sent by the peer. */
	if (c->stdin_closed)
		close_fd(&c->stdin_fd);
	if (written)
		link_send(l, STDIN_CREDIT, 0, c->id, &written, sizeof written);
}

/* One chunk from one stream; true when more may follow at once. */
static bool pump_output(struct link *l, struct command *c, uint8_t stream)
{
	struct output *o = &c->out[stream - 1];

	if (o->fd < 0 || !o->ready || !o->credit || link_queued(l) >= OUT_SOFT)
		return false;
	ssize_t n = link_send_from(l, stream, c->id, o->fd, o->credit);
	if (n > 0) {
		o->credit -= (uint32_t)n;
		return true;
	}
	if (n < 0 && errno == EINTR)
		return true;
	o->ready = false;
	if (n == 0 || errno != EAGAIN)
		close_fd(&o->fd);
	return false;
}

static bool drained(const struct command *c, const struct output *o)
{
	int waiting = 0;

	if (o->fd < 0)
		return true;
	if (c->pty && now_ms() - c->exit_time < PTY_LINGER_MS)
		return false;
	if (!o->ready)
		return true;
	return ioctl(o->fd, FIONREAD, &waiting) == 0 && waiting == 0;
}

static void report_end(struct link *l, struct command *c)
{
	struct exited e = { .kind = EXIT_STATUS, .value = WEXITSTATUS(c->status) };

	if (WIFSIGNALED(c->status))
		e = (struct exited){ .kind = EXIT_SIGNAL, .value = WTERMSIG(c->status) };
	link_send(l, EXITED, 0, c->id, &e, sizeof e);
	release(c);
}

int commands_pump(struct link *l)
{
	int wait = -1;

	for (bool more = true; more;) {
		more = false;
		/* Round robin by chunks: no command waits for another's flood. */
		for (size_t i = 0; i < COMMANDS_MAX; i++)
			if (commands[i].used) {
				more |= pump_output(l, &commands[i], 1);
				more |= pump_output(l, &commands[i], 2);
			}
	}
	for (size_t i = 0; i < COMMANDS_MAX; i++) {
		struct command *c = &commands[i];
		if (!c->used)
			continue;
		pump_input(l, c);
		if (!c->exited)
			continue;
		if (drained(c, &c->out[0]) && drained(c, &c->out[1]))
			report_end(l, c);
		else if (c->pty)
			wait = PTY_LINGER_MS;
	}
	return wait;
}

void commands_drop(void)
{
	for (size_t i = 0; i < COMMANDS_MAX; i++)
		if (commands[i].used) {
			if (!commands[i].exited)
				command_signal(commands[i].id, SIGKILL, SCOPE_TREE);
			release(&commands[i]);
		}
}
