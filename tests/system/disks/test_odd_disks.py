"""Disks of dom0 that are not like the LUN: without a cache, without discard, with a medium that can
be removed, or none at all. What the back end offers of them, and what it answers."""

from __future__ import annotations

import guest_modules
from asking import PAGE, Asker, check_good, read, write
from back_ends import front_end
from raw_cases import RAW
from raw_requests import BARRIER, ERROR, FLUSH, OKAY, UNSUPPORTED, WRITE, RawFrontEnd, direct

from emu.images.cache import Cache
from emu.rig import RigDomu, RigHost, RigLun

ODD = "/dev/odd"
REMOVABLE = 2
"""VDISK_REMOVABLE of io/blkif.h, in the key `info`."""
FIRST, LENGTH = 64, 128
"""The sectors that are discarded."""


def offered(domu: RigDomu, *keys: str) -> dict[str, str | None]:
    """Keys of the back end."""
    tree = domu.domain.back_tree()
    return {key: tree.get(key) for key in keys}


def in_dom0(host: RigHost, script: str, *words: str) -> str:
    return host.dom0.run(["sh", "-c", script, "sh", *words], timeout=20).text.strip()


def test_disk_without_cache_and_discard_offers_neither(
    host: RigHost, lun: RigLun, cache: Cache
) -> None:
    """It has nothing to write out: an fsync succeeds, and asks the LUN for nothing."""
    queue = f"/sys/block/{lun.block}/queue"
    in_dom0(host, 'echo write through > "$1/write_cache"; echo 0 > "$1/discard_max_bytes"', queue)
    domu = host.create(disk=lun)
    wrong: dict[str, object] = {}
    keys = offered(domu, "feature-flush-cache", "feature-barrier", "feature-discard")
    if on := [key for key, value in keys.items() if value not in (None, "0")]:
        wrong["offered of a disk that has neither cache nor discard"] = on
    limits = domu.queue_limits("write_cache", "discard_max_bytes")
    if limits["write_cache"] != "write through":
        wrong["the cache of the domU's disk, which has none"] = limits["write_cache"]
    if limits["discard_max_bytes"] != "0":
        wrong["bytes that a discard may have, of which none is offered"] = limits
    since = lun.mark()
    asker = Asker(domu.channel, "/dev/xvda", cache)
    check_good(asker.ask(write(0, 2, (0, PAGE))))
    if result := asker.result("fsync"):
        wrong["an fsync where nothing is to be written out is answered with"] = result
    check_good(asker.ask(read(0, 2, (0, PAGE))))
    if flushes := [str(each) for each in lun.requests(since) if each.operation == "flush"]:
        wrong["flushes that a disk without a cache was sent"] = flushes
    assert not wrong, "\n".join(f"{what}: {found}" for what, found in wrong.items())


def test_odd_disk_is_offered_as_it_is(host: RigHost, cache: Cache) -> None:
    """Its medium can be removed, it erases securely, and it knows no flush, though it has said so:
    the front end is told that, and no request is lost in it."""
    module = guest_modules.build("odd_disk", host.stack.artifacts.kernel, host.context)
    host.dom0.put(module.read_bytes(), "/tmp/odd_disk.ko")
    host.dom0.run(["insmod", "/tmp/odd_disk.ko"], timeout=20)
    domu = host.create(front=front_end(host, RAW))
    target = f"phy:{ODD},xvda,w,script=block-emu"
    host.xen.xl("block-attach", str(domu.domain.domid), target, timeout=60)
    domu.wait_connected()
    wrong: dict[str, object] = {}
    want = {"info": str(REMOVABLE), "discard-secure": "1", "feature-discard": "1"}
    if (keys := offered(domu, *want)) != want:
        wrong["the back end offers"] = f"{keys}, and the disk is {want}"

    asker = Asker(domu.channel, "/dev/xvda", cache)
    extent = f"{FIRST}+{LENGTH}"
    for word, parameter, other in (("secure", "erased", "discarded"), ("discard", "discarded", "")):
        result = asker.result(f"{word} {FIRST * 512} {LENGTH * 512}")
        got = in_dom0(host, "cat /sys/module/odd_disk/parameters/$1", parameter)
        if (result, got) != (0, extent):
            wrong[f"{word} of sectors {extent}"] = f"answered with {result}, {got!r} is {parameter}"
        if other and (plain := in_dom0(host, "cat /sys/module/odd_disk/parameters/$1", other)):
            wrong["a secure discard"] = f"became a plain one, of {plain}: the data may be read"

    front = RawFrontEnd(domu)
    page = front.segment(0)
    asked = {
        "a flush that the disk does not know": (direct(FLUSH, 0), UNSUPPORTED),
        "a barrier that the disk does not know": (direct(BARRIER, 8, page), UNSUPPORTED),
        "a write after both": (direct(WRITE, 8, page), OKAY),
        "a write past the end": (direct(WRITE, 2048, page), ERROR),
    }
    for name, (request, status) in asked.items():
        front.send(request)
        if not front.wait():
            wrong[name] = "is never answered"
        elif (answer := front.answers()[-1]).status != status:
            wrong[name] = f"is answered as {answer}, not with {status}"
    results = [asker.result("fsync") for _ in range(2)]
    cache_now = domu.queue_limits("write_cache")["write_cache"]
    if results != [0, 0] or cache_now != "write through":
        wrong["two fsyncs of a disk that knows no flush"] = (
            f"are answered with {results}, and its cache is {cache_now!r} then"
        )
    assert not wrong, "\n".join(f"{what}: {found}" for what, found in wrong.items())


BAD: dict[str, tuple[dict[str, str | None], str]] = {
    "a disk that is not there": ({"physical-device": "ff:ff"}, "creating vbd structure"),
    "a major number alone": ({"physical-device": "8:"}, "reading physical-device"),
    "no mode": ({"mode": None}, "reading mode"),
}


def test_disk_that_can_not_be_had_is_refused(host: RigHost, lun: RigLun) -> None:
    """Each is told of once, holds nothing of dom0, and the same keys put right make a disk."""
    domu = host.create(disk=lun, front=None)
    root = domu.domain.back_path()
    tree = domu.domain.back_tree()
    wrong: dict[str, object] = {}
    names = ("mode", "physical-device")
    good = {f"{root}/{key}": str(tree.get(key)) for key in names}
    for name, (keys, words) in BAD.items():
        domu.unbind_back()
        host.xen.remove(*good)
        domu.bind_back()
        domu.wait_back("InitWait")
        host.log.mark()
        bad = {f"{root}/{key}": value for key, value in keys.items()}
        # A script of the toolstack writes the device, when the back end waits for it.
        host.xen.write({path: value for path in good if (value := {**good, **bad}[path])})
        domu.wait_back("Closing")
        if words not in (error := domu.domain.error("back")):
            wrong[name] = f"is reported as {error!r}, not as {words!r}"
        if len(lines := domu.errors("back")) != 1:
            wrong[f"{name}, logged"] = f"{len(lines)} lines, not one: {lines}"
    domu.unbind_back()
    host.xen.write(good)
    domu.bind_back()
    domu.wait_back("InitWait")
    domu.load_front()
    domu.wait_connected()
    if domu.fill() != domu.sum():
        wrong["a disk whose keys were put right"] = "does not hold what was written"
    assert not wrong, "\n".join(f"{what}: {found}" for what, found in wrong.items())


def test_counts_are_logged_when_asked_for(host: RigHost, lun: RigLun) -> None:
    """`log_stats`: the last counts of a disk are logged when it goes, and not without it."""
    domu = host.create(disk=lun)
    domu.fill()
    host.log.mark()
    domu.detach()
    domu.wait_gone()
    wrong = {}
    if lines := host.log.lines("xvda-0): oo"):
        wrong["without log_stats"] = f"counts are logged: {lines}"
    host.set_back(log_stats=1)
    domu.attach(lun)
    domu.fill()
    domu.detach()
    domu.wait_gone()
    if not host.log.lines("xvda-0): oo"):
        wrong["with log_stats"] = "no counts are logged of a disk that goes"
    assert not wrong, "\n".join(f"{what}: {found}" for what, found in wrong.items())
