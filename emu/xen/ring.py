"""The ring that a front end and a back end agreed on, from the drivers or their xenstore keys.

Drivers of the series show what ring they have (`emu.xen.queues`); of stock ones there are only
the keys. Grant references and event channels are in the keys alone.
Protocol: Xen's public header io/blkif.h. A ring page holds 32 requests, and the ring's
size is a power of two: (4096 × pages − 64) / 112 rounded down.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from emu.errors import GuestError
from emu.xen.queues import Views
from emu.xen.xenstore import XenstoreTree

PAGE_SIZE = 4096
RING_HEADER = 64
"""Bytes before the first slot: struct blkif_sring's indexes and padding."""
SLOT = 112
"""Bytes of a slot: the larger of a 64-bit request and a response."""
LARGEST_ORDER = 10
"""Far above what any driver takes: a key beyond it is garbage, not a ring to look up."""


def requests_in(pages: int) -> int:
    """How many requests a ring of `pages` pages holds."""
    slots = (pages * PAGE_SIZE - RING_HEADER) // SLOT
    return 1 << (slots.bit_length() - 1)


@dataclass(frozen=True)
class Queue:
    """One queue of a connection: its ring's grant references in order, and its event channel."""

    refs: tuple[int, ...]
    event_channel: int


@dataclass(frozen=True)
class Offer:
    """What a back end offers: a missing key is None, which the protocol reads as one page."""

    order: int | None
    pages: int | None

    @property
    def most_pages(self) -> int:
        """The largest ring both key families allow together."""
        return max(1 << (self.order or 0), self.pages or 1)


@dataclass(frozen=True)
class Ring:
    """A connection as its drivers and its keys show it."""

    front_state: str
    back_state: str
    offer: Offer
    queues: tuple[Queue, ...]
    persistent: bool
    views: Views = field(default_factory=Views)

    @property
    def pages(self) -> int:
        """Pages of one queue's ring: as a driver shows them, else as the keys do."""
        shown = self.views.any_end[0].pages if self.views.any_end else None
        return self.key_pages if shown is None else shown

    @property
    def key_pages(self) -> int:
        """Pages of one queue's ring by the keys, which may be an earlier connection's."""
        return len(self.queues[0].refs)

    @property
    def source(self) -> str:
        """Where `pages` and `requests` come from: "drivers" or "xenstore"."""
        return "drivers" if self.views.any_end else "xenstore"

    @property
    def order(self) -> int:
        """log2 of `pages`."""
        return self.pages.bit_length() - 1

    @property
    def requests(self) -> int:
        """Requests that one queue's ring holds."""
        shown = self.views.any_end[0].size if self.views.any_end else None
        return requests_in(self.pages) if shown is None else shown

    def disagreements(self) -> Iterator[str]:
        """What an end shows of its queues that is not what the keys have, as text."""
        for end, queues in self.views.ends.items():
            if len(queues) != len(self.queues):
                yield f"the {end} end has {len(queues)} queues, the keys {len(self.queues)}"
            for queue in queues:
                name = f"the {end} end's queue {queue.number}"
                if queue.pages not in (None, self.key_pages):
                    yield f"{name} has {queue.pages} pages, the keys {self.key_pages}"
                if queue.size not in (None, requests_in(self.key_pages)):
                    fit = requests_in(self.key_pages)
                    yield f"{name} holds {queue.size} requests, the pages of the keys {fit}"

    @property
    def refs(self) -> tuple[int, ...]:
        """All ring pages' grant references, queue after queue."""
        return tuple(ref for queue in self.queues for ref in queue.refs)

    @property
    def connected(self) -> bool:
        """Whether both ends are Connected."""
        return self.front_state == self.back_state == "Connected"


def negotiated(front: XenstoreTree, back: XenstoreTree, views: Views | None = None) -> Ring:
    """Read the ring out of both ends' directories, and what the drivers show where they do.

    Raises GuestError when the front end has published no complete ring. Old keys are not
    removed by stock drivers, so the order key, where there is one, decides how many
    references belong to the ring, as it does for the back end.
    """
    count = front.integer("multi-queue-num-queues") or 1
    places = [""] if count == 1 else [f"queue-{number}/" for number in range(count)]
    pages = _chosen_pages(front)
    queues = tuple(_queue(front, place, pages) for place in places)
    return Ring(
        front_state=front.state(),
        back_state=back.state(),
        offer=Offer(back.integer("max-ring-page-order"), back.integer("max-ring-pages")),
        queues=queues,
        persistent=back.get("feature-persistent") == "1" == front.get("feature-persistent"),
        views=views or Views(),
    )


def _chosen_pages(front: XenstoreTree) -> int | None:
    order = front.integer("ring-page-order")
    pages = front.integer("num-ring-pages")
    if order is not None:
        if not 0 <= order <= LARGEST_ORDER:
            raise GuestError(f"{front.root}/ring-page-order is {order}: no ring has that order")
        return 1 << order
    if pages is not None and not 1 <= pages <= 1 << LARGEST_ORDER:
        raise GuestError(f"{front.root}/num-ring-pages is {pages}: no ring has that many pages")
    return pages


def _queue(front: XenstoreTree, place: str, pages: int | None) -> Queue:
    names = ["ring-ref"] if pages is None else [f"ring-ref{i}" for i in range(pages)]
    if pages == 1 and front.integer(place + "ring-ref0") is None:
        names = ["ring-ref"]
    refs = [front.integer(place + name) for name in names]
    port = front.integer(place + "event-channel")
    missing = [place + name for name, ref in zip(names, refs, strict=True) if ref is None]
    if port is None:
        missing.append(place + "event-channel")
    if missing or port is None:
        raise GuestError(f"the front end has published no ring: {front.root} lacks {missing[0]}")
    return Queue(tuple(ref for ref in refs if ref is not None), port)
