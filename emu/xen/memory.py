"""The memory ledger: what a kernel holds, in numbers that do not change when nothing leaks.

Taken after each of several equal cycles, they separate a leak from noise: a leak grows by as much
in every cycle, noise goes up and down. emu-memory (guest-images/agent/emu-memory.c) takes them
from a kernel that it has settled first, and adds nothing to what it counts: so measured, most
numbers of an idle guest are the same after every cycle, and one page or object shows.

- Slab objects are those in use, by cache; small ones are in caches that half the kernel uses.
- Pages are those that no counter of the kernel explains: neither free (in a CPU's list
  either), nor a process's or a file's, a slab's, a page table's, or vmalloc's; all from one
  reading of /proc/zoneinfo with the CPUs' deltas folded in. The least of several readings.
- Areas of vmalloc are counted without those that only wait to be unmapped for good.
- Where dom0 maps grants it has addresses without memory behind (drivers/xen/unpopulated-alloc.c,
  Linux 5.9 and later): no counter shows those, and a driver that loses one loses it for good.
"""

from __future__ import annotations

import itertools
import re
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from emu.channel.channel import Channel
from emu.errors import RigError

PROGRAM = "/usr/lib/emu/emu-memory"
"""Prints all but the standing numbers: guest-images/agent/emu-memory.c."""
_STANDING = "grep xen-dyn /proc/interrupts; echo @@; cat /proc/[0-9]*/stat 2> /dev/null || true"
_SCRIPT = f"set -e; {PROGRAM}; echo @@; {_STANDING}"
_KTHREAD = 0x00200000
"""PF_KTHREAD of a task's flags, the ninth field of /proc/<pid>/stat (include/linux/sched.h)."""
_PAGE_KIB = 4
_EXPLAINED = (
    "nr_anon_pages",
    "nr_file_pages",
    "nr_slab_reclaimable",
    "nr_slab_unreclaimable",
    "nr_page_table_pages",
)
_UNSTEADY = frozenset({"vmap_area", "dentry", "filp", "inode_cache", "lsm_inode_cache"})
"""Caches that follow names, open files and lazy unmapping, and not what a driver holds."""

PAGES, AREAS, PERCPU = "pages of the kernel's own", "vmalloc areas", "KiB of per-CPU memory"
PLACES = "pages that grants are mapped at"
SLAB, THREAD, INTERRUPT, PORTS = "objects of ", "kernel thread ", "interrupt ", "event channels"

NO_HANDLER = "that has no handler"
"""An interrupt of the kernel's list that has no name but its chip's."""
MEASURABLE = 5
"""Cycles from which growth shows."""
LEAK_RISES = 0.8
"""The part of the cycles after which a number must be larger than before to be a leak: in five,
one dip or one cycle that hides it may be among them."""
LEAK_EVEN = 0.5
"""The part of the steps that must be about as large as their median: a cache that fills grows
by leaps, a leak by as much each time."""


@dataclass(frozen=True)
class Memory:
    """What one kernel (or Xen) holds at an instant: a name for each number."""

    owner: str
    numbers: Mapping[str, int]


@dataclass(frozen=True)
class Growth:
    """A number that grew, by `slope` from one value to the next (the median)."""

    owner: str
    what: str
    slope: float
    values: tuple[int, ...]

    HEAD = ("where", "what", "each time", "values")

    def cells(self) -> tuple[str, ...]:
        """Its columns as text, under `HEAD`."""
        shown = ", ".join(str(value) for value in self.values)
        return self.owner, self.what, f"{self.slope:+.1f}", shown


def risen(before: Memory, after: Memory) -> Iterator[Growth]:
    """The numbers of one owner that are larger than they were."""
    for name, now in after.numbers.items():
        then = before.numbers.get(name, 0)
        if now > then:
            yield Growth(after.owner, name, now - then, (then, now))


def growth(cycles: Sequence[Sequence[Memory]]) -> tuple[Growth, ...]:
    """What leaks: numbers that grow with every cycle. Each item is what was taken after one
    cycle, of all owners, `MEASURABLE` cycles at least.
    """
    return tuple(each for each in rising(cycles) if _even(each))


def rising(cycles: Sequence[Sequence[Memory]]) -> tuple[Growth, ...]:
    """What may leak: numbers that grow with nearly every cycle, but it may be by leaps.

    What serves the LUN keeps the room of each request that it had at once with others (measured:
    16 pages for 64 KiB): on a busy machine that is several leaps, in any cycle.
    """
    if len(cycles) < MEASURABLE:
        raise ValueError(f"{len(cycles)} cycles show no trend: {MEASURABLE} at least")
    found: list[Growth] = []
    for owner in dict.fromkeys(memory.owner for each in cycles for memory in each):
        taken = [memory.numbers for each in cycles for memory in each if memory.owner == owner]
        for name in dict.fromkeys(name for numbers in taken for name in numbers):
            values = tuple(numbers.get(name, 0) for numbers in taken)
            steps = _steps(values)
            if sum(step > 0 for step in steps) >= LEAK_RISES * len(steps):
                # The median: a leap of something else, or a dip and what makes up for it, is
                # not what each cycle did.
                found.append(Growth(owner, name, statistics.median(steps), values))
    return tuple(found)


def _even(growth: Growth) -> bool:
    steps, slope = _steps(growth.values), growth.slope
    even = sum(abs(step - slope) <= max(1.0, slope / 4) for step in steps)
    return even >= LEAK_EVEN * len(steps)


def _steps(values: Sequence[int]) -> list[int]:
    return [now - then for then, now in itertools.pairwise(values)]


def parse(text: str, owner: str) -> Memory:
    """Read what the sampling script printed. Raises RigError for anything of another form."""
    parts = text.split("@@\n")
    if len(parts) != 6:
        raise RigError(f"{owner}: the memory ledger's script printed {len(parts)} parts, not 6")
    slabs, areas, unpopulated, zones, interrupts, tasks = parts
    numbers: dict[str, int] = {}
    for name, active in re.findall(r"^([^\s#]\S*)\s+(\d+)\s+\d+\s+\d+\s+\d+", slabs, re.M):
        if name not in _UNSTEADY and not name.endswith("_inode_cache"):
            numbers[f"{SLAB}{name}"] = int(active)
    numbers |= _standing(interrupts, tasks)
    try:
        numbers[AREAS] = int(areas)
        numbers[PAGES] = min(_own_pages(reading) for reading in zones.split("@\n") if reading)
        if unpopulated:
            numbers[PLACES] = _device_pages(zones.split("@\n")[0]) - int(unpopulated)
    except (KeyError, ValueError) as error:
        raise RigError(f"{owner}: /proc shows no {error}") from None
    if percpu := re.search(r"^Percpu:\s+(\d+) kB", zones, re.M):
        numbers[PERCPU] = int(percpu[1])
    return Memory(owner, numbers)


def _standing(interrupts: str, tasks: str) -> Counter[str]:
    words = (line.split()[-1] for line in interrupts.splitlines())
    names = (NO_HANDLER if word == "-event" else word for word in words)
    return Counter(_threads(tasks)) + Counter(INTERRUPT + name for name in names)


def _threads(tasks: str) -> Iterator[str]:
    for name, rest in re.findall(r"^\d+ \((.*)\) \S (.*)$", tasks, re.M):
        # Workers come and go by need; a back end's thread has its domain's number in front.
        if int(rest.split()[5]) & _KTHREAD and not name.startswith("kworker"):
            yield THREAD + re.sub(r"^\d+\.", "N.", name)


def _own_pages(zones: str) -> int:
    counted: Counter[str] = Counter()
    for name, count in re.findall(r"^\s+(\w+:?)\s+(\d+)$", zones, re.M):
        counted[name] += int(count)
    free = sum(int(count) for count in re.findall(r"pages free\s+(\d+)", zones))
    vmalloc = re.search(r"^VmallocUsed:\s+(\d+) kB", zones, re.M)
    if vmalloc is None:
        raise KeyError("VmallocUsed")
    # "count:" is a CPU's list of free pages, one for each zone.
    explained = sum(counted[name] for name in (*_EXPLAINED, "count:"))
    return counted["managed"] - free - explained - int(vmalloc[1]) // _PAGE_KIB


def _device_pages(zones: str) -> int:
    """Pages of zones for devices: Linux makes them for addresses that grants are mapped at."""
    spans = re.findall(r"^Node \d+, zone +Device$.*?^ +spanned +(\d+)$", zones, re.M | re.S)
    return sum(int(span) for span in spans)


def parse_ports(text: str, names: Mapping[int, str]) -> Memory:
    """Read lines of lsevtchn, each domain's below its number: event channels that are not free.

    `names` are the domains' by number: a restored one has another number.
    """
    numbers: Counter[str] = Counter()
    domain = ""
    for line in text.splitlines():
        if head := re.fullmatch(r"domain (\d+)", line):
            domain = names.get(int(head[1]), line)
        elif re.match(r"\s*\d+: VCPU \d+: ", line):
            numbers[f"{PORTS} of {domain}"] += 1
    return Memory("xen", numbers)


def read(guest: Channel) -> Memory:
    """Take one guest's numbers; what it has in caches is dropped."""
    return parse(guest.run(_SCRIPT, timeout=60).text, guest.name)


def read_standing(guest: Channel) -> Memory:
    """Take the numbers that have no noise, and drop nothing: kernel threads and interrupts."""
    text = guest.run(_STANDING, timeout=60).text
    return Memory(guest.name, _standing(*text.split("@@\n")))
