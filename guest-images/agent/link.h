/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The byte stream to the peer: open, split into frames, queue output. */
#ifndef EMU_LINK_H
#define EMU_LINK_H

#include <stdbool.h>
#include <sys/types.h>

#include "wire.h"

/* Commands' output is queued up to the soft limit; the rest is for answers. */
#define OUT_SOFT (4u * PAYLOAD_MAX)
#define OUT_SIZE (16u * PAYLOAD_MAX)
#define IN_SIZE (2u * (PAYLOAD_MAX + sizeof(struct frame)))

enum link_kind { LINK_PORT, LINK_TTY, LINK_FD };

struct link {
	const char *name;
	enum link_kind kind;
	int fd;
	bool can_read, can_write; /* since the last edge, until EAGAIN */
	bool joined;		  /* hello answered, and no damaged frame since */
	uint8_t nonce[NONCE_SIZE];
	uint32_t chunk;	 /* longest payload to send */
	uint32_t window; /* credit a new output stream starts with */
	uint32_t seq_in, seq_out;
	size_t in_start, in_end;
	size_t out_start, out_end;
	uint8_t in[IN_SIZE];
	uint8_t out[OUT_SIZE];
};

enum link_event {
	LINK_NOTHING, /* wait for more bytes */
	LINK_FRAME,   /* a valid frame */
	LINK_HELLO,   /* a new peer: forget the old one */
	LINK_DAMAGED, /* bytes lost or changed: the connection is over; reason in *why */
};

void link_setup(struct link *l, const char *name);
/* False: not there yet, try again later. */
bool link_open(struct link *l, int epoll_fd);
void link_close(struct link *l);
/* Read what is there. False when the peer is gone. */
bool link_fill(struct link *l);
/* Write what the stream takes. False when the peer is gone. */
bool link_flush(struct link *l);
enum link_event link_next(struct link *l, struct frame *f, const uint8_t **payload,
			  const char **why);
/* Forget the connection: queued output and sequence numbers. */
void link_reset(struct link *l);
size_t link_queued(const struct link *l);
/* Room for the answers to one more frame and for every command's EXITED. */
bool link_has_room(const struct link *l);
void link_send(struct link *l, uint8_t type, uint8_t stream, uint32_t id, const void *payload,
	       size_t length);
/* Read up to `limit` bytes from fd straight into an OUTPUT frame; as read(2). */
ssize_t link_send_from(struct link *l, uint8_t stream, uint32_t id, int fd, size_t limit);

int set_raw(int tty);

#endif
