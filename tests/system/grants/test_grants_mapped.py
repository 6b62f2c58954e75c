"""A page that the other side still maps is not used for anything else, and comes back later.

A program in dom0 maps one page that the domU grants, beside the back end, and watches it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import programs
import pytest

from emu.channel.process import Process
from emu.rig import Ledger, RigDomu, RigHost, RigLun
from emu.xen import ledger as books

# What was freed a moment ago is allocated first, to a request of the same kind: a pipe's pages are
# such as cannot be moved, like those of a ring, and those of files can.
EAT = """
mib=$(awk '/MemAvailable/ { print int($2 / 1024) - 24 }' /proc/meminfo)
dd if=/dev/urandom of=/tmp/one bs=64k count=16 2> /dev/null
for n in 3 4 5 6 7 8 9; do
    mkfifo /tmp/fifo$n
    eval "exec $n<>/tmp/fifo$n"
    head -c 65536 /tmp/one >&$n
    rm /tmp/fifo$n
done
for i in 1 2 3 4 5 6 7 8; do cat /tmp/one; done > /tmp/eight
for i in $(seq $((mib / 8 - 1))); do cat /tmp/eight; done > /tmp/many
rm /tmp/one /tmp/eight /tmp/many
echo $mib
"""
LEAST_MIB = 64
PVH = pytest.mark.stack(domu="pvh")


@dataclass(frozen=True)
class Kept:
    """A page of the domU that a program in dom0 maps."""

    ref: int
    program: Process

    def look(self) -> tuple[str, bool]:
        """The page's checksum now, and whether it was the same ever since the last look."""
        self.program.write(b"\n")
        line = b""
        while not line.endswith(b"\n"):
            more = self.program.read(timeout=20)
            assert more, f"keep-mapped ended: {self.program.ended}"
            line += more
        checksum, word = line.decode().split()
        return checksum, word == "same"


@contextlib.contextmanager
def kept_mapped(domu: RigDomu, ref: int) -> Iterator[Kept]:
    """Map a reference of the domU in dom0, beside the back end, for the life of the context."""
    dom0 = domu.host.dom0
    program = programs.put("keep-mapped", dom0, domu.host.cache)
    process = dom0.spawn([program, str(domu.domain.domid), str(ref)])
    kept = Kept(ref, process)
    kept.look()
    try:
        yield kept
    finally:
        process.close_stdin()
        process.wait(20)


def a_page(domu: RigDomu, lun: RigLun, which: str) -> int:
    """A reference of the ring, or of data that stays granted between requests."""
    domu.fill(lun, mib=1)
    if which == "ring":
        return domu.ring(lun).refs[-1]
    return domu.data_refs()[0]


@pytest.mark.parametrize(
    ("front", "which"),
    [
        ("patched", "ring"),
        ("patched", "data"),
        pytest.param("stock", "ring", marks=pytest.mark.long),
        pytest.param("patched", "ring", marks=[PVH, pytest.mark.long], id="pvh-ring"),
    ],
)
def test_mapped_page_is_not_reused(
    host: RigHost, lun: RigLun, ledger: Ledger, front: str, which: str
) -> None:
    domu = host.create(ring_pages=4, front=front)
    with ledger.unchanged():
        before = ledger.take()
        domu.attach(lun)
        ref = a_page(domu, lun, which)
        ledger.look()
        with kept_mapped(domu, ref) as kept:
            domu.detach(lun)
            domu.wait_gone()
            left = ledger.settled_but(before, refs={ref})
            assert [each.after for each in left] == [books.DEFERRED_MAPPED], (
                f"the front end does not keep the page that dom0 still maps: {left}"
            )
            kept.look()
            mib = int(domu.run(EAT, timeout=240))
            assert mib >= LEAST_MIB, f"the domU had only {mib} MiB to allocate"
            _, same = kept.look()
            assert same, (
                f"the page of reference {ref} ({which}) was used for something else while dom0 "
                f"still mapped it: its content changed when the domU allocated {mib} MiB"
            )


def test_domain_waits_for_a_mapped_page(host: RigHost, lun: RigLun, ledger: Ledger) -> None:
    """A destroyed domain's memory is given out when the last page of it is unmapped."""
    domu = host.create(ring_pages=4)
    domu.attach(lun)
    ref = a_page(domu, lun, "ring")
    ledger.look()
    before = ledger.take()
    with kept_mapped(domu, ref) as kept:
        domu.destroy()
        left = ledger.settled_but(before, refs={ref})
        assert [(each.after, each.mappers) for each in left] == [(books.ONLY_MAPPED, (0,))], (
            f"not just the one page that dom0 still maps is left of the domain: {left}"
        )
        assert kept.look()[1], "the page of a destroyed domain changed while dom0 mapped it"
    ledger.settled(before)
    names = [info.name for info in host.xen.list()]
    assert domu.name not in names, "a domain whose last page was unmapped is still there"
