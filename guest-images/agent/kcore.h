/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Variables of the running kernel that nothing shows: /proc/kallsyms has their addresses and
 * /proc/kcore, an ELF file, the memory there. Nothing is locked against who changes them.
 */
#ifndef EMU_KCORE_H
#define EMU_KCORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/*
 * Finds the kernel's own variables of these names, in no module: address 0 for one that it does
 * not have. Kept in a file from then on: to read all of kallsyms takes seconds under emulation.
 * False with errno when a file can't be read or written; its name is in kcore_failed.
 */
bool kcore_find(const char *kept, const char *const *names, uint64_t *address, int count);
extern const char *kcore_failed;

/* Whether so many bytes at a kernel address could be read. */
bool kcore_peek(uint64_t at, void *into, size_t size);

#endif
