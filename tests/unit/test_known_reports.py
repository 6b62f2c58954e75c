"""Known kernel reports: shown, but no trouble, on the kernel versions they are listed for.

The transcript is composed after the printk formats of Linux 6.1 (see emu.machine.known_reports).
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from emu.machine import known_reports
from emu.machine.console import Console
from emu.machine.watch import GuestTrouble, WaitTimeout, Watch
from emu.reactor import reactor

pytest_plugins = ["pytester"]

TRANSCRIPT = Path(__file__).parent / "transcripts/console-flush-dom0.txt"
REPORT = TRANSCRIPT.read_text()
WARNED_ABOUT = "workqueue: WQ_MEM_RECLAIM iscsi_ctrl_2:1"


def printed(text: str) -> Watch:
    """The watch of a machine whose dom0 has printed `text`."""
    watch = Watch()
    Console("dom0", watch, lambda data: None).feed(text.replace("\n", "\r\n").encode())
    reactor().call(lambda: None)
    return watch


def test_known_report_is_no_trouble() -> None:
    watch = printed(REPORT)
    assert not watch.in_trouble
    assert watch.findings == ()
    ((known, finding),) = watch.known
    assert known.name == "iSCSI log-out flushes pm_runtime_work"
    assert "check_flush_dependency" in finding.line
    with pytest.raises(WaitTimeout):
        watch.wait(lambda: None, "nothing", 0.1)


def test_known_report_on_both_consoles_counts_once() -> None:
    watch = Watch()
    for name in ("xen", "dom0"):
        console = Console(name, watch, lambda data: None, speakers={"linux": "dom0"})
        console.feed(REPORT.encode())
    reactor().call(lambda: None)
    assert len(watch.known) == 1


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Debian 6.1.192-2", "Debian 6.1.193-1"),
        ("Debian 6.1.192-2", "Debian 16.1.192-2"),
        (WARNED_ABOUT, "workqueue: WQ_MEM_RECLAIM xenbus"),
        ("pm:pm_runtime_work", "events:flush_me"),
        ("check_flush_dependency+", "flush_work+"),
    ],
    ids=["other-version", "longer-version", "other-queue", "other-target", "other-function"],
)
def test_other_report_is_trouble(old: str, new: str) -> None:
    watch = printed(REPORT.replace(old, new))
    assert watch.known == ()
    assert [finding.name for finding in watch.findings] == ["kernel WARNING"]
    with pytest.raises(GuestTrouble, match="kernel WARNING"):
        watch.check()


def test_report_without_version_is_trouble_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("emu.machine.watch._VERSION_WITHIN", 0.3)
    watch = printed(REPORT.partition("Modules linked in")[0])
    assert not watch.in_trouble
    time.sleep(0.35)
    assert watch.in_trouble


def test_settle_waits_for_the_version() -> None:
    head, mark, rest = REPORT.partition("[  183.446035]")
    watch = Watch()
    console = Console("dom0", watch, lambda data: None)
    console.feed(head.encode())
    reactor().loop.call_soon_threadsafe(
        reactor().loop.call_later, 0.5, console.feed, (mark + rest).encode()
    )
    watch.settle()
    assert [known.name for known, _ in watch.known]


def test_trouble_beside_a_known_report_is_reported() -> None:
    watch = printed(REPORT + "[  190.000000] BUG: kernel NULL pointer dereference, address: 0\n")
    assert [finding.name for finding in watch.findings] == ["kernel BUG"]
    assert len(watch.known) == 1


def test_every_entry_says_why() -> None:
    for known in known_reports.KNOWN_REPORTS:
        assert known.kernels
        assert known.reason


CONFTEST = """
from pathlib import Path
from types import SimpleNamespace
import pytest
from emu.machine.console import Console
from emu.reactor import reactor
from emu.machine.watch import Watch
from emu.pytestplugin import reports

@pytest.fixture
def met(request):
    watch = Watch()
    Console("dom0", watch, lambda data: None).feed(Path({path!r}).read_bytes())
    reactor().call(lambda: None)
    stack = SimpleNamespace(machine=SimpleNamespace(watch=watch, remark=print))
    reports.add_known(request.node, [stack])
"""


def test_known_reports_are_in_the_summary(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(CONFTEST.format(path=str(TRANSCRIPT)))
    pytester.makepyfile(
        "def test_one(met): pass\ndef test_two(met): assert False\ndef test_three(): pass\n"
    )
    output = pytester.runpytest_subprocess("-n", "2").stdout.str()
    assert (
        "known kernel report in 2 tests: iSCSI log-out flushes pm_runtime_work "
        "(Linux 6.1.192, dom0)" in output
    )
    assert "known kernel report: iSCSI log-out flushes pm_runtime_work: a log-out" in output
