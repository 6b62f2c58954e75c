"""The LUN server's remote control: dom0's emu-lun, one command each.

The server is guest-images/handler/, which tcmu-runner runs; its verbs are in verbs.c.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from emu.channel.channel import Channel
from emu.errors import InputError, RigError
from emu.xen import requests
from emu.xen.lun import Lun
from emu.xen.requests import Pending, Records

Kinds = Literal["all", "reads", "writes", "flushes", "unmaps", "write-sames"]
"""Sets of operations; unmaps and write-sames are writes, too."""
KINDS = get_args(Kinds)
_SLACK = 30.0
"""Seconds that a command may take beside what it waits for."""


@dataclass(frozen=True)
class LunServer:
    """One LUN of a dom0, by the commands of its server."""

    lun: Lun
    dom0: Channel

    def hold(self, kinds: Kinds = "all", after: int = 0) -> None:
        """Hold requests that come from now on, the first `after` of these kinds excepted."""
        self._command("hold", kinds=_known(kinds), **{"from": _counted("after", after)})

    def release(self, count: int | None = None) -> None:
        """Serve what is held, in the order it came, and hold no more; or the first `count` of
        it alone, and go on holding."""
        words = {} if count is None else {"count": _counted("count", count)}
        self._command("release", **words)

    def delay(self, ms: int, kinds: Kinds = "all") -> None:
        """Serve requests `ms` milliseconds after they came, any number at a time; 0 ends it."""
        self._command("delay", ms=_counted("ms", ms), kinds=_known(kinds))

    def fail(
        self,
        first: int = 0,
        blocks: int | None = None,
        *,
        kinds: Kinds = "all",
        rate: float = 1.0,
        seed: int = 0,
        times: int = 0,
    ) -> None:
        """Answer requests that touch `blocks` blocks from `first` on (None: all the LUN) with
        HARDWARE ERROR, which dom0 does not try again, and do nothing of them.

        `rate` of them, drawn with `seed`; `times` at most (0: always), until `clear`. Whoever asked
        gets the error, of each operation, at once or after it was held or delayed. One error dom0's
        kernel makes good itself: where a write-same fails for a BLKZEROOUT, blkdev_issue_zeroout()
        of Linux 6.1 (block/blk-lib.c) writes the zeros, and fails only if that does; that of 6.12
        and newer fails. A domU sends no write-same: blkif has no such request.
        """
        if not 0 < rate <= 1:
            raise InputError(f"a rate of {rate} is not above 0 and up to 1")
        rule = {"per_million": max(1, round(rate * 1e6)), "seed": seed, "times": times}
        counted = {name: _counted(name, number) for name, number in rule.items()}
        self._command("fail", kinds=_known(kinds), **_range(first, blocks), **counted)

    def tear(
        self,
        sectors: int,
        first: int = 0,
        blocks: int | None = None,
        *,
        answer: Literal["good", "error"] = "good",
        times: int = 0,
    ) -> None:
        """Let only the first `sectors` sectors of writes in a range reach the LUN, and give
        `answer`. 0 sectors and "good": a write that is lost."""
        if answer not in ("good", "error"):
            raise InputError(f"a torn write is answered with good or error, not {answer!r}")
        rule = {"sectors": _counted("sectors", sectors), "times": _counted("times", times)}
        self._command("tear", answer=answer, **_range(first, blocks), **rule)

    def clear(self) -> None:
        """End what `fail`, `tear` and `delay` began; what is held stays held."""
        self._command("clear")

    def outstanding(self) -> tuple[Pending, ...]:
        """The requests that the LUN has not answered, in the order they came."""
        return requests.parse_pending(self._request("list"))

    def wait_outstanding(
        self, at_least: int = 0, at_most: int | None = None, timeout: float = 30.0
    ) -> int:
        """Wait until that many requests are outstanding; how many are, in time or not.

        `timeout` in seconds before scaling.
        """
        words: dict[str, int] = {"at_least": at_least, "timeout_ms": int(timeout * 1000)}
        if at_most is not None:
            words["at_most"] = at_most
        return requests.parse_answer(self._request("wait", words, timeout))[0]["outstanding"]

    def mark(self) -> int:
        """The number that the next request to be served will have."""
        return self._status()["next"]

    def requests(self, since: int = 0) -> Records:
        """What was served from number `since` on, as far as the server kept it."""
        return requests.parse_records(self._request("records", {"since": since}))

    def size(self) -> int:
        """How many bytes it has now."""
        status = self._status()
        return status["size"] * status["sector"]

    def holds(self) -> bool:
        """Whether it holds requests, or will hold some that come."""
        status = self._status()
        return status["hold"] > 0 or status["held"] > 0

    def forget(self) -> None:
        """Let the server drop its records; numbers go on."""
        self._command("forget")

    def sums(self, first: int, blocks: int) -> tuple[int, ...]:
        """The CRC-32 of each block that the LUN's file holds now."""
        return requests.parse_sums(self._request("sums", {"first": first, "blocks": blocks}))

    def _status(self) -> dict[str, int]:
        return requests.parse_answer(self._request("status"))[0]

    def _command(self, verb: str, **words: str | int) -> None:
        requests.parse_answer(self._request(verb, words))

    def _request(self, verb: str, words: Mapping[str, str | int] = {}, wait: float = 0.0) -> bytes:
        argv = ["emu-lun", verb, self.lun.name, *(f"{key}={value}" for key, value in words.items())]
        answer = self.dom0.run(argv, timeout=wait + _SLACK, check=False)
        if answer.status != 0:
            output = answer.stderr.decode(errors="replace").splitlines()
            raise RigError(f"the LUN server refused {' '.join(argv[1:])}", lines=output[-3:])
        return answer.stdout


def _known(kinds: str) -> str:
    if kinds not in KINDS:
        raise InputError(f"{kinds!r} are no kinds of requests: there are {', '.join(KINDS)}")
    return kinds


def _counted(name: str, number: int) -> int:
    if number < 0:
        raise InputError(f"{name} can't be {number}")
    return number


def _range(first: int, blocks: int | None) -> dict[str, int]:
    if not isinstance(first, int):
        raise InputError(f"{first!r} is no number of a block", hint="kinds are named: kinds=…")
    if first < 0 or (blocks is not None and blocks < 1):
        raise InputError(f"{blocks} blocks from {first} on are no blocks")
    return {"first": first} if blocks is None else {"first": first, "last": first + blocks - 1}
