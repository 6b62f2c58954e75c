"""The memory ledger: what a kernel holds, in numbers that stand still when nothing leaks.

Taken after each of several equal cycles, they tell a leak from noise: a leak grows by as much
in every cycle, noise goes up and down. What makes the numbers steady, on Linux 6.1:

- caches of files are dropped, and every slab cache is shrunk first: SLUB counts all objects
  of a CPU's own slabs as active until then (count_partial() in mm/slub.c);
- pages are those that no counter of the kernel explains: neither free (in a CPU's list
  either), nor a process's or a file's, a slab's, a page table's, or vmalloc's; all from one
  reading of /proc/zoneinfo, by a process that has just had the CPUs' deltas folded in: ten
  pages or so otherwise (vm.stat_refresh does it when it is read, too), and before anything is
  in the pipe to the agent, whose pages no counter explains. The least of five readings;
- areas of vmalloc are counted without those that only wait to be unmapped for good.
"""

from __future__ import annotations

import re
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from emu.errors import RigError
from emu.machine.channel import Channel

_STANDING = """
grep xen-dyn /proc/interrupts; echo @@
cat /proc/[0-9]*/stat 2> /dev/null
"""
_SCRIPT = (
    """
echo 3 > /proc/sys/vm/drop_caches
for cache in /sys/kernel/slab/*/shrink; do echo 1 > $cache; done
for n in 1 2 3 4 5; do
    cat /proc/sys/vm/stat_refresh /proc/zoneinfo /proc/meminfo > /tmp/zones.$n
done
cat /proc/slabinfo; echo @@
grep -vc unpurged /proc/vmallocinfo; echo @@
for n in 1 2 3 4 5; do cat /tmp/zones.$n; echo @; done; rm /tmp/zones.?; echo @@
"""
    + _STANDING
)
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
SLAB, THREAD, INTERRUPT, PORTS = "objects of ", "kernel thread ", "interrupt ", "event channels"

NOBODY = "that has no handler"
"""An interrupt of the kernel's list after which nothing stands but its chip's name."""
MEASURABLE = 5
"""Cycles from which growth shows."""
LEAK_SLOPE = 0.75
"""Units a cycle from which growth is a leak: the smallest leak is one, less noise."""
LEAK_TREND = 0.8
"""Kendall's tau of values against cycles, from which growth is no accident."""
LEAK_EVEN = 0.5
"""The part of the steps that must be about as large as the slope: a cache that fills grows by
leaps, a leak by as much each time."""


@dataclass(frozen=True)
class Memory:
    """What one kernel (or Xen) holds at an instant: a name for each number."""

    owner: str
    numbers: Mapping[str, int]


@dataclass(frozen=True)
class Growth:
    """A number that grew, by `slope` from one value to the next (the median of all pairs)."""

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
    if len(cycles) < MEASURABLE:
        raise ValueError(f"{len(cycles)} cycles show no trend: {MEASURABLE} at least")
    found: list[Growth] = []
    for owner in dict.fromkeys(memory.owner for each in cycles for memory in each):
        taken = [memory.numbers for each in cycles for memory in each if memory.owner == owner]
        for name in dict.fromkeys(name for numbers in taken for name in numbers):
            values = tuple(numbers.get(name, 0) for numbers in taken)
            slope, trend, even = _slope(values)
            if slope >= LEAK_SLOPE and trend >= LEAK_TREND and even >= LEAK_EVEN:
                found.append(Growth(owner, name, slope, values))
    return tuple(found)


def _slope(values: Sequence[int]) -> tuple[float, float, float]:
    """Theil's and Sen's slope, Kendall's tau (neither minds a few values far off), and the part
    of the steps that are as large as the slope, give or take one or a quarter of it.
    """
    pairs = [
        (values[j] - values[i], j - i)
        for i in range(len(values))
        for j in range(i + 1, len(values))
    ]
    if not pairs:
        return 0.0, 0.0, 0.0
    slope = statistics.median(rise / run for rise, run in pairs)
    signs = sum((rise > 0) - (rise < 0) for rise, _ in pairs)
    steps = [rise for rise, run in pairs if run == 1]
    even = sum(abs(step - slope) <= max(1.0, abs(slope) / 4) for step in steps)
    return slope, signs / len(pairs), even / len(steps)


def parse(text: str, owner: str) -> Memory:
    """Read what the sampling script printed. Raises RigError for anything of another form."""
    parts = text.split("@@\n")
    if len(parts) != 5:
        raise RigError(f"{owner}: the memory ledger's script printed {len(parts)} parts, not 5")
    slabs, areas, zones, interrupts, tasks = parts
    numbers: dict[str, int] = {}
    for name, active in re.findall(r"^([^\s#]\S*)\s+(\d+)\s+\d+\s+\d+\s+\d+", slabs, re.M):
        if name not in _UNSTEADY and not name.endswith("_inode_cache"):
            numbers[f"{SLAB}{name}"] = int(active)
    numbers |= _standing(interrupts, tasks)
    try:
        numbers[AREAS] = int(areas)
        numbers[PAGES] = min(_own_pages(reading) for reading in zones.split("@\n") if reading)
    except (KeyError, ValueError) as error:
        raise RigError(f"{owner}: /proc shows no {error}") from None
    if percpu := re.search(r"^Percpu:\s+(\d+) kB", zones, re.M):
        numbers[PERCPU] = int(percpu[1])
    return Memory(owner, numbers)


def _standing(interrupts: str, tasks: str) -> Counter[str]:
    words = (line.split()[-1] for line in interrupts.splitlines())
    names = (NOBODY if word == "-event" else word for word in words)
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
