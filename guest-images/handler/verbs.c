/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The verbs of the control socket. */
#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "clock.h"
#include "verbs.h"

static const struct {
	const char *name;
	unsigned kinds;
} sets[] = {
	{ "all", KINDS_ALL },	    { "reads", KINDS_READS },
	{ "writes", KINDS_WRITES }, { "flushes", KINDS_FLUSHES },
	{ "unmaps", KINDS_UNMAPS }, { "write-sames", KINDS_WRITE_SAMES },
};

static const char *const operations[] = { "", "read", "write", "flush", "unmap", "write-same" };
static const char *const states[] = { "running", "held", "delayed", "released" };

/* A verb's arguments. */
struct arguments {
	const char *fault;
	unsigned kinds;
	uint64_t from, count, ms, first, last, blocks, per_million, seed, times, sectors;
	uint64_t at_least, at_most, timeout_ms, since;
	bool good;
};

static const struct {
	const char *name;
	size_t at;
	uint64_t most;
} numbers[] = {
	{ "from", offsetof(struct arguments, from), UINT64_MAX },
	{ "count", offsetof(struct arguments, count), UINT64_MAX },
	{ "ms", offsetof(struct arguments, ms), UINT32_MAX },
	{ "first", offsetof(struct arguments, first), UINT64_MAX },
	{ "last", offsetof(struct arguments, last), UINT64_MAX },
	{ "blocks", offsetof(struct arguments, blocks), UINT64_MAX },
	{ "per_million", offsetof(struct arguments, per_million), 1000000 },
	{ "seed", offsetof(struct arguments, seed), UINT64_MAX },
	{ "times", offsetof(struct arguments, times), UINT64_MAX },
	{ "sectors", offsetof(struct arguments, sectors), UINT32_MAX },
	{ "at_least", offsetof(struct arguments, at_least), UINT64_MAX },
	{ "at_most", offsetof(struct arguments, at_most), UINT64_MAX },
	{ "timeout_ms", offsetof(struct arguments, timeout_ms), UINT32_MAX },
	{ "since", offsetof(struct arguments, since), UINT64_MAX },
};

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

static void parse_word(struct arguments *args, const char *key, const char *value)
{
	for (unsigned i = 0; i < COUNT(numbers); i++) {
		uint64_t number;
		char *end;

		if (strcmp(numbers[i].name, key))
			continue;
		errno = 0;
		number = strtoull(value, &end, 10);
		if (errno || *end || !isdigit((unsigned char)*value) || number > numbers[i].most)
			args->fault = key;
		*(uint64_t *)((char *)args + numbers[i].at) = number;
		return;
	}
	if (!strcmp(key, "answer")) {
		args->good = !strcmp(value, "good");
		if (!args->good && strcmp(value, "error"))
			args->fault = key;
		return;
	}
	for (unsigned i = 0; !strcmp(key, "kinds") && i < COUNT(sets); i++)
		if (!strcmp(sets[i].name, value)) {
			args->kinds = sets[i].kinds;
			return;
		}
	args->fault = key;
}

static struct arguments parse_words(const struct words *words)
{
	struct arguments args = {
		.kinds = KINDS_ALL,
		.count = UINT64_MAX,
		.last = UINT64_MAX,
		.per_million = 1000000,
		.at_most = UINT64_MAX,
	};

	for (unsigned i = 2; i < words->count && !args.fault; i++) {
		char *key = words->word[i], *equals = strchr(key, '=');

		if (!equals) {
			args.fault = key;
			break;
		}
		*equals = 0;
		parse_word(&args, key, equals + 1);
	}
	return args;
}

static void status(struct lun *lun, struct answer *answer)
{
	answer_text(answer,
		    "ok arrived=%" PRIu64 " outstanding=%" PRIu64 " held=%" PRIu64 " first=%" PRIu64
		    " next=%" PRIu64 " sector=%u size=%" PRIu64 " hold=%u delay_ms=%u rules=%u\n",
		    lun->arrived, lun->count, lun->held, lun->records.first, lun->records.next,
		    lun->sector, lun->size, lun->hold, lun->delay_kinds ? lun->delay_ms : 0,
		    lun->n_rules);
}

static void list(struct lun *lun, struct answer *answer)
{
	struct request *r;
	uint64_t at = clock_ns();

	answer_text(answer, "ok outstanding=%" PRIu64 "\n", lun->count);
	list_for_each(&lun->outstanding, r, outstanding)
		answer_text(answer, "%" PRIu64 " %s %" PRIu64 " %u %s %" PRIu64 "\n", r->sequence,
			    operations[r->operation], r->lba, r->blocks, states[r->state],
			    (at - r->started) / 1000000);
}

static void add_rule(struct lun *lun, const struct arguments *args, bool tear,
		     struct answer *answer)
{
	if (lun->n_rules == RULES) {
		answer_text(answer, "error no more than %d rules\n", RULES);
		return;
	}
	lun->rules[lun->n_rules++] = (struct rule){
		.kinds = tear ? args->kinds & KINDS_WRITES : args->kinds,
		.first = args->first,
		.last = args->last,
		.per_million = (uint32_t)args->per_million,
		.state = args->seed,
		.times = args->times,
		.tear = tear,
		.good = args->good,
		.sectors = (uint32_t)args->sectors,
	};
	answer_text(answer, "ok\n");
}

/* Wait until at_least to at_most requests are outstanding; report how many. */
static void wait_for(struct lun *lun, const struct arguments *args, struct answer *answer)
{
	struct timespec at = clock_timespec(clock_ns() + args->timeout_ms * 1000000);
	int late = 0;

	lun->waiters++;
	while ((lun->count < args->at_least || lun->count > args->at_most) && !lun_stopping(lun) &&
	       !late)
		late = pthread_cond_timedwait(&lun->counted, &lun->lock, &at);
	lun->waiters--;
	answer_text(answer, "ok outstanding=%" PRIu64 "\n", lun->count);
}

static void send_records(struct lun *lun, const struct arguments *args, struct answer *answer)
{
	uint64_t first = args->since > lun->records.first ? args->since : lun->records.first;
	uint64_t dropped = args->since < lun->records.first ? lun->records.first - args->since : 0;
	uint64_t next = lun->records.next;
	uint8_t *copy;
	int64_t length = records_copy(&lun->records, args->since, &copy);

	/* Requests may go on while the answer is built. */
	pthread_mutex_unlock(&lun->lock);
	if (length < 0) {
		answer_text(answer, "error out of memory\n");
	} else {
		answer_text(answer,
			    "ok first=%" PRIu64 " next=%" PRIu64 " dropped=%" PRIu64
			    " sector=%u bytes=%" PRIi64 "\n",
			    first, next, dropped, lun->sector, length);
		answer_bytes(answer, copy, length);
		free(copy);
	}
	pthread_mutex_lock(&lun->lock);
}

static void send_sums(struct lun *lun, const struct arguments *args, struct answer *answer)
{
	uint64_t size = lun->size;
	bool inside = args->first <= size && args->blocks <= size - args->first;
	bool fits = args->blocks <= UINT32_MAX;
	uint32_t *sums = inside && fits ? malloc(args->blocks * sizeof(*sums) + 1) : NULL;

	/* lun->users keeps the LUN. */
	pthread_mutex_unlock(&lun->lock);
	if (!inside) {
		answer_text(answer, "error out of range: the LUN has %" PRIu64 " blocks\n", size);
	} else if (!fits) {
		answer_text(answer, "error no more than %u blocks at once\n", UINT32_MAX);
	} else if (!sums || lun_sums(lun, args->first, (uint32_t)args->blocks, sums)) {
		answer_text(answer, "error cannot read the file\n");
	} else {
		answer_text(answer, "ok bytes=%" PRIu64 "\n", args->blocks * sizeof(*sums));
		answer_bytes(answer, sums, args->blocks * sizeof(*sums));
	}
	free(sums);
	pthread_mutex_lock(&lun->lock);
}

static bool obey_change(struct lun *lun, const char *verb, const struct arguments *args)
{
	if (!strcmp(verb, "hold")) {
		lun->hold = args->kinds;
		lun->hold_from = args->from;
		lun->hold_seen = 0;
	} else if (!strcmp(verb, "release")) {
		/* All: ends the hold. Some: the others stay held, and the hold stays. */
		if (args->count == UINT64_MAX)
			lun->hold = 0;
		lun_release(lun, args->count);
	} else if (!strcmp(verb, "delay")) {
		lun->delay_ms = (unsigned)args->ms;
		lun->delay_kinds = args->ms ? args->kinds : 0;
	} else if (!strcmp(verb, "clear")) {
		lun->n_rules = 0;
		lun->delay_kinds = 0;
	} else if (!strcmp(verb, "forget")) {
		records_forget(&lun->records);
	} else {
		return false;
	}
	return true;
}

void obey_verb(struct lun *lun, const struct words *words, struct answer *answer)
{
	const char *verb = words->word[0];
	struct arguments args = parse_words(words);

	if (args.fault) {
		answer_text(answer, "error %s: invalid %s\n", verb, args.fault);
		return;
	}
	pthread_mutex_lock(&lun->lock);
	if (!strcmp(verb, "status"))
		status(lun, answer);
	else if (!strcmp(verb, "list"))
		list(lun, answer);
	else if (!strcmp(verb, "fail"))
		add_rule(lun, &args, false, answer);
	else if (!strcmp(verb, "tear"))
		add_rule(lun, &args, true, answer);
	else if (!strcmp(verb, "wait"))
		wait_for(lun, &args, answer);
	else if (!strcmp(verb, "records"))
		send_records(lun, &args, answer);
	else if (!strcmp(verb, "sums"))
		send_sums(lun, &args, answer);
	else if (obey_change(lun, verb, &args))
		status(lun, answer);
	else
		answer_text(answer, "error unknown verb %s\n", verb);
	pthread_mutex_unlock(&lun->lock);
}
