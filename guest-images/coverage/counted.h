/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Included before each source file of a driver that is built with gcc's counters (-fprofile-arcs,
 * -fprofile-info-section). It adds no line to the driver, and no dependency to its module.
 */
#include <linux/kernel.h>
#include <linux/types.h>
#include <xen/interface/io/ring.h>

/*
 * gcc describes a file's counters in a struct gcov_info that has no name but a label of the
 * assembler's, .LPBX0. Here it gets one, by which emu-gcov finds it while the module is loaded:
 * "emu_gcov." and the name of the file.
 */
asm(".globl \"emu_gcov." KBUILD_BASENAME "\"\n"
    ".set \"emu_gcov." KBUILD_BASENAME "\", .LPBX0");

/* gcc refers to it in every struct gcov_info; only user space would call it. */
void __gcov_merge_add(long long *counters, unsigned int count);
__attribute__((weak, no_profile_instrument_function)) void __gcov_merge_add(long long *counters,
									    unsigned int count)
{
}

/*
 * The size of a ring is rounded down to a power of two by a macro of 31 decisions, which would be
 * branches of every line that has a ring's size in it. As a function it has none in the driver.
 */
static __always_inline __maybe_unused __u32 emu_rounded_down(__u32 size)
{
	return 1u << (31 - __builtin_clz(size | 1)); /* a ring has room for one request at least */
}

#undef __RD32
#define __RD32(x)                                                                       \
	__builtin_choose_expr(__builtin_constant_p(x),                                  \
			      ((x) & 0xffff0000) ? __RD16((x) >> 16) << 16 : __RD16(x), \
			      emu_rounded_down(x))
