"""Which calls of a driver are to fail, one after the other."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from failing_calls import Call


@dataclass(frozen=True)
class Case:
    """The `nth` call from one place fails; with -`error` if that is not 0."""

    call: Call
    nth: int
    error: int = 0

    def __str__(self) -> str:
        number = f", call {self.nth} of {self.call.count}," if self.call.count > 1 else ""
        how = f" with {errno.errorcode[self.error]}" if self.error else ""
        return f"{self.call}{number} failed{how}"


def cases_of(calls: Iterable[Call], most: int = 1) -> Iterator[Case]:
    """Of the calls from each place the first, then the last, then some between: `most` at most.

    A transaction also ends because another has changed what it read: it is to be tried again.
    """
    seen: set[str] = set()
    for call in calls:
        # Some allocators end in a jump to another, which returns to the same place.
        if call.site in seen:
            continue
        seen.add(call.site)
        number = min(most, call.count)
        for nth in {1 + index * (call.count - 1) // max(1, number - 1) for index in range(number)}:
            yield Case(call, nth)
        if call.function == "xenbus_transaction_end":
            yield Case(call, 1, errno.EAGAIN)
