/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "tree.h"

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PROCESSES_MAX 4096
#define ROUNDS 5

struct process {
	pid_t pid, parent, session;
	bool marked;
};

static bool read_process(const char *name, struct process *p)
{
	char path[64], line[512], *end;
	int ppid, pgrp, session;

	snprintf(path, sizeof path, "/proc/%.16s/stat", name);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return false;
	ssize_t n = read(fd, line, sizeof line - 1);
	close(fd);
	if (n <= 0)
		return false;
	line[n] = 0;
	/* The name in parentheses may have any character; parse after the last ')'. */
	end = strrchr(line, ')');
	if (!end || sscanf(end + 1, " %*c %d %d %d", &ppid, &pgrp, &session) != 3)
		return false;
	*p = (struct process){ .pid = atoi(name), .parent = ppid, .session = session };
	return true;
}

static size_t read_processes(struct process *all)
{
	DIR *proc = opendir("/proc");
	struct dirent *entry;
	size_t count = 0;

	if (!proc)
		return 0;
	while (count < PROCESSES_MAX && (entry = readdir(proc)))
		if (entry->d_name[0] >= '1' && entry->d_name[0] <= '9' &&
		    read_process(entry->d_name, &all[count]))
			count++;
	closedir(proc);
	return count;
}

/* Mark the leader's session and descendants; true if any was new. */
static bool mark(struct process *all, size_t count, pid_t leader)
{
	bool any = false;

	for (size_t i = 0; i < count; i++) {
		bool hit = all[i].pid == leader || all[i].session == leader;
		for (size_t j = 0; !hit && j < count; j++)
			hit = all[j].marked && all[j].pid == all[i].parent;
		if (hit && !all[i].marked)
			all[i].marked = any = true;
	}
	return any;
}

void kill_tree(pid_t leader)
{
	static struct process all[PROCESSES_MAX];
	size_t count = 0, before = 0;

	/* Stop them all first, until none is new: a tree that forks faster than it is killed
	 * would survive, and once its leader is gone, orphans in sessions of their own can't
	 * be identified. */
	for (int round = 0; round < ROUNDS; round++) {
		size_t marked = 0;
		count = read_processes(all);
		while (mark(all, count, leader))
			;
		for (size_t i = 0; i < count; i++)
			if (all[i].marked && ++marked)
				kill(all[i].pid, SIGSTOP);
		if (marked == before)
			break;
		before = marked;
	}
	for (size_t i = 0; i < count; i++)
		if (all[i].marked)
			kill(all[i].pid, SIGKILL);
	kill(-leader, SIGKILL);
	kill(leader, SIGKILL);
}
