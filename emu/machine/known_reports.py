"""Kernel reports that are known: faults of one kernel version, not of what is under test.

A report on this list is shown as known; it ends no wait and fails no test, on the listed kernel
versions only. A report is matched by the line that `verdict` finds, a line printed before it,
and the kernel version in the "CPU:" line after it.

Sources: check_flush_dependency() in kernel/workqueue.c, WARN() in include/asm-generic/bug.h and
dump_stack_print_info() in lib/dump_stack.c of Linux 6.1.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

LINES_BEFORE = 6
"""Lines before the finding's among which `message` is looked for."""
LINES_AFTER = 12
"""Lines after it among which the "CPU:" line is: "Modules linked in:" comes between."""
_CPU = re.compile(r"\bCPU: \d+ (?:UID: \d+ )?PID: \d+ Comm: ")


@dataclass(frozen=True)
class KnownReport:
    """One entry: its `name`, upstream kernel versions ("6.1.192"), and why it is harmless.

    `line` matches the line that `verdict` finds, `message` one before it.
    """

    name: str
    kernels: tuple[str, ...]
    line: str
    message: str
    reason: str


KNOWN_REPORTS: tuple[KnownReport, ...] = (
    KnownReport(
        name="iSCSI log-out flushes pm_runtime_work",
        kernels=("6.1.192",),
        line=r"WARNING: .* at kernel/workqueue\.c:\d+ check_flush_dependency\+",
        message=r"workqueue: WQ_MEM_RECLAIM iscsi_ctrl_[\d:]+:__iscsi_unbind_session"
        r"( \[scsi_transport_iscsi\])? is flushing !WQ_MEM_RECLAIM pm:pm_runtime_work",
        reason="a log-out removes its disks on a WQ_MEM_RECLAIM queue and waits for their runtime "
        "power management, which has none",
    ),
)


def candidate(line: str, before: Sequence[str]) -> KnownReport | None:
    """The entry that a finding's line and the lines before it fit, on whatever kernel."""
    for known in KNOWN_REPORTS:
        if re.search(known.line, line) and any(re.search(known.message, one) for one in before):
            return known
    return None


def on_listed_kernel(known: KnownReport, after: Sequence[str]) -> bool | None:
    """Whether the lines after a finding name a kernel of the entry; None: not printed yet."""
    for line in after:
        if _CPU.search(line):
            return any(
                re.search(rf"(?<![\d.]){re.escape(kernel)}(?![\d.])", line)
                for kernel in known.kernels
            )
    return None
