/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the control socket and its verbs share. */
#ifndef EMU_LUN_CONTROL_H
#define EMU_LUN_CONTROL_H

#include "lun.h"

#define WORDS 16

struct words {
	char *word[WORDS];
	unsigned count;
};

struct answer {
	char *text;
	size_t length, room;
};

void answer_bytes(struct answer *answer, const void *bytes, size_t length);
void __attribute__((format(printf, 2, 3))) answer_text(struct answer *answer, const char *format,
						       ...);

void obey_verb(struct lun *lun, const struct words *words, struct answer *answer);

#endif
