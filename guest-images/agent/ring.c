/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "ring.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

/* Defined by Xen's headers, not by Linux' uapi. */
typedef uint32_t grant_ref_t;
typedef uint16_t domid_t;
#include <xen/evtchn.h>
#include <xen/gntdev.h>

#define PAGE 4096

_Static_assert(sizeof(struct console_page) == 3088, "console page");

void ring_setup(struct ring *r)
{
	*r = (struct ring){ .gntdev = -1, .evtchn = -1 };
}

int ring_connect(struct ring *r, unsigned domid, uint32_t ref, uint32_t remote_port)
{
	struct ioctl_gntdev_map_grant_ref map = { .count = 1, .refs = { { domid, ref } } };
	struct ioctl_evtchn_bind_interdomain bind = { domid, remote_port };
	int port, error;
	void *page;

	r->gntdev = open("/dev/xen/gntdev", O_RDWR | O_CLOEXEC);
	r->evtchn = open("/dev/xen/evtchn", O_RDWR | O_CLOEXEC | O_NONBLOCK);
	if (r->gntdev < 0 || r->evtchn < 0)
		goto failed;
	if (ioctl(r->gntdev, IOCTL_GNTDEV_MAP_GRANT_REF, &map) < 0)
		goto failed;
	page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, r->gntdev, (off_t)map.index);
	if (page == MAP_FAILED)
		goto failed;
	r->page = page;
	r->index = map.index;
	port = ioctl(r->evtchn, IOCTL_EVTCHN_BIND_INTERDOMAIN, &bind);
	if (port < 0)
		goto failed;
	r->port = (uint32_t)port;
	r->ref = ref;
	r->remote_port = remote_port;
	return 0;
failed:
	error = errno;
	ring_disconnect(r);
	errno = error;
	return -1;
}

void ring_disconnect(struct ring *r)
{
	struct ioctl_gntdev_unmap_grant_ref unmap = { .index = r->index, .count = 1 };

	if (r->page) {
		munmap((void *)r->page, PAGE);
		ioctl(r->gntdev, IOCTL_GNTDEV_UNMAP_GRANT_REF, &unmap);
	}
	/* close() unbinds the port and unmaps what is left. */
	if (r->evtchn >= 0)
		close(r->evtchn);
	if (r->gntdev >= 0)
		close(r->gntdev);
	ring_setup(r);
}

void ring_event(struct ring *r)
{
	uint32_t port;

	if (read(r->evtchn, &port, sizeof port) == sizeof port)
		r->masked = true;
}

void ring_unmask(struct ring *r)
{
	r->masked = write(r->evtchn, &r->port, sizeof r->port) != sizeof r->port;
}

static void notify(const struct ring *r)
{
	struct ioctl_evtchn_notify notify = { .port = r->port };

	ioctl(r->evtchn, IOCTL_EVTCHN_NOTIFY, &notify);
}

int ring_readable(const struct ring *r)
{
	uint32_t used = __atomic_load_n(&r->page->out_prod, __ATOMIC_ACQUIRE) - r->page->out_cons;

	return used > sizeof r->page->out ? -1 : (int)used;
}

int ring_writable(const struct ring *r)
{
	uint32_t used = r->page->in_prod - __atomic_load_n(&r->page->in_cons, __ATOMIC_ACQUIRE);

	return used > sizeof r->page->in ? -1 : (int)(sizeof r->page->in - used);
}

/* The one or two pieces of a ring from an index on. */
static int pieces(struct iovec iov[2], volatile char *ring, size_t size, uint32_t at, size_t length)
{
	size_t start = at & (size - 1), first = length < size - start ? length : size - start;

	iov[0] = (struct iovec){ (void *)(ring + start), first };
	iov[1] = (struct iovec){ (void *)ring, length - first };
	return first < length ? 2 : 1;
}

ssize_t ring_to_fd(struct ring *r, int fd)
{
	uint32_t at = r->page->out_cons;
	struct iovec iov[2];
	int length = ring_readable(r);

	if (length <= 0)
		return 0;
	ssize_t n =
		writev(fd, iov, pieces(iov, r->page->out, sizeof r->page->out, at, (size_t)length));
	if (n > 0) {
		__atomic_store_n(&r->page->out_cons, at + (uint32_t)n, __ATOMIC_SEQ_CST);
		notify(r);
	}
	return n;
}

ssize_t fd_to_ring(struct ring *r, int fd)
{
	uint32_t at = r->page->in_prod;
	struct iovec iov[2];
	int length = ring_writable(r);

	if (length <= 0) {
		errno = EAGAIN;
		return -1;
	}
	ssize_t n =
		readv(fd, iov, pieces(iov, r->page->in, sizeof r->page->in, at, (size_t)length));
	if (n > 0) {
		__atomic_store_n(&r->page->in_prod, at + (uint32_t)n, __ATOMIC_SEQ_CST);
		notify(r);
	}
	return n;
}
