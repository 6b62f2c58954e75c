"""The tools of debug kernels: leaks, what a driver holds, allocations that fail on request."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from emu.channel.channel import Channel

KMEMLEAK = "/sys/kernel/debug/kmemleak"
_MOUNT = "[ -e /sys/kernel/debug/slab ] || mount -t debugfs none /sys/kernel/debug"

# An object is suspected from 5 s of age on (MSECS_MIN_AGE in mm/kmemleak.c), and only if its
# content stayed the same from one scan to the next.
_SCAN = f"""
sleep 5
echo scan > {KMEMLEAK} && echo scan > {KMEMLEAK} && cat {KMEMLEAK}
"""

# One paragraph for each place of allocation: the count first, then the stack. Areas of
# addresses are freed late, nodes of radix trees kept in reserve by the kernel itself; and
# what had a file in sysfs stays in the cache of names if that was opened, as by fio.
_HELD = """
echo 2 > /proc/sys/vm/drop_caches
cd /sys/kernel/debug/slab || exit 1
for cache in *; do
    case $cache in vmap_area|radix_tree_node) continue ;; esac
    [ -h $cache ] || awk -v RS= -v module="[$1]" -v cache=$cache '
        index($0, module) {
            print cache, $1
            n = split($0, line, "\\n")
            for (i = 3; i <= n && i < 10; i++) {
                split(line[i], part, "+")
                gsub(/ /, "", part[1])
                printf "%s ", part[1]
            }
            print ""
        }
    ' $cache/alloc_traces
done
"""

# $1 is the module.
_FILTER = """
cd /sys/kernel/debug || exit 1
start=$(cat /sys/module/$1/sections/.text)
end=$(printf '0x%x' $(($start + $(cat /sys/module/$1/coresize))))
set -- $(awk '$3 == "register_irq_proc" { at = $1; next } at && $1 != at { print at, $1; exit }' \
    /proc/kallsyms)
proc=0x$1 proc_end=0x$2
for kind in failslab fail_page_alloc; do
    echo $start > $kind/require-start
    echo $end > $kind/require-end
    echo 32 > $kind/stacktrace-depth
    echo 2 > $kind/verbose
    echo N > $kind/ignore-gfp-wait
    # What it can't enter in /proc/irq the kernel misses with a WARNING when an irq goes.
    echo $proc > $kind/reject-start
    echo $proc_end > $kind/reject-end
done
echo N > fail_page_alloc/ignore-gfp-highmem
echo 0 > fail_page_alloc/min-order
"""
_NO_FILTER = """
cd /sys/kernel/debug
for kind in failslab fail_page_alloc; do
    echo 0 > $kind/require-start
    echo 0xffffffffffffffff > $kind/require-end
done
"""


def mount(channel: Channel) -> None:
    """debugfs, where the tools are."""
    channel.run(_MOUNT, timeout=20)


def forget_leaks(channel: Channel) -> None:
    """Drop what is suspected up to now (a boot's own leaks, wrong suspicions)."""
    mount(channel)
    channel.run(f"echo scan > {KMEMLEAK}; echo clear > {KMEMLEAK}", timeout=120)


def leaks(channel: Channel) -> str:
    """kmemleak's report of what it suspects since `forget_leaks`; empty if nothing.

    Fails if kmemleak has switched itself off: it does when it runs out of memory.
    """
    return channel.run(_SCAN, timeout=240).text


def held(channel: Channel, module: str) -> dict[str, int]:
    """Slab objects that were allocated under `module`'s code and live: "cache: calls" to count.

    SLUB keeps the stack of each allocation (slub_debug=U, on by default in lab-debug).
    """
    mount(channel)
    lines = channel.run(["sh", "-c", _HELD, "sh", module], timeout=60).text.splitlines()
    counts: dict[str, int] = {}
    for head, place in zip(lines[::2], lines[1::2], strict=True):
        cache, count = head.split()
        name = f"{cache}: {place.strip()}"
        counts[name] = counts.get(name, 0) + int(count)
    return counts


def thread(channel: Channel, name: str) -> int:
    """The process id of a kernel thread."""
    return int(channel.run(f"pidof {name} || pgrep -x {name}", timeout=20).text.split()[0])


@contextlib.contextmanager
def failing(channel: Channel, module: str) -> Iterator[None]:
    """Inside, `fail_nth` counts only allocations under `module`'s code, of slabs and of pages."""
    mount(channel)
    channel.run(["sh", "-c", _FILTER, "sh", module], timeout=20)
    try:
        yield
    finally:
        channel.run(_NO_FILTER, timeout=20)


def fail_nth(channel: Channel, pid: int, nth: int) -> None:
    """Let the `nth` allocation from now of a thread fail, once; 0: none any more."""
    channel.run(f"echo {nth} > /proc/{pid}/task/{pid}/fail-nth", timeout=20)


def has_failed(channel: Channel, pid: int) -> bool:
    """Whether the allocation that `fail_nth` named has come, and failed."""
    return int(channel.run(f"cat /proc/{pid}/task/{pid}/fail-nth", timeout=20).text) == 0
