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
	{ "all", KINDS_ALL },
	{ "reads", KINDS_READS },
	{ "writes", KINDS_WRITES },
	{ "flushes", KINDS_FLUSHES },
};

static const char *const operations[] = { "", "read", "write", "flush", "unmap", "write-same" };
static const char *const states[] = { "running", "held", "delayed", "released" };

/* What a verb was told: each key once, none that it does not know. */
struct told {
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
	{ "from", offsetof(struct told, from), UINT64_MAX },
	{ "count", offsetof(struct told, count), UINT64_MAX },
	{ "ms", offsetof(struct told, ms), UINT32_MAX },
	{ "first", offsetof(struct told, first), UINT64_MAX },
	{ "last", offsetof(struct told, last), UINT64_MAX },
	{ "blocks", offsetof(struct told, blocks), UINT64_MAX },
	{ "per_million", offsetof(struct told, per_million), 1000000 },
	{ "seed", offsetof(struct told, seed), UINT64_MAX },
	{ "times", offsetof(struct told, times), UINT64_MAX },
	{ "sectors", offsetof(struct told, sectors), UINT32_MAX },
	{ "at_least", offsetof(struct told, at_least), UINT64_MAX },
	{ "at_most", offsetof(struct told, at_most), UINT64_MAX },
	{ "timeout_ms", offsetof(struct told, timeout_ms), UINT32_MAX },
	{ "since", offsetof(struct told, since), UINT64_MAX },
};

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

static void take_word(struct told *told, const char *key, const char *value)
{
	for (unsigned i = 0; i < COUNT(numbers); i++) {
		uint64_t number;
		char *end;

		if (strcmp(numbers[i].name, key))
			continue;
		errno = 0;
		number = strtoull(value, &end, 10);
		if (errno || *end || !isdigit((unsigned char)*value) || number > numbers[i].most)
			told->fault = key;
		*(uint64_t *)((char *)told + numbers[i].at) = number;
		return;
	}
	if (!strcmp(key, "answer")) {
		told->good = !strcmp(value, "good");
		if (!told->good && strcmp(value, "error"))
			told->fault = key;
		return;
	}
	for (unsigned i = 0; !strcmp(key, "kinds") && i < COUNT(sets); i++)
		if (!strcmp(sets[i].name, value)) {
			told->kinds = sets[i].kinds;
			return;
		}
	told->fault = key;
}

static struct told read_words(const struct words *words)
{
	struct told told = {
		.kinds = KINDS_ALL,
		.count = UINT64_MAX,
		.last = UINT64_MAX,
		.per_million = 1000000,
		.at_most = UINT64_MAX,
	};

	for (unsigned i = 2; i < words->count && !told.fault; i++) {
		char *key = words->word[i], *equals = strchr(key, '=');

		if (!equals) {
			told.fault = key;
			break;
		}
		*equals = 0;
		take_word(&told, key, equals + 1);
	}
	return told;
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

static void add_rule(struct lun *lun, const struct told *told, bool tear, struct answer *answer)
{
	if (lun->n_rules == RULES) {
		answer_text(answer, "error there are %d rules already\n", RULES);
		return;
	}
	lun->rules[lun->n_rules++] = (struct rule){
		.kinds = tear ? told->kinds & KINDS_WRITES : told->kinds,
		.first = told->first,
		.last = told->last,
		.per_million = (uint32_t)told->per_million,
		.state = told->seed,
		.times = told->times,
		.tear = tear,
		.good = told->good,
		.sectors = (uint32_t)told->sectors,
	};
	answer_text(answer, "ok\n");
}

/* Until no fewer and no more than so many are outstanding; how many there are then. */
static void wait_for(struct lun *lun, const struct told *told, struct answer *answer)
{
	struct timespec at = clock_timespec(clock_ns() + told->timeout_ms * 1000000);
	int late = 0;

	lun->waiters++;
	while ((lun->count < told->at_least || lun->count > told->at_most) && !lun_stopping(lun) &&
	       !late)
		late = pthread_cond_timedwait(&lun->counted, &lun->lock, &at);
	lun->waiters--;
	answer_text(answer, "ok outstanding=%" PRIu64 "\n", lun->count);
}

static void give_records(struct lun *lun, const struct told *told, struct answer *answer)
{
	uint64_t first = told->since > lun->records.first ? told->since : lun->records.first;
	uint64_t dropped = told->since < lun->records.first ? lun->records.first - told->since : 0;
	uint64_t next = lun->records.next;
	uint8_t *copy;
	int64_t length = records_copy(&lun->records, told->since, &copy);

	/* The copying into the answer need not stop requests. */
	pthread_mutex_unlock(&lun->lock);
	if (length < 0) {
		answer_text(answer, "error no memory\n");
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

static void give_sums(struct lun *lun, const struct told *told, struct answer *answer)
{
	uint64_t size = lun->size;
	bool inside = told->first <= size && told->blocks <= size - told->first;
	bool fits = told->blocks <= UINT32_MAX;
	uint32_t *sums = inside && fits ? malloc(told->blocks * sizeof(*sums) + 1) : NULL;

	/* The LUN stays: this connection is counted among its users. */
	pthread_mutex_unlock(&lun->lock);
	if (!inside) {
		answer_text(answer, "error the LUN has %" PRIu64 " blocks\n", size);
	} else if (!fits) {
		answer_text(answer, "error no more than %u blocks at once\n", UINT32_MAX);
	} else if (!sums || lun_sums(lun, told->first, (uint32_t)told->blocks, sums)) {
		answer_text(answer, "error the file cannot be read\n");
	} else {
		answer_text(answer, "ok bytes=%" PRIu64 "\n", told->blocks * sizeof(*sums));
		answer_bytes(answer, sums, told->blocks * sizeof(*sums));
	}
	free(sums);
	pthread_mutex_lock(&lun->lock);
}

static bool obey_change(struct lun *lun, const char *verb, const struct told *told)
{
	if (!strcmp(verb, "hold")) {
		lun->hold = told->kinds;
		lun->hold_from = told->from;
		lun->hold_seen = 0;
	} else if (!strcmp(verb, "release")) {
		/* All: nothing is held from now on. Some: the others stay, and so does the hold. */
		if (told->count == UINT64_MAX)
			lun->hold = 0;
		lun_release(lun, told->count);
	} else if (!strcmp(verb, "delay")) {
		lun->delay_ms = (unsigned)told->ms;
		lun->delay_kinds = told->ms ? told->kinds : 0;
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
	struct told told = read_words(words);

	if (told.fault) {
		answer_text(answer, "error %s: %s makes no sense\n", verb, told.fault);
		return;
	}
	pthread_mutex_lock(&lun->lock);
	if (!strcmp(verb, "status"))
		status(lun, answer);
	else if (!strcmp(verb, "list"))
		list(lun, answer);
	else if (!strcmp(verb, "fail"))
		add_rule(lun, &told, false, answer);
	else if (!strcmp(verb, "tear"))
		add_rule(lun, &told, true, answer);
	else if (!strcmp(verb, "wait"))
		wait_for(lun, &told, answer);
	else if (!strcmp(verb, "records"))
		give_records(lun, &told, answer);
	else if (!strcmp(verb, "sums"))
		give_sums(lun, &told, answer);
	else if (obey_change(lun, verb, &told))
		status(lun, answer);
	else
		answer_text(answer, "error there is no verb %s\n", verb);
	pthread_mutex_unlock(&lun->lock);
}
