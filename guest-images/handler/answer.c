/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "answer.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void answer_bytes(struct answer *answer, const void *bytes, size_t length)
{
	if (!answer->text || length >= answer->room - answer->length) {
		size_t room = (answer->length + length + 1) * 2;
		char *more = realloc(answer->text, room);

		if (!more)
			return; /* shorter than the first line promises: the reader notices */
		answer->text = more;
		answer->room = room;
	}
	memcpy(answer->text + answer->length, bytes, length);
	answer->length += length;
}

void answer_text(struct answer *answer, const char *format, ...)
{
	char line[512];
	va_list arguments;
	int length;

	va_start(arguments, format);
	length = vsnprintf(line, sizeof(line), format, arguments);
	va_end(arguments);
	answer_bytes(answer, line, length < (int)sizeof(line) ? length : (int)sizeof(line) - 1);
}
