/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The answer to a line on the control socket, complete before it is sent. */
#ifndef EMU_LUN_ANSWER_H
#define EMU_LUN_ANSWER_H

#include <stddef.h>

struct answer {
	char *text; /* malloc; NULL while empty */
	size_t length, room;
};

/* Append. Out of memory the answer is shorter than its first line promises. */
void answer_bytes(struct answer *answer, const void *bytes, size_t length);
/* Append up to 511 bytes of text. */
void __attribute__((format(printf, 2, 3))) answer_text(struct answer *answer, const char *format,
						       ...);

#endif
