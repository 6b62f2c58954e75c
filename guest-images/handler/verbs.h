/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The verbs of the control socket. */
#ifndef EMU_LUN_VERBS_H
#define EMU_LUN_VERBS_H

#include "answer.h"
#include "lun.h"

#define WORDS 16

/* A line: verb, LUN, key=value … */
struct words {
	char *word[WORDS];
	unsigned count;
};

void obey_verb(struct lun *lun, const struct words *words, struct answer *answer);

#endif
