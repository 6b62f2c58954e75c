"""What a driver owes when one of its calls fails: a word of it, no hang, no leak, and a next time.

sweep = Sweep(domu, "back", module, parameters={"max_queues": 2})
sweep.run(cases_of(sweep.normal()))
check(sweep)
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from disk_by_hand import KEEPS, DiskByHand, States
from failing_calls import Call, FailingCalls
from failure_cases import Case

from emu.channel.channel import CommandTimeout
from emu.deadline import Deadline, poll
from emu.errors import NotHeld, RigError
from emu.images.modules import End
from emu.rig import FIRST_DISK, Ledger, RigDomu
from emu.rig.kernel_log import KernelLog
from emu.xen import granted, memory
from emu.xen.drivers import BACK, FRONT, unload
from emu.xen.memory import Memory

MODULE: Mapping[End, str] = {"front": FRONT, "back": BACK}
DISK_WITHIN = 15.0
"""Seconds from Connected until the domU has the disk."""
USED_WITHIN = 30.0
GIVEN_BACK_WITHIN = 8.0
SAID_WITHIN = 3.0
IO_FAILS = "I/O fails"
_TROUBLE = {0: "", 3: IO_FAILS, 4: "the data read is not the data written"}

_MAKE = "for name in a b; do dd if=/dev/urandom of=/tmp/$name bs=1M count=1 2> /dev/null; done"
_USE = """
dd if=/tmp/$1 of=/dev/$2 bs=1M oflag=direct conv=fsync 2> /dev/null || exit 3
dd if=/dev/$2 bs=1M count=1 iflag=direct 2> /dev/null > /tmp/read || exit 3
cmp -s /tmp/$1 /tmp/read || exit 4
"""
OPTIONAL: Mapping[End, frozenset[str]] = {
    "front": frozenset({"feature-persistent"}),
    "back": frozenset(
        {
            "discard-alignment", "discard-granularity", "discard-secure", "feature-barrier",
            "feature-discard", "feature-flush-cache", "feature-max-indirect-segments",
            "max-ring-page-order", "max-ring-pages", "multi-queue-max-queues",
            "physical-sector-size",
        }
    ),
}  # fmt: skip
"""Keys that an end need not have written for both to connect."""
_READ = "xenbus_read_unsigned"
"""It has a default, which is as good."""
_XENSTORE = ("xenbus_scanf", "xenbus_read", "xenbus_printf", "xenbus_transaction_start")
_CONNECTION = re.compile(r"ring-ref|event-channel|queue-\d|ring-page-order|num-ring-pages")
_USUAL = re.compile(
    r"using \d+ queues|connected: ring|prepare for reconnect|xenbus_dev_probe on"
    r"|probe with driver vbd failed|xenbus: device forcefully removed|xenbus: resume failed|PM: "
    r"|persistent grants: |VBD Resize|capacity|Modules linked in"
)
"""What both drivers and the bus log whatever happens."""
_OURS = re.compile(
    r"\bvbd |blkback|blkfront|blkif|xen_blk|xvd|vbd_create|offer_ring_pages|xen_blkbk"
)


Action = Callable[["Sweep"], "Outcome"]
Standing = tuple[frozenset[int], Memory, Memory]


@dataclass(frozen=True)
class Outcome:
    """How an attempt to give a disk and to use it ended."""

    states: States
    disk: bool = False
    trouble: str = ""
    """What is wrong with a disk that is there, or with ends that wait for ever."""

    @property
    def works(self) -> bool:
        return self.disk and not self.trouble

    def __str__(self) -> str:
        return f"{self.states}: {self.trouble}" if self.trouble else str(self.states)


class Sweep:
    """Attaches the host's LUN to a domU again and again; each time one call of an end fails.

    `parameters` are those the end's driver was loaded with.
    """

    def __init__(
        self,
        domu: RigDomu,
        end: End,
        module: Path,
        disk: DiskByHand | None = None,
        parameters: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        self.domu = domu
        self.end = end
        self.calls = FailingCalls(lambda: domu.channel_of(end), MODULE[end], module)
        self.disk = disk or DiskByHand(domu)
        self.ledger = Ledger(domu.host)
        self.round = 0
        self._log = KernelLog(lambda: domu.channel_of(end))
        self._requests = KernelLog(lambda: domu.channel)
        self.parameters = parameters
        self.once: set[str] = set()
        self.wrong: list[str] = []
        domu.run(_MAKE)
        self.ledger.settle_at_once()
        self.before, self.standing = self.ledger.take(), self._standing()

    def normal(self, then: Action | None = None) -> list[Call]:
        """The calls of a disk that is attached, used and detached, when none fails.

        With `then`, those of what is done with an attached disk. What is called for the first
        disk only is called again by a driver that is loaded anew.
        """
        made = self._made(then)
        again = {call.site for call in self._made(then)}
        self.once = {call.site for call in made} - again
        return made

    def _made(self, then: Action | None) -> list[Call]:
        self._log.mark()
        self.calls.watch()
        outcome = self.attach()
        if then is not None and outcome.works:
            self.calls.watch()
            outcome = then(self)
        made = self.calls.made()
        kept = self.disk.take()
        if not outcome.works or kept:
            raise NotHeld(f"with no call that fails: {outcome}, {kept}")
        if not made:
            raise RigError(f"no call of {MODULE[self.end]} was counted")
        return made if then is not None else self.calls.made()

    def run(
        self,
        cases: Iterable[Case],
        then: Action | None = None,
        *,
        io_fails: Callable[[Case], bool] = lambda case: False,
        every: int = 1,
    ) -> None:
        """Judge each case; what is wrong is in `wrong`, a line for each.

        With `then` the call fails in what is done with a disk that is attached. `io_fails`: for
        which of them a request may end with an error. After `every` so many cases the next disk
        has to work, and nothing may be left behind.
        """
        tried: list[Case] = []
        spoilt = False
        for case in cases:
            tried.append(case)
            worked = self._judge(case, then, io_fails(case))
            if any(KEEPS in line for line in self.wrong):
                self.wrong.append("no other call was tried after that")
                return
            spoilt = spoilt or not worked
            if len(tried) >= every:
                self._look_after(tried, spoilt)
                tried, spoilt = [], False
        if tried:
            self._look_after(tried, spoilt)
        if not self.wrong:
            self.ledger.settled(self.before)

    def _look_after(self, tried: Sequence[Case], spoilt: bool) -> None:
        """The next disk works if none did, and nothing is left behind."""
        which = "; ".join(map(str, tried))
        if spoilt:
            again = self.attach()
            kept = self.disk.take()
            if not again.works or kept:
                self._note(which, f"the next disk does not work: {again}, {kept}")
        if left := self._left(self.standing):
            self._note(which, f"left behind: {', '.join(left)}")
            self.standing = self._standing()

    def _note(self, which: Case | str, word: str) -> None:
        print(f"    {word}", flush=True)
        self.wrong.append(f"{which}: {word}")

    def _left(self, before: Standing) -> list[str]:
        """What both kernels and the grant table have more than before, and keep."""
        until = Deadline("all to be given back", GIVEN_BACK_WITHIN)
        return poll(lambda: _more(before, self._standing()), until, until=lambda left: not left)

    def _standing(self) -> Standing:
        """What is quick to read: grants of the domU, its and dom0's interrupts and threads."""
        domu, dom0 = self.domu, self.domu.host.dom0
        table = granted.read_table(dom0, domu.domain.domid)
        refs = table.refs if table else frozenset()
        own = self.ledger.own
        return refs, own(memory.read_standing(dom0)), own(memory.read_standing(domu.channel))

    def _judge(self, case: Case, then: Action | None, io_fails: bool) -> bool:
        """Try what is wrong when this call fails; whether the disk worked nevertheless."""
        if case.call.site in self.once:
            self.domu.load(self.end, "patched", **self.parameters)
        if then is not None and not (outcome := self.attach()).works:
            self._note(case, f"no disk before it: {outcome}")
            return False
        self.calls.fail(case.call, case.nth, case.error)
        outcome = then(self) if then is not None else self.attach()
        self._await_a_word(outcome)
        publishes = case.call.caller == "talk_to_blkback" and case.call.function in _XENSTORE
        half = self._half_written() if publishes and not (then or outcome.disk) else []
        revived = self._revived(case)
        # A device whose probe has failed has no driver, which could close it. And when
        # physical-device can be read at a second look, the front end may have closed before:
        # it says nothing more that the back end could close for.
        unanswered = case.call.caller.endswith("_probe") or case.call.key == "physical-device"
        words = self.disk.take(answered=not unanswered)
        if not self.calls.has_failed():
            self.calls.watch()
            # How many requests there are is not the same each time.
            if case.nth == 1:
                words.append(f"there was no such call; {outcome}")
        said = self.said()
        self._log.mark()
        print(f"{case}: {outcome}; {said}", flush=True)
        failed = self._failed_requests()
        if outcome.works and failed and not io_fails:
            words.append(f"{IO_FAILS}: {failed}")
        for word in [*words, *revived, *half, *self._judged(case, outcome, said, io_fails)]:
            self._note(case, word)
        return outcome.works

    def _revived(self, case: Case) -> list[str]:
        """An end that logs that it is connected after it has given up."""
        # The state that failed may be one that comes after the connection, and
        # physical-device is looked at once more when it is written.
        if case.call.function == "xenbus_switch_state" or case.call.key == "physical-device":
            return []
        if self._is_needless(case.call):
            return []
        given_up = ""
        for line in self._log.lines():
            if self._is_error(line):
                given_up = line
            elif given_up and "connected: ring" in line:
                return [f"the {self.end} end gave up ({given_up}), and connected ({line})"]
        return []

    def _half_written(self) -> list[str]:
        """Keys of a front end that has given up, and so has taken back all of them."""
        tree = self.domu.domain.front_tree()
        keys = (path.removeprefix(f"{tree.root}/") for path in tree.values)
        half = sorted(key for key in keys if _CONNECTION.match(key))
        return [f"the front end gave up, and left {', '.join(half)}"] if half else []

    def _is_needless(self, call: Call) -> bool:
        """Whether a disk can do without what this call does."""
        unwritten = call.function == "xenbus_printf" and call.key in OPTIONAL[self.end]
        return call.function == _READ or unwritten

    def _is_error(self, line: str) -> bool:
        """Whether an end's driver says of its device that something failed, with its number."""
        device = re.escape(self.domu.device(self.end))
        return re.search(rf"vbd {device}: \d+ ", line) is not None

    def _judged(
        self, case: Case, outcome: Outcome, said: Sequence[str], io_fails: bool
    ) -> Iterator[str]:
        call = case.call
        needless = self._is_needless(call)
        if needless and not outcome.works:
            yield f"the disk can do without, but does not: {outcome}"
        if not outcome.disk and not said:
            yield f"{outcome}: the {self.end} end said nothing"
        if outcome.trouble and not (io_fails and outcome.trouble == IO_FAILS):
            yield f"{outcome}, and the {self.end} end logged {said}"
        errors = list(filter(self._is_error, said))
        if outcome.works and errors and not needless and not _is_reported_alone(call):
            yield f"the disk works, though the {self.end} end gave it up: {errors}"
        failed = f": {errno.EIO} "
        # Where there is no virtual-device there may be virtual-device-ext.
        told = call.function in _XENSTORE and call.key != "virtual-device"
        if errors and told and failed not in errors[0]:
            yield f"EIO, which it was, is logged as another error: {errors[0]}"
        if len(errors) > 1:
            yield f"one failure, {len(errors)} errors: {errors}"

    def attach(self) -> Outcome:
        """Give the disk, and use it; how that ended."""
        return self.used(self.disk.give(self.domu.host.lun))

    def used(self, states: States) -> Outcome:
        """Use a disk whose ends have come as far as this; how that ended."""
        if not states.connected:
            return Outcome(states, trouble="" if states.closed else "they wait for ever")
        try:
            self.domu.channel.wait_until("[ -b /dev/$1 ]", "the disk", DISK_WITHIN, FIRST_DISK)
        except CommandTimeout:
            states = self.disk.states()
            return Outcome(states, trouble="" if states.closed else "there is no disk")
        self.round += 1
        words = ["sh", "-c", _USE, "sh", "ab"[self.round % 2], FIRST_DISK]
        try:
            status = self.domu.channel.run(words, timeout=USED_WITHIN, check=False).status
        except CommandTimeout:
            return Outcome(states, True, "a request is never answered")
        return Outcome(states, True, _TROUBLE.get(status or 0, f"status {status}"))

    def _failed_requests(self) -> list[str]:
        """What the domU's block layer logged of requests that failed, since it was asked last."""
        lines = self._requests.lines(f"I/O error, dev {FIRST_DISK}")
        self._requests.mark()
        return lines

    def _await_a_word(self, outcome: Outcome) -> None:
        """A console may be slower than xenstore."""
        if not outcome.disk:
            poll(self.said, Deadline("a word in the log", SAID_WITHIN))

    def said(self) -> list[str]:
        """What the end's driver logged for this case, but what it always does."""
        return _unusual(self._log.lines())


def _is_reported_alone(call: Call) -> bool:
    """Whether a disk goes on that reports this call: the state that ends one which is taken away
    has to fail, too; a capacity that has changed, and can't be read, stays what it was.
    """
    return call.function == "xenbus_switch_state" or (
        (call.function, call.key) == ("xenbus_scanf", "sectors")
    )


def _unusual(lines: Iterable[str]) -> list[str]:
    return [line for line in lines if _OURS.search(line) and not _USUAL.search(line)]


def _more(before: Standing, now: Standing) -> list[str]:
    words = [f"grant {ref}" for ref in sorted(now[0] - before[0])]
    for then, guest in zip(before[1:], now[1:], strict=True):
        words += [f"{each.what} of {each.owner}" for each in memory.risen(then, guest)]
    return words


def check(sweep: Sweep) -> None:
    """Nothing was wrong with any case, and both drivers can be unloaded."""
    assert not sweep.wrong, "\n".join(sweep.wrong)
    unload(sweep.domu.channel, FRONT)
    unload(sweep.domu.host.dom0, BACK)
