// SPDX-License-Identifier: GPL-2.0-or-later
/* Linked with --wrap=posix_memalign: it fails as POSIX has it, and does not touch errno. */
#include <errno.h>
#include <stddef.h>

int __wrap_posix_memalign(void **memory, size_t alignment, size_t size);

int __wrap_posix_memalign(void **memory, size_t alignment, size_t size)
{
	(void)memory, (void)alignment, (void)size;
	return ENOMEM;
}
