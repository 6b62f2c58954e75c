/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Commands started by the peer: processes, pipes and credits. */
#ifndef EMU_COMMAND_H
#define EMU_COMMAND_H

#include "link.h"

#define COMMANDS_MAX 128
#define SINKS_MAX 64
#define STDIN_WINDOW (128u * 1024)

/* Upper half of an epoll event's data; the lower half is an index. */
enum watched { WATCH_LINK = 0, WATCH_SIGNALS, WATCH_STDIN, WATCH_OUT, WATCH_ERR, WATCH_SINK };

void commands_setup(int epoll_fd);
void command_start(struct link *l, uint32_t id, const uint8_t *request, size_t length);
void command_input(struct link *l, uint32_t id, const uint8_t *data, size_t length);
void command_input_end(uint32_t id);
void command_credit(uint32_t id, uint8_t stream, uint32_t bytes);
void command_signal(uint32_t id, int32_t signal, uint32_t scope);
void command_resize(uint32_t id, uint16_t rows, uint16_t columns);
void commands_event(enum watched what, uint32_t index);
void commands_reap(void);
/* Move bytes both ways as far as credit and room allow, and report ended commands.
 * Returns the milliseconds after which to call again without an event, or -1. */
int commands_pump(struct link *l);
/* Kill and forget all commands: their peer is gone. */
void commands_drop(void);

#endif
