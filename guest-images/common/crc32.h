/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef EMU_CRC32_H
#define EMU_CRC32_H

#include <stddef.h>
#include <stdint.h>

/* CRC-32 as in zlib; start with 0; pass the last result to continue. */
uint32_t crc32(uint32_t crc, const void *data, size_t length);

#endif
