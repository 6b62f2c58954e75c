"""The patterns of console lines that mean trouble.

A kernel or hypervisor reports trouble in a few well-known words, which `scan` finds and names.
The list is ordered: the first pattern that matches gives the finding its name, so the special
ones ("KASAN") come before the general ones ("kernel BUG").

Sources: the printk formats in xen/arch/x86/traps.c, xen/arch/x86/pv/traps.c,
xen/common/{domain,shutdown}.c and xen/drivers/char/console.c of Xen 4.14, 4.17 and 4.20, and in
kernel/panic.c, lib/bug.c, arch/x86/mm/fault.c, arch/x86/kernel/{traps,dumpstack}.c,
kernel/{watchdog,hung_task}.c, kernel/rcu/tree_stall.h, mm/oom_kill.c,
kernel/locking/lockdep.c, kernel/sched/core.c and mm/{kmemleak,kasan,slub,page_poison} of
Linux 6.1 and 6.12.
"""

from __future__ import annotations

import re
from collections.abc import Container
from dataclasses import dataclass

XEN = "xen"
"""A console to which the hypervisor prints."""
LINUX = "linux"
"""A console to which a Linux kernel prints."""


@dataclass(frozen=True)
class BadPattern:
    """A pattern that means trouble: `name` is shown to people, `kind` (XEN, LINUX) prints it."""

    name: str
    regex: str
    kind: str


BAD_PATTERNS: tuple[BadPattern, ...] = (
    BadPattern("Xen BUG", r"\(XEN\) .*Xen BUG at ", XEN),
    BadPattern("Xen WARN", r"\(XEN\) .*Xen WARN at ", XEN),
    BadPattern("Xen assertion", r"\(XEN\) .*Assertion '.*' failed", XEN),
    BadPattern("Xen fatal trap", r"\(XEN\) .*(FATAL TRAP: |DOUBLE FAULT)", XEN),
    BadPattern("Xen panic", r"\(XEN\) .*Panic on CPU \d+", XEN),
    BadPattern("Xen watchdog", r"\(XEN\) .*Watchdog timer detects that CPU\d+ is stuck", XEN),
    # The second is that of Xen before 4.15.
    BadPattern(
        "unhandled trap in a guest", r"\(XEN\) .*d\d+v\d+ Unhandled(: | .* fault/trap )", XEN
    ),
    BadPattern("triple fault in a guest", r"\(XEN\) .*Triple fault - invoking", XEN),
    BadPattern("dom0 crash", r"\(XEN\) .*(Hardware Dom\d+|Domain 0 \(vcpu#\d+\)) crashed", XEN),
    BadPattern("domain crash", r"\(XEN\) .*Domain \d+ \(vcpu#\d+\) crashed", XEN),
    BadPattern("domain crash", r"\(XEN\) .*domain_crash(_sync)? called from", XEN),
    BadPattern("KASAN report", r"\bBUG: KASAN: |\bKASAN: (null-ptr|probably|maybe)", LINUX),
    BadPattern("KFENCE report", r"\bBUG: KFENCE: ", LINUX),
    BadPattern("KCSAN report", r"\bBUG: KCSAN: ", LINUX),
    BadPattern("UBSAN report", r"\bUBSAN: \S+ in ", LINUX),
    BadPattern("kernel memory leak", r"\bkmemleak: \d+ new suspected memory leak", LINUX),
    BadPattern(
        "lockdep report",
        r"(WARNING|INFO): (possible (circular|recursive|irq lock inversion)|inconsistent lock"
        r"|bad unlock balance|bad contention|suspicious RCU usage|.*-safe -> .*-unsafe lock order"
        r"|held lock freed|lock held when returning|.* still has locks held|Nested lock was not"
        r"|trying to register non-static key)|\bBUG: (MAX_\w+ too low|Invalid wait context)",
        LINUX,
    ),
    BadPattern(
        "sleep in atomic context",
        r"\bBUG: (sleeping function called from invalid context|scheduling while atomic)",
        LINUX,
    ),
    BadPattern("soft lockup", r"\bBUG: soft lockup - CPU#\d+ stuck", LINUX),
    BadPattern("hard lockup", r"Watchdog detected hard LOCKUP on cpu", LINUX),
    BadPattern("workqueue lockup", r"\bBUG: workqueue lockup", LINUX),
    BadPattern(
        "RCU stall",
        r"\brcu: INFO: rcu_\w+ (self-)?detected (expedited )?stall|\bINFO: rcu_\w+ (self-)?detected"
        r"|\brcu: rcu_\w+ kthread (starved|timer wakeup didn't happen)",
        LINUX,
    ),
    BadPattern("hung task", r"\bINFO: task .+ blocked for more than \d+ seconds", LINUX),
    BadPattern(
        "out of memory", r"\binvoked oom-killer: |\bOut of memory: Killed process \d+", LINUX
    ),
    BadPattern("page allocation failure", r": page allocation failure: order:\d+", LINUX),
    BadPattern("page corruption", r"\bpagealloc: (memory corruption|single bit error)", LINUX),
    BadPattern("slab corruption", r"^(\[[ .\d]+\] )?BUG [\w:.-]+ \(.*\): ", LINUX),
    BadPattern("kernel BUG", r"\bkernel BUG at |\bBUG: ", LINUX),
    BadPattern("kernel WARNING", r"\bWARNING: (CPU: \d+ PID: \d+|\S+\.[ch]:\d+) at ", LINUX),
    BadPattern("kernel oops", r"\bOops: |\bgeneral protection fault(, |:)", LINUX),
    BadPattern("kernel panic", r"\bKernel panic - not syncing", LINUX),
    BadPattern("sanitizer report", r"Sanitizer:DEADLYSIGNAL|ERROR: \w+Sanitizer: ", LINUX),
    BadPattern(
        "process crash",
        r"\b\S+\[\d+\]: segfault at |\btraps: \S+\[\d+\] (general protection|trap |invalid opcode)",
        LINUX,
    ),
)

_compiled = [(pattern, re.compile(pattern.regex)) for pattern in BAD_PATTERNS]

# Most lines hold none of these words: one search sorts them out. A test checks that no
# pattern matches a line that this one rejects.
_HINTS = re.compile(
    r"\(XEN\)|BUG|WARNING|INFO: |Oops|anic|fault|rcu|oom-killer|Out of memory|UBSAN|KASAN"
    r"|kmemleak|pagealloc|LOCKUP|Sanitizer|traps: |allocation failure"
)

KNOWN_NAMES = frozenset(pattern.name for pattern in BAD_PATTERNS)
"""Every name a finding can have."""


@dataclass(frozen=True)
class Match:
    """A line in which a bad pattern was found: the pattern's `name` and `kind`, the line."""

    name: str
    kind: str
    line: str


def scan(line: str, kinds: Container[str] = (XEN, LINUX)) -> Match | None:
    """The first bad pattern of these kinds in one line of a console, if there is one."""
    if not _HINTS.search(line):
        return None
    for pattern, regex in _compiled:
        if pattern.kind in kinds and regex.search(line):
            return Match(pattern.name, pattern.kind, line)
    return None
