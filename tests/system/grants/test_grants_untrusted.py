"""A back end that is not trusted gets no byte of the guest's memory but those it is to move.

A page is the least that can be granted: a request for one sector of it shares the rest, unless the
front end copies ("bounce buffers"). dom0 maps the pages that a request grants while the LUN holds
it, and looks for a word that the guest's memory is full of. Persistent grants are off: with them
a front end copies in any case.
"""

from __future__ import annotations

import programs
import pytest

from emu.rig import RigDomu, RigHost, RigLun
from emu.xen.drivers import FRONT, unload

SECRET = "a secret"
DIRTY_MIB = 8
"""So much of the guest's free memory holds the word, at least."""
DAMAGED = 3
"""Status of bare-page where other bytes came than were asked for, or went elsewhere."""
TRUST = ((0, 1), (1, 0), (1, 1))
"""The disk's key `trusted`, and the module's parameter: both must say so."""
MOVES = ("write", "read", "long", "write")
"""One sector of a page full of the word, twice, and 16 pages, which take an indirect request."""


def dirty(domu: RigDomu) -> str:
    """Leave the word in the memory that the domU's kernel allocates next; the program for it."""
    program = programs.put("bare-page", domu.channel, domu.host.cache)
    programs.put("bare-page", domu.host.dom0, domu.host.cache)
    mib = int(domu.channel.run([program, "dirty", SECRET], timeout=60).text)
    assert mib >= DIRTY_MIB, f"only {mib} MiB were free to be dirtied"
    return program


def shared(domu: RigDomu, lun: RigLun, program: str, move: str) -> tuple[int, int, int]:
    """Move data while dom0 looks: the program's status, how often the word is in the pages granted
    for it, and how many of their bytes are not zero, outside the sector that is moved."""
    with lun.held():
        moving = domu.channel.spawn([program, move, "/dev/xvda", SECRET])
        lun.await_outstanding(1)
        refs = [str(ref) for ref in domu.data_refs()]
        words = [program, "find", str(domu.domain.domid), SECRET, *refs]
        lines = host_numbers(domu, words)
    ended = moving.wait(30)
    assert lines, f"nothing is granted for a {move} that the LUN holds"
    assert ended.status is not None, f"the {move} did not end: {ended}"
    return ended.status, sum(line[1] for line in lines), sum(line[2] for line in lines)


def host_numbers(domu: RigDomu, words: list[str]) -> list[list[int]]:
    text = domu.host.dom0.run(words, timeout=30).text
    return [[int(word) for word in line.split()] for line in text.splitlines()]


@pytest.mark.stack(kernel="lab")
def test_only_a_trusted_back_end_sees_whole_pages(host: RigHost, lun: RigLun) -> None:
    """That a trusted one does is how the test knows that it would see. The lab kernel does not
    clear what it allocates."""
    domu = host.create(front=None)
    program = dirty(domu)
    wrong: dict[str, str] = {}
    for key, parameter in TRUST:
        trusted = bool(key and parameter)
        name = f"the disk's key says {key}, the module {parameter}"
        domu.offer(lun)
        host.xen.write({f"{domu.domain.front_path()}/trusted": key})
        domu.load_front(trusted=parameter, feature_persistent=0)
        domu.wait_connected()
        for number, move in enumerate(MOVES, start=1):
            status, secrets, others = shared(domu, lun, program, move)
            case = f"{name}, move {number} ({move})"
            if status:
                why = "damaged" if status == DAMAGED else f"refused (status {status})"
                wrong[case] = f"the data is {why}"
            elif secrets and (not trusted or move == "long"):
                wrong[case] = f"dom0 found the guest's secret {secrets} times in pages granted"
            elif trusted and move != "long" and not secrets:
                wrong[case] = "the page was copied although the back end is trusted"
            elif not trusted and number == 1 and others:
                wrong[case] = f"{others} bytes around the sector that is moved are not zero"
        domu.detach()
        unload(domu.channel, FRONT)
        dirty(domu)
    assert not wrong, "what a back end sees of the guest:\n" + "\n".join(
        f"{case}: {what}" for case, what in wrong.items()
    )
