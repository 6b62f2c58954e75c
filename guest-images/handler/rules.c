/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Find the rule that applies to a request. */
#include <string.h>

#include "lun.h"

/* splitmix64: the same sequence for the same seed. */
static uint64_t draw(uint64_t *state)
{
	uint64_t z = *state += 0x9e3779b97f4a7c15ull;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
	z = (z ^ z >> 27) * 0x94d049bb133111ebull;
	return z ^ z >> 31;
}

/* Under the lock. The first match; a rule is removed after its last use. */
bool rules_match(struct lun *lun, const struct request *request, struct rule *matched)
{
	for (unsigned i = 0; i < lun->n_rules; i++) {
		struct rule *rule = &lun->rules[i];

		if (!(rule->kinds & 1u << request->operation))
			continue;
		/* A flush has no blocks: only rules for the whole LUN apply. */
		if (request->operation == OP_FLUSH) {
			if (rule->first || rule->last != UINT64_MAX)
				continue;
		} else if (request->lba > rule->last ||
			   request->lba + request->blocks <= rule->first) {
			continue;
		}
		if (rule->per_million < 1000000 &&
		    draw(&rule->state) % 1000000 >= rule->per_million)
			continue;
		*matched = *rule;
		if (rule->times && --rule->times == 0) {
			lun->n_rules--;
			memmove(rule, rule + 1, (lun->n_rules - i) * sizeof(*rule));
		}
		return true;
	}
	return false;
}
