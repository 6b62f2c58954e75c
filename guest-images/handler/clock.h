/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The monotonic clock, in nanoseconds. */
#ifndef EMU_LUN_CLOCK_H
#define EMU_LUN_CLOCK_H

#include <stdint.h>
#include <time.h>

uint64_t clock_ns(void);
/* For pthread_cond_timedwait() on a condition of CLOCK_MONOTONIC. */
struct timespec clock_timespec(uint64_t ns);

#endif
