/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Static variables of the running kernel: /proc/kallsyms has their addresses, and /proc/kcore, an
 * ELF file, the memory. They are read without locks.
 */
#ifndef EMU_KCORE_H
#define EMU_KCORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/*
 * Look up variables of the kernel itself, not of modules; address 0 for those it does not have.
 * The result is cached in the file `kept`: reading kallsyms takes seconds under emulation.
 * False with errno when a file can't be read or written; its name is in kcore_failed.
 */
bool kcore_find(const char *kept, const char *const *names, uint64_t *address, int count);
extern const char *kcore_failed;

/* Read memory at a kernel address. False with errno and kcore_failed. */
bool kcore_peek(uint64_t at, void *into, size_t size);

#endif
