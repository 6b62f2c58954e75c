"""LUNs of other kinds: write-protected, with digests, with or without thin provisioning, as large
as can be."""

from __future__ import annotations

import errno

import pytest
from asking import PAGE, Asker, Content, check_good, faults, read, write

from emu.errors import InputError, NotHeld
from emu.images.cache import Cache
from emu.rig import RigHost, RigLun
from emu.xen.lun import LARGEST

MIB = 1 << 20
DATA_PROTECT = 7
"""The sense key (SPC-4)."""


def limits(host: RigHost, lun: RigLun, *names: str) -> list[str]:
    """What dom0 shows of a LUN's disk."""
    root = f"/sys/block/{lun.block}"
    return host.dom0.run(["cat", *(f"{root}/{name}" for name in names)], timeout=20).text.split()


def test_write_protected_lun(host: RigHost, cache: Cache) -> None:
    """dom0 can't write to it, and lets no domU do so: one that may write does not get it."""
    lun = host.create_lun(write_protected=True)
    domu = host.create()
    assert limits(host, lun, "ro") == ["1"], "dom0's disk of a write-protected LUN is writable"
    with pytest.raises(NotHeld, match="dom0 refuses xvda of domU u1: 2 creating vbd") as refused:
        domu.attach(lun)
    said = [line for line in refused.value.lines if "could not be opened" in line]
    assert said, f"dom0's log has no line of a disk that can't be written: {refused.value.lines}"

    domu.attach(lun, mode="r")
    asker, mark = Asker(domu.channel, "/dev/xvda", cache), lun.mark()
    assert domu.run("cat /sys/block/xvda/ro") == "1\n", "the domU's disk is writable"
    wrong = faults(asker.ask(read(0, 0, (0, PAGE)), read(lun.size() - PAGE, 0, (0, PAGE))))
    assert not wrong, f"a write-protected LUN is not read: {wrong}"
    # dom0's kernel sends no write to it; LIO refuses one that is sent past that.
    key = Asker(host.dom0, lun.device, cache).result(f"scsi-write 0 {PAGE}")
    assert key == DATA_PROTECT, f"WRITE (10) on a write-protected LUN is answered with key {key}"
    assert not lun.requests(mark).writes, "a write reached a write-protected LUN"


def test_session_with_digests(host: RigHost, lun: RigLun) -> None:
    """CRC-32C of headers and data, where they were asked for; data goes through."""
    checked = host.create_lun(digests=True)
    agreed = {
        each.name: (each.session().header_digest, each.session().data_digest)
        for each in (lun, checked)
    }
    assert agreed == {lun.name: (False, False), checked.name: (True, True)}, (
        f"digests of header and data, by LUN: {agreed}"
    )
    domu = host.create(disk=checked)
    with domu.verifying_io() as io:
        io.await_answers(200)


def test_thin_lun_gives_back_what_is_discarded(host: RigHost, cache: Cache) -> None:
    """Its file has blocks where something was written, until that is discarded; in dom0 and
    from the domU. Another has all of them at once, and offers no discard."""
    thin, full = host.create_lun(), host.create_lun(thin=False)
    domu = host.create(disk=[thin, full])
    wrong: list[str] = []
    for lun, meant in ((thin, "4294966784"), (full, "0")):
        if (found := limits(host, lun, "queue/discard_max_bytes")) != [meant]:
            wrong.append(f"{lun.name}: dom0's disk takes discards of {found} bytes, not {meant}")
    key = "feature-discard"
    offered = [domu.domain.back_tree(domu.disk(lun)).integer(key) for lun in (thin, full)]
    if offered[0] != 1 or offered[1]:
        wrong.append(f"{key} of the thin LUN and the other: {offered}")
    blocks = [("new", thin.allocated(), full.allocated())]
    asker = Asker(domu.channel, "/dev/xvda", cache)
    content = Content(thin)
    check_good(content.done(asker.ask(write(0, 1, (0, 2 * MIB)))))
    blocks.append(("written", thin.allocated(), full.allocated()))
    results = [asker.result(f"discard 0 {MIB}")]
    content.put(0, MIB, 0)
    blocks.append(("discarded", thin.allocated(), full.allocated()))
    results.append(Asker(host.dom0, thin.device, cache).result(f"punch {MIB} {MIB}"))
    content.put(MIB, MIB, 0)
    blocks.append(("discarded by dom0", thin.allocated(), full.allocated()))
    if results != [0, 0]:
        wrong.append(f"discards are answered with {results}")
    size = 16 * MIB
    if blocks != [
        ("new", 0, size),
        ("written", 2 * MIB, size),
        ("discarded", MIB, size),
        ("discarded by dom0", 0, size),
    ]:
        wrong.append(f"bytes allocated for the thin LUN and the other: {blocks}")
    wrong += content.differences(0, 2 * MIB) + faults(asker.ask(read(0, 0, (0, PAGE))))
    refused = Asker(domu.channel, "/dev/xvdb", cache).result(f"discard 0 {MIB}")
    if refused != -errno.EOPNOTSUPP:
        wrong.append(f"a discard of a LUN that is not thin is answered with {refused}")
    full.resize(20)
    if (bytes_there := full.allocated()) != 20 * MIB:
        wrong.append(f"of a LUN of 20 MiB that is not thin {bytes_there} bytes are allocated")
    assert not wrong, "\n".join(wrong)


def test_largest_lun(host: RigHost, cache: Cache) -> None:
    """One of 16 TiB less 1 MiB, on a disk of 8 GiB: the domU has all of it."""
    lun = host.create_lun(size_mib=(16 << 20) - 1)
    with pytest.raises(InputError, match=f"larger than any file of dom0's: {LARGEST} at most"):
        host.create_lun(size_mib=16 << 20)
    with pytest.raises(InputError, match=f"larger than any file of dom0's: {LARGEST} at most"):
        lun.resize(16 << 20)
    domu = host.create(disk=lun)
    sectors = domu.run("cat /sys/block/xvda/size").strip()
    assert sectors == str(lun.size() >> 9), f"the domU's disk has {sectors} sectors"
    asker, content = Asker(domu.channel, "/dev/xvda", cache), Content(lun)
    places = (0, lun.size() - PAGE)
    check_good(content.done(asker.ask(*(write(at, 2, (0, PAGE)) for at in places))))
    wrong = faults(asker.ask(*(read(at, 2, (0, PAGE)) for at in places)))
    for at in places:
        wrong += content.differences(at, PAGE)
    assert not wrong, "\n".join(wrong)
