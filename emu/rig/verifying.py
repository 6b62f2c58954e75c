"""Verified I/O in a domU, judged by the LUN: the guest's account against the LUN's records."""

from __future__ import annotations

import contextlib
import errno
import itertools
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

from emu.channel.channel import Channel, CommandTimeout
from emu.deadline import poll_moving
from emu.errors import EmuError, GuestError, NotHeld, RigError
from emu.rig.lun import RigLun
from emu.xen import ioledger
from emu.xen.account import Asked, IoAccount, parse_account
from emu.xen.ioledger import IoLedger
from emu.xen.requests import Records

ENDED_WITHIN = 30.0
"""Seconds in which one more of a guest's requests is answered, or it is taken for lost."""
MOVES_WITHIN = 10.0
"""So many times as long it may take in all, as long as it moves: on a machine that is busy."""
_LOOK = 5.0
"""Seconds between two looks at requests that are to end; the guest looks all the time."""
_START = """
echo none > /sys/block/$1/queue/scheduler
device=/dev/$1
shift
exec emu-io $device "$@"
"""
_ENDED = "[ ! -e /proc/$1/exe ]"  # a zombie has no executable any more
_numbers = itertools.count(1)


@dataclass(frozen=True)
class Load:
    """What the guest asks for: `outstanding` requests of `size` bytes at any time, each on one
    of `blocks` blocks (0: twice as many) with a gap of their size between them; `reads` per
    cent of them reads, of blocks written before; `rate` a second at most (0: as many as go).
    """

    outstanding: int = 32
    size: int = 4096
    blocks: int = 0
    reads: int = 30
    rate: int = 0

    def words(self) -> list[str]:
        """As emu-io takes it."""
        return [
            f"outstanding={self.outstanding}",
            f"bytes={self.size}",
            f"blocks={self.blocks}",
            f"reads={self.reads}",
            f"rate={self.rate}",
        ]


class Guest(Protocol):
    """A domU that I/O is done in; its channel is another one after it was restored."""

    @property
    def name(self) -> str: ...

    @property
    def channel(self) -> Channel: ...


class VerifyingIo:
    """A running emu-io. `ledger` is the outcome, once the context has ended."""

    def __init__(
        self, domu: Guest, lun: RigLun, disk: str, *, start: int, mark: int, process: int, file: str
    ) -> None:
        self.domu = domu
        self.lun = lun
        self.disk = disk
        self.start = start
        """The byte of the LUN that is the disk's first."""
        self.mark = mark
        """The number of the LUN's first request that may be its own."""
        self.ledger: IoLedger | None = None
        self._process = process
        self._file = file

    def account(self) -> IoAccount:
        """The guest's account, up to now."""
        # gzip: a channel into a domU is slow.
        packed = self.domu.channel.run(f"emu-io show {self._file} | gzip -c", timeout=60).stdout
        try:
            return parse_account(zlib.decompress(packed, zlib.MAX_WBITS | 16))
        except zlib.error as error:
            raise GuestError(f"the guest's account came damaged: {error}") from None

    def records(self) -> Records:
        """What the LUN served since this was begun."""
        return self.lun.requests(self.mark)

    def await_answers(self, number: int, timeout: float = ENDED_WITHIN) -> None:
        """Wait until the guest has got answers to `number` more of its requests.

        `timeout`, in seconds before scaling, is for one more. Raises NotHeld.
        """
        before = self.answered()
        moving = poll_moving(
            lambda: self.answered() - before,
            "the guest's requests to be answered",
            until=lambda answers: answers >= number,
            still=timeout,
            within=timeout * MOVES_WITHIN,
            pause=0.1,
        )
        if moving.value < number:
            raise NotHeld(
                f"domU {self.domu.name} got {moving.value} answers on {self.disk} of {number} in "
                f"{moving.spent:.0f} s: {moving}",
                lines=self._pending(),
            )

    def stop(self) -> IoAccount:
        """Let it ask for no more, and wait until all it asked for is answered; its account.

        Raises NotHeld with what is not, in the guest and at the LUN.
        """
        what = "the guest's requests to be answered"
        self.domu.channel.run(["kill", "-TERM", str(self._process)], timeout=10, check=False)

        def left() -> int | None:
            """How many are in flight; None when emu-io has ended."""
            with contextlib.suppress(CommandTimeout):
                self.domu.channel.wait_until(_ENDED, what, _LOOK, str(self._process))
                return None
            return len(self.account().in_flight)

        moving = poll_moving(
            left,
            what,
            until=lambda number: number is None,
            still=ENDED_WITHIN,
            within=ENDED_WITHIN * MOVES_WITHIN,
        )
        account = self.account()
        if moving.value is not None:
            raise NotHeld(
                f"{len(account.in_flight)} requests of domU {self.domu.name} on {self.disk} were "
                f"not answered in {moving.spent:.0f} s: {moving}",
                lines=[*map(_line, account.in_flight[:6]), *self._pending()],
            )
        if account.state == "full":
            raise RigError(f"the account of the I/O of domU {self.domu.name} is full")
        if account.state != "stopped":
            why = f": {errno.errorcode.get(account.error, account.error)}" if account.error else ""
            raise NotHeld(
                f"the I/O of domU {self.domu.name} on {self.disk} did not go on to its end: emu-io "
                f"is {account.state}{why}",
                lines=self._pending(),
            )
        return account

    def judge(self, account: IoAccount, *, may_fail: bool = False) -> IoLedger:
        """Compare the guest's account with the LUN; NotHeld where they differ, or where
        requests failed and may not."""
        account = replace(account, start=self.start + account.start)
        sums = self.lun.sums(0, -(-account.end // self.lun.lun.sector))
        ledger = self.ledger = ioledger.compare(account, self.records(), sums)
        if not ledger.held:
            raise NotHeld(
                f"{self.disk} of domU {self.domu.name}: {ledger.summary()}", lines=ledger.table()
            )
        if ledger.failed and not may_fail:
            raise NotHeld(
                f"{len(ledger.failed)} requests of domU {self.domu.name} on {self.disk} failed",
                lines=map(_line, ledger.failed[: ioledger.SHOWN]),
            )
        return ledger

    def answered(self) -> int:
        """How many of its requests the guest has got answers to, up to now."""
        account = self.account()
        return len(account.asked) - len(account.in_flight)

    def _pending(self) -> list[str]:
        pending = self.lun.outstanding()
        return [f"at LUN {self.lun.name} {len(pending)} requests are outstanding"] + [
            f"{each.operation} of {each.blocks} blocks from {each.lba} on, {each.state}"
            for each in pending[:6]
        ]


@contextlib.contextmanager
def verifying_io(
    domu: Guest, lun: RigLun, disk: str, load: Load, *, start: int = 0, may_fail: bool = False
) -> Iterator[VerifyingIo]:
    """Verified I/O while the body runs; then everything is compared. The disk's first byte is
    byte `start` of the LUN.

    Raises NotHeld naming what was lost, doubled or wrong, what failed (unless `may_fail`), or
    what was never answered.
    """
    file = f"/run/emu-io.{next(_numbers)}"
    seed = time.monotonic_ns() & 0xFFFFFFFF  # no run finds what another left
    words = ["sh", "-c", _START, "sh", disk, file, f"seed={seed}", *load.words()]
    mark = lun.mark()
    started = domu.channel.run(words, timeout=30)
    process = int(started.text)
    io = VerifyingIo(domu, lun, disk, start=start, mark=mark, process=process, file=file)
    try:
        yield io
    except BaseException:
        with contextlib.suppress(EmuError):
            domu.channel.run(["kill", "-TERM", started.text.strip()], timeout=10, check=False)
        raise
    account = io.stop()
    io.judge(account, may_fail=may_fail)
    # It is the guest's memory, and more the longer this ran: a leak to whoever counts pages.
    domu.channel.run(["rm", file], timeout=20)


def _line(asked: Asked) -> str:
    what = "write" if asked.writes else "read"
    if asked.result is None:
        return f"{what} of block {asked.block}, generation {asked.generation}: no answer"
    error = errno.errorcode.get(-asked.result, str(asked.result))
    return f"{what} of block {asked.block}, generation {asked.generation}: {error}"
