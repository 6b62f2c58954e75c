/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A PV console's shared page and event channel, from the back end's side. */
#ifndef EMU_RING_H
#define EMU_RING_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

/* xen/include/public/io/console.h */
struct console_page {
	char in[1024];	/* towards the guest */
	char out[2048]; /* from the guest */
	uint32_t in_cons, in_prod;
	uint32_t out_cons, out_prod;
};

struct ring {
	volatile struct console_page *page; /* NULL while not mapped */
	uint64_t index;			    /* gntdev's offset of the mapping */
	int gntdev, evtchn;
	bool masked;		   /* after an event, until ring_unmask() */
	uint32_t port;		   /* our end */
	uint32_t ref, remote_port; /* from the guest */
};

void ring_setup(struct ring *r);
/* Map the guest's page and bind its event channel. Returns 0, or -1 with errno. */
int ring_connect(struct ring *r, unsigned domid, uint32_t ref, uint32_t remote_port);
/* Unmap and unbind; no-op when not connected. */
void ring_disconnect(struct ring *r);
/* Consume the event; no other arrives before ring_unmask(). */
void ring_event(struct ring *r);
void ring_unmask(struct ring *r);
/* Bytes that can be read from / written to the guest; -1 for invalid indices. */
int ring_readable(const struct ring *r);
int ring_writable(const struct ring *r);
/* Move bytes between the ring and a descriptor; as write(2) and read(2). */
ssize_t ring_to_fd(struct ring *r, int fd);
ssize_t fd_to_ring(struct ring *r, int fd);

#endif
