"""The LUN server without Xen: I/O, holds, delays, faults, records, clean stop."""

from __future__ import annotations

import errno
import itertools
import os
import subprocess
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from lun_player import GOOD, HARDWARE_ERROR, UNANSWERED, Command, Device, Player

from emu.errors import InputError, RigError
from emu.images import handler, xens
from emu.images.cache import Cache
from emu.images.context import BuildContext
from emu.images.xens import Xen
from emu.xen.requests import Flag

SIZE = 4 << 20
C_LIBRARY = {"4.14": (2, 31), "4.17": (2, 36), "4.20": (2, 41)}
"""The version of dom0's C library, by its Xen."""
_names = itertools.count()


@pytest.fixture(scope="module", params=["address", "thread"])
def player(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Player]:
    """The LUN server, once with ASan and UBSan and once with TSan."""
    with Player(tmp_path_factory.mktemp("player"), request.param) as player:
        assert player.init == 0
        yield player


@pytest.fixture
def device(player: Player, tmp_path: Path) -> Iterator[Device]:
    file = tmp_path / f"disk{next(_names)}.img"
    file.write_bytes(bytes(SIZE))
    device = player.open(file)
    yield device
    device.close()


def sums(data: bytes, sector: int = 512) -> tuple[int, ...]:
    return tuple(zlib.crc32(data[at : at + sector]) for at in range(0, len(data), sector))


@pytest.mark.parametrize("xen", xens.XENS.values(), ids=lambda xen: xen.release)
def test_handler_needs_nothing_that_its_dom0_lacks(xen: Xen) -> None:
    library = handler.build(xen, BuildContext(Cache()))
    needed = set().union(*handler.versions_needed(library).values())
    assert needed
    for version in needed:
        numbers = tuple(int(n) for n in version.removeprefix("GLIBC_").split("."))
        assert numbers[:2] <= C_LIBRARY[xen.release], version
    assert handler.unprovided(library) == set()


def test_missing_symbols_are_named(tmp_path: Path) -> None:
    library = tmp_path / "other.so"
    source = "extern int newer(void); int handler_init(void) { return newer(); }"
    command = ["gcc", "-shared", "-fPIC", "-o", str(library), "-x", "c", "-", "-lm"]
    command += ["-Wl,--no-as-needed"]
    subprocess.run(command, input=source.encode(), check=True)
    assert "newer" in handler.unprovided(library)


@pytest.mark.parametrize("sector", [512, 4096])
def test_read_returns_what_was_written(player: Player, tmp_path: Path, sector: int) -> None:
    file = tmp_path / f"read{sector}.img"
    file.write_bytes(bytes(SIZE))
    device = player.open(file, sector)
    data = os.urandom(512 * 1024)  # in more vectors than go to the file at once
    try:
        assert device.write(8, data) == GOOD
        read = device.submit("read", 8, bytes(len(data)))
        assert read.status() == GOOD
        assert read.data == data
        assert file.read_bytes()[8 * sector :][: len(data)] == data
        wrote, was_read = device.server.requests()
        assert wrote.sums == was_read.sums == sums(data, sector)
        assert device.server.sums(8, len(data) // sector) == wrote.sums
    finally:
        device.close()


def test_every_operation_is_recorded(device: Device) -> None:
    one, block = os.urandom(4096), os.urandom(512)
    submitted = [
        device.submit("write", 16, one, fua=True),
        device.submit("flush"),
        device.submit("write-same", 100, block, blocks=300),
        device.submit("unmap", 16, blocks=4),
        device.submit("read", 16, bytes(4096)),
    ]
    assert [each.status() for each in submitted] == [GOOD] * 5
    assert submitted[4].data == bytes(2048) + one[2048:]
    assert device.file.read_bytes()[100 * 512 : 400 * 512] == block * 300
    records = device.server.requests()
    assert [request.sequence for request in records] == [1, 2, 3, 4, 5]
    operations = [(r.operation, r.lba, r.blocks, r.written, len(r.sums)) for r in records]
    assert operations == [
        ("write", 16, 8, 8, 8),
        ("flush", 0, 0, 0, 0),
        ("write-same", 100, 300, 300, 1),
        ("unmap", 16, 4, 4, 0),
        ("read", 16, 8, 0, 8),
    ]
    assert [request.flags for request in records] == [Flag.FUA, *[Flag(0)] * 4]
    assert all(request.started <= request.ended for request in records)


def test_hold_by_kind_and_count(device: Device) -> None:
    device.server.hold("writes", after=2)
    writes = [device.submit("write", 8 * n, bytes([n]) * 4096) for n in range(5)]
    assert [write.status(0.05) for write in writes] == [GOOD, GOOD, *[UNANSWERED] * 3]
    assert device.submit("read", 0, bytes(512)).status() == GOOD
    assert device.submit("flush").status() == GOOD
    waiting = device.server.outstanding()
    assert [(each.lba, each.state) for each in waiting] == [(n, "held") for n in (16, 24, 32)]
    assert device.server.wait_outstanding(at_least=3, timeout=0.1) == 3
    device.server.release(1)
    assert writes[2].status() == GOOD
    assert [write.status(0.05) for write in writes[3:]] == [UNANSWERED] * 2
    device.server.release()
    assert [write.status() for write in writes] == [GOOD] * 5
    assert device.server.wait_outstanding(at_most=0, timeout=1) == 0
    assert device.write(0, bytes(512)) == GOOD, "no more requests are held"
    assert [r.lba for r in device.server.requests() if r.held] == [16, 24, 32]


def test_delay_adds_latency(device: Device) -> None:
    device.server.delay(200)
    writes = [device.submit("write", 8 * n, bytes(4096)) for n in range(20)]
    assert writes[0].status(0.05) == UNANSWERED
    assert [write.status() for write in writes] == [GOOD] * 20
    records = device.server.requests()
    assert {request.flags for request in records} == {Flag.DELAYED}
    assert all(0.2 <= request.ended - request.started < 1 for request in records)
    device.server.clear()
    assert device.submit("read", 0, bytes(512)).status(0.1) == GOOD


def test_fail_applies_to_its_blocks(device: Device) -> None:
    device.server.fail(first=80, blocks=8, times=2)
    statuses = [device.write(lba, b"x" * 1024) for lba in (78, 79, 87, 80, 88)]
    assert statuses == [GOOD, HARDWARE_ERROR, HARDWARE_ERROR, GOOD, GOOD]
    assert device.file.read_bytes()[79 * 512 : 80 * 512] == b"x" * 512, "written by the first"
    failed = [request for request in device.server.requests() if not request.done]
    assert [(r.lba, r.flags, r.written) for r in failed] == [
        (79, Flag.FAILED, 0),
        (87, Flag.FAILED, 0),
    ]
    assert "answered with an error" in str(failed[0])


@pytest.mark.parametrize("when", ["at once", "delayed", "held"])
def test_failed_unmap_is_answered_with_an_error(device: Device, when: str) -> None:
    """The player forgets the error of an unmap as tcmu-runner does, unless it is told before."""
    device.server.fail(kinds="unmaps")
    if when == "delayed":
        device.server.delay(20)
    if when == "held":
        device.server.hold()
    unmap = device.submit("unmap", 16, blocks=4)
    device.server.release()
    assert unmap.status() == HARDWARE_ERROR
    assert device.write(16, b"x" * 512) == GOOD, "a write is no unmap"


def test_error_rate_repeats_with_its_seed(device: Device) -> None:
    def run(seed: int) -> list[int]:
        device.server.fail(rate=0.25, seed=seed)
        statuses = [device.write(n, bytes(512)) for n in range(200)]
        device.server.clear()
        return statuses

    first, again, other = run(7), run(7), run(8)
    assert first == again != other
    assert 25 <= first.count(HARDWARE_ERROR) <= 75


@pytest.mark.parametrize(("answer", "status"), [("good", GOOD), ("error", HARDWARE_ERROR)])
def test_torn_writes(device: Device, answer: str, status: int) -> None:
    device.server.tear(3, first=8, blocks=8, answer=answer)  # type: ignore[arg-type]
    assert device.write(8, b"n" * 4096) == status
    assert device.write(16, b"n" * 512) == GOOD
    assert device.file.read_bytes()[4096:8192] == b"n" * 1536 + bytes(2560)
    torn = device.server.requests().requests[0]
    assert (torn.flags, torn.written, torn.sums) == (Flag.TORN, 3, sums(b"n" * 4096))


def test_lost_write_is_answered_as_good(device: Device) -> None:
    device.server.tear(0, times=1)
    assert device.write(0, b"n" * 4096) == GOOD
    assert device.file.read_bytes() == bytes(SIZE)


def test_clean_stop_serves_held_requests(player: Player, tmp_path: Path) -> None:
    file = tmp_path / "stopped.img"
    file.write_bytes(bytes(SIZE))
    device = player.open(file)
    device.server.hold()
    device.server.delay(60_000)
    writes = [device.submit("write", 8 * n, bytes([n + 1]) * 4096) for n in range(50)]
    assert writes[0].status(0.2) == UNANSWERED, "the kernel's side is not blocked"
    device.block()
    assert writes[-1].status() == GOOD
    assert {write.status() for write in writes} == {GOOD}
    assert {request.flags for request in device.server.requests()} == {Flag.HELD | Flag.STOPPED}
    device.close()
    assert file.read_bytes()[: 50 * 4096] == b"".join(bytes([n + 1]) * 4096 for n in range(50))
    with pytest.raises(RigError, match=r"refused status stopped(.|\n)*no LUN stopped"):
        device.server.mark()


def test_close_serves_held_requests(player: Player, tmp_path: Path) -> None:
    file = tmp_path / "gone.img"
    file.write_bytes(bytes(SIZE))
    device = player.open(file)
    device.server.hold()
    writes = [device.submit("write", 8 * n, b"w" * 4096) for n in range(50)]
    device.close()
    assert {write.status(0) for write in writes} == {GOOD}
    assert file.read_bytes()[: 50 * 4096] == b"w" * 50 * 4096


# Filling the 16 MiB of records takes 2.6 GB of writes: a minute and a half under TSan.
@pytest.mark.parametrize("player", ["address"], indirect=True)
def test_records_are_bounded(device: Device) -> None:
    data = bytes(64 * 1024)
    assert device.submit("write", 0, data, times=40_000).status() == GOOD
    records = device.server.requests(since=1)
    assert records.next == 40_001
    assert records.dropped == 40_000 - len(records) > 0
    assert records.requests[-1].sequence == 40_000
    assert records.requests[0].number == records.dropped + 1
    assert len(device.server.requests(since=39_991)) == 10
    device.server.forget()
    assert device.write(0, data) == GOOD
    assert [request.number for request in device.server.requests()] == [40_001]


def test_records_are_complete_under_threads(device: Device) -> None:
    """One thread submits, as tcmu-runner's does; another holds and releases meanwhile."""
    done = threading.Event()

    def hold_and_release() -> None:
        while not done.is_set():
            device.server.hold("writes")
            device.server.release()

    thread = threading.Thread(target=hold_and_release)
    thread.start()
    commands: list[Command] = []
    try:
        for n in range(6000):
            data = n.to_bytes(4, "little") * 128
            commands.append(device.submit("write", n % 1024, data))
    finally:
        done.set()
        thread.join()
    device.server.release()
    assert {command.status() for command in commands} == {GOOD}
    records = device.server.requests()
    assert sorted(request.sequence for request in records) == list(range(1, 6001))
    by_sequence = {request.sequence: request for request in records}
    for n in range(6000):
        assert by_sequence[n + 1].sums == (zlib.crc32(n.to_bytes(4, "little") * 128),)
    # Served in the order of the records: the last one of each block determines its content.
    last = {request.lba: request.sums[0] for request in records}
    assert device.server.sums(0, 1024) == tuple(last[lba] for lba in range(1024))


def test_sums_past_the_end_are_refused(device: Device, player: Player, tmp_path: Path) -> None:
    for first, blocks in ((8000, 193), (2**64 - 1, 2), (2**64 - 100, 200), (0, 2**64 - 1)):
        with pytest.raises(RigError) as refused:
            device.server.sums(first, blocks)
        assert "the LUN has 8192 blocks" in refused.value.lines[-1]


def test_number_of_sums_is_not_narrowed(player: Player, tmp_path: Path) -> None:
    file = tmp_path / "large.img"
    file.touch()
    os.truncate(file, (2**32 + 8) * 512)
    device = player.open(file)
    try:
        with pytest.raises(RigError) as refused:
            device.server.sums(0, 2**32 + 1)
        assert "no more than 4294967295 blocks at once" in refused.value.lines[-1]
        assert device.server.sums(2**32, 8) == sums(bytes(8 * 512))
    finally:
        device.close()


def test_removed_device_serves_held_requests(device: Device) -> None:
    """The worker checks ten times a second whether to stop, and does not undo the removal."""
    device.server.hold()
    write = device.submit("write", 0, bytes(4096))
    assert write.status(0.05) == UNANSWERED
    device.remove()
    assert write.status() == GOOD


@pytest.mark.parametrize("player", ["address"], indirect=True)
def test_bind_error_is_reported(player: Player, tmp_path: Path) -> None:
    """Logging the error changes errno."""
    absent = tmp_path / "absent" / "lun.sock"
    with Player(tmp_path, "address", absent) as other:
        assert other.init == -errno.ENOENT
        assert "No such file" in other.logged()


def test_invalid_arguments_are_refused(player: Player, device: Device, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'somes' are no kinds of requests: there are all, reads"):
        device.server.hold("somes")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="'writes' is no number of a block"):
        device.server.fail("writes")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="times can't be -1"):
        device.server.fail(times=-1)
    with pytest.raises(RigError, match="delay: invalid ms"):
        device.server.delay(2**32)
    with pytest.raises(RigError, match="tear: invalid sectors"):
        device.server.tear(2**32)
    with pytest.raises(InputError, match=r"a rate of 1\.5"):
        device.server.fail(rate=1.5)
    with pytest.raises(InputError, match="0 blocks from 5 on"):
        device.server.tear(1, first=5, blocks=0)
    for _ in range(16):
        device.server.fail(first=1, blocks=1)
    with pytest.raises(RigError, match="no more than 16 rules"):
        device.server.fail()
    assert not player.open_device(63, tmp_path / "absent.img", 512, 8)
    assert "could not open" in player.logged()
