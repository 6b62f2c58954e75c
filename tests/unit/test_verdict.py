"""Bad patterns against consoles recorded from Xen 4.17 and Debian's Linux 6.1 under QEMU."""

from __future__ import annotations

import concurrent.futures
import re
import threading
import time
from pathlib import Path

import pytest

from emu import deadline
from emu.errors import InputError, RigError
from emu.machine.verdict import _HINTS, BAD_PATTERNS, LINUX, XEN, scan
from emu.machine.watch import Finding, GuestTrouble, WaitTimeout, Watch

TRANSCRIPTS = Path(__file__).parent / "transcripts"


def names(transcript: str) -> list[str]:
    """The findings of a recorded console, each name once, in order."""
    lines = (TRANSCRIPTS / f"console-{transcript}.txt").read_text().splitlines()
    found = [match.name for line in lines if (match := scan(line))]
    return list(dict.fromkeys(found))


@pytest.mark.parametrize("transcript", ["boot-xen", "boot-xen-4.14", "boot-xen-4.20", "boot-dom0"])
def test_healthy_boot_has_no_findings(transcript: str) -> None:
    assert names(transcript) == []


@pytest.mark.parametrize(
    ("transcript", "expected"),
    [
        ("nodom0-xen", ["Xen panic"]),
        ("smap-xen", ["unhandled trap in a guest", "domain crash", "dom0 crash"]),
        ("panic-xen", ["kernel panic", "dom0 crash"]),
        ("panic-dom0", ["kernel panic"]),
        ("noroot-dom0", ["kernel panic"]),
        ("warn-dom0", ["kernel WARNING"]),
        ("bug-dom0", ["kernel BUG"]),
        ("null-dom0", ["kernel BUG", "kernel oops"]),
        ("gpf-dom0", ["kernel oops"]),
        ("segfault-dom0", ["process crash"]),
        ("oom-dom0", ["out of memory", "kernel panic"]),
        ("hung-dom0", ["hung task"]),
        ("soft-dom0", ["soft lockup"]),
        ("lockdep-dom0", ["lockdep report"]),
        ("atomic-dom0", ["sleep in atomic context"]),
        ("leak-dom0", ["kernel memory leak"]),
        ("page-dom0", ["page corruption"]),
        # SLUB prints under a lock, and lockdep comes in before the first line of it.
        ("slab-dom0", ["lockdep report", "slab corruption"]),
        ("redzone-dom0", ["lockdep report", "slab corruption"]),
        ("kasan-u1", ["KASAN report"]),
    ],
)
def test_recorded_trouble_is_named(transcript: str, expected: list[str]) -> None:
    assert names(transcript) == expected


# Not recorded; the printk formats of the named source files, filled in.
FROM_SOURCE = [
    ("(XEN) [ 12.1] Xen BUG at common/grant_table.c:1234", "Xen BUG"),  # xen traps.c
    ("(XEN) Assertion 'rc == 0' failed at arch/x86/mm.c:99", "Xen assertion"),  # xen traps.c
    ("(XEN) FATAL TRAP: vec 14, #PF[0000]", "Xen fatal trap"),  # xen traps.c
    ("(XEN) Watchdog timer detects that CPU0 is stuck!", "Xen watchdog"),  # xen nmi.c
    ("(XEN) Domain 3 (vcpu#0) crashed on cpu#0:", "domain crash"),  # xen domain.c
    ("(XEN) d0v0 Unhandled: vec 14, #PF[0001]", "unhandled trap in a guest"),
    ("(XEN) d0v0 Unhandled page fault fault/trap [#14, ec=0001]", "unhandled trap in a guest"),
    ("(XEN) d2v0 Triple fault - invoking HVM shutdown action 1", "triple fault in a guest"),
    ("[    1.0] BUG: KASAN: use-after-free in a_fn+0x1/0x2 [m]", "KASAN report"),
    ("[    1.0] UBSAN: array-index-out-of-bounds in drivers/a.c:1:2", "UBSAN report"),
    ("[    1.0] kmemleak: 3 new suspected memory leaks (see /sys/k)", "kernel memory leak"),
    ("[    1.0] WARNING: possible circular locking dependency detected", "lockdep report"),
    ("[    1.0] WARNING: suspicious RCU usage", "lockdep report"),
    ("[    1.0] rcu: INFO: rcu_preempt self-detected stall on CPU", "RCU stall"),
    ("[    1.0] rcu: INFO: rcu_sched detected stalls on CPUs/tasks:", "RCU stall"),
    ("[    1.0] Watchdog detected hard LOCKUP on cpu 0", "hard lockup"),
    ("[    1.0] BUG kmalloc-64 (Tainted: G    B ): Poison overwritten", "slab corruption"),
    ("==123==ERROR: AddressSanitizer: heap-use-after-free on address", "sanitizer report"),
]

HARMLESS = [
    "[    0.0] Kernel command line: console=ttyS1 oops=panic panic=1",
    "[    0.0] kmemleak: Kernel memory leak detector initialized (mem pool available: 15840)",
    "[    0.0] kasan: KernelAddressSanitizer initialized",
    "[    0.0] rcu: Preemptible hierarchical RCU implementation.",
    "[    0.0] Spectre V2 : WARNING: Unprivileged eBPF is enabled with eIBRS on!",
    "WARNING: this is a program talking",
    "(XEN) Platform timer appears to have unexpectedly wrapped 1 times.",
]


@pytest.mark.parametrize(("line", "name"), FROM_SOURCE)
def test_trouble_from_the_sources_is_named(line: str, name: str) -> None:
    match = scan(line)
    assert match is not None
    assert match.name == name


@pytest.mark.parametrize("line", HARMLESS)
def test_harmless_lines_pass(line: str) -> None:
    assert scan(line) is None


def test_patterns_of_xen_do_not_match_on_a_domus_console() -> None:
    line = "(XEN) Panic on CPU 0:"
    assert scan(line, {LINUX}) is None
    assert scan(line, {XEN}) is not None


def test_hints_match_every_pattern() -> None:
    lines = [line for line, _ in FROM_SOURCE]
    for path in TRANSCRIPTS.glob("console-*.txt"):
        lines += path.read_text().splitlines()
    for line in lines:
        if any(re.search(pattern.regex, line) for pattern in BAD_PATTERNS):
            assert _HINTS.search(line), line


class Said:
    """A quiet console with these lines."""

    def __init__(self, name: str, *lines: str) -> None:
        self.name = name
        self.lines = lines

    def around(self, number: int, before: int, after: int) -> list[str]:
        return list(self.lines[max(0, number - before - 1) : number + after])

    def last_lines(self, count: int) -> list[str]:
        return list(self.lines[-count:])

    def idle(self) -> float:
        return 10.0


def finding(name: str, guest: str = "dom0", console: str = "dom0", number: int = 1) -> Finding:
    return Finding(name, guest, console, f"a line with {name}", 1.5, number)


def later(seconds: float, function: object, *args: object) -> None:
    timer = threading.Timer(seconds, function, args)  # type: ignore[arg-type]
    timer.daemon = True
    timer.start()


@pytest.mark.usefixtures("unscaled")
def test_trouble_ends_a_wait_with_its_name_and_the_lines_around() -> None:
    watch = Watch()
    watch.add(Said("dom0", "one", "kernel BUG at a.c:1", "Call Trace:"))
    later(0.1, watch.report, finding("kernel BUG", number=2))
    began = time.monotonic()
    with pytest.raises(GuestTrouble) as caught:
        watch.wait(threading.Event(), "the login prompt", 60)
    assert time.monotonic() - began < 2
    assert (
        caught.value.message == "dom0: kernel BUG while waiting for the login prompt (0 s of 60 s)"
    )
    assert caught.value.lines == ("one", "kernel BUG at a.c:1", "Call Trace:")
    assert caught.value.finding.name == "kernel BUG"
    with pytest.raises(GuestTrouble, match=r"dom0: kernel BUG 1\.5 s after start"):
        watch.check()


def test_wait_that_times_out_shows_the_last_lines() -> None:
    watch = Watch()
    watch.add(Said("dom0", "Starting udev"))
    watch.add(Said("xen", "not of interest"))
    with pytest.raises(WaitTimeout) as caught:
        watch.wait(threading.Event(), "the LUN", 0.1, console="dom0")
    assert caught.value.message == "dom0: waited 0 s for the LUN; last lines:"
    assert caught.value.lines == ("Starting udev",)


def test_wait_returns_the_value() -> None:
    watch = Watch()
    future: concurrent.futures.Future[int] = concurrent.futures.Future()
    later(0.1, future.set_result, 7)
    assert watch.wait(future, "seven", 5) == 7
    values = iter([None, None, "x"])
    assert watch.wait(lambda: next(values), "x", 5) == "x"


@pytest.mark.usefixtures("unscaled")
def test_end_of_qemu_ends_a_wait() -> None:
    watch = Watch()
    watch.fail(RigError("QEMU ended (status 1)", lines=["its last words"]))
    with pytest.raises(
        RigError, match=r"QEMU ended \(status 1\) while waiting for it \(0 s of 9 s"
    ):
        watch.wait(threading.Event(), "it", 9)


def test_allowed_findings_are_returned_and_end_no_wait() -> None:
    watch = Watch()
    with watch.allow("kernel WARNING", guest="dom0") as seen:
        watch.report(finding("kernel WARNING"))
        watch.check()
    assert [each.name for each in seen] == ["kernel WARNING"]
    watch.check()
    watch.report(finding("kernel WARNING"))
    with pytest.raises(GuestTrouble):
        watch.check()


def test_allowance_is_for_one_guest_and_one_name() -> None:
    watch = Watch()
    with watch.allow("kernel WARNING", guest="u1"):
        watch.report(finding("kernel WARNING", guest="dom0"))
        watch.report(finding("kernel BUG", guest="u1"))
    assert [each.name for each in watch.findings] == ["kernel WARNING", "kernel BUG"]
    with pytest.raises(ValueError, match="no bad pattern"), Watch().allow("kernel WARNIGN"):
        pass


def test_line_of_dom0_on_both_consoles_counts_once() -> None:
    watch = Watch()
    with watch.allow("kernel WARNING", guest="dom0") as seen:
        watch.report(finding("kernel WARNING", "dom0", "dom0"))
    watch.report(finding("kernel WARNING", "dom0", "xen"))
    assert len(seen) == 1
    watch.check()


def test_expected_finding_must_come() -> None:
    watch = Watch()
    with watch.expect_finding("kernel BUG", timeout=5):
        later(0.2, watch.report, finding("kernel BUG"))
    watch.check()
    with (
        pytest.raises(WaitTimeout, match=r"kernel BUG \(expected\)"),
        watch.expect_finding("kernel BUG", timeout=0.1),
    ):
        pass


def test_timeouts_are_scaled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMU_TIMEOUT_SCALE", "3")
    monkeypatch.setattr(deadline, "_measured", 1.0)
    deadline.set_measured_factor(2)
    assert deadline.Deadline("x", 10).seconds == 60
    monkeypatch.setenv("EMU_TIMEOUT_SCALE", "fast")
    with pytest.raises(InputError, match="EMU_TIMEOUT_SCALE is 'fast'"):
        deadline.scale()
