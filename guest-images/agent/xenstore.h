/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The part of xenstore's protocol that our programs use (xen/include/public/io/xs_wire.h). */
#ifndef EMU_XENSTORE_H
#define EMU_XENSTORE_H

#include <stdbool.h>
#include <stddef.h>

#define XS_VALUE_MAX 256

/* Returns the socket, or -1. */
int xs_open(void);
/* The value of a node, with its NUL; false if there is none. */
bool xs_read(const char *path, char value[XS_VALUE_MAX]);
/* The same, of any length; valid until the next call. */
const char *xs_value(const char *path, size_t *length);
/* The names of a node's children, each with its NUL, to be freed; NULL, with errno, without node. */
char *xs_children(const char *path, size_t *length);
bool xs_write(const char *path, const char *value);
/* Write only if the node exists: a domain's tree may be about to be removed. */
bool xs_replace(const char *path, const char *value);
/* The first child whose name is a number greater than zero, or 0. */
unsigned xs_first_device(const char *path);
bool xs_watch(const char *path);
bool xs_unwatch(const char *path);
bool xs_is_introduced(unsigned domid);
/* Receive pending messages; false when xenstored is gone. */
bool xs_receive(void);
/* Whether a watch has fired since the last call. */
bool xs_changed(void);

#endif
