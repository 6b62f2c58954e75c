"""A back end that answers and lets go of nothing, though grants are not persistent.

The back end is the series' with a patch by which a test says whose pages stay mapped
(back-ends/keeps-mapped.patch). The front end uses no bounce buffers: what stays mapped is memory of
the caller, which the back end may still change.
"""

from __future__ import annotations

from back_ends import back_end
from driver_checks import READ_MANY, READ_ONE
from told_answers import Command

from emu.deadline import Deadline, poll
from emu.rig import RigDomu, RigHost
from emu.xen.vdev import virtual_device

REPORTED = "has not unmapped grant"
KEPT = {"xvda": ("keep_data", READ_ONE), "xvdb": ("keep_data", READ_MANY),
        "xvdc": ("keep_table", READ_MANY)}  # fmt: skip
LOOKS = 3.0
"""Seconds in which the front end looks at kept pages several times: it does once a second."""


def reported(domu: RigDomu) -> list[str]:
    until = Deadline("the front end's report of a page that is still mapped", 5)
    return poll(lambda: domu.log.lines(REPORTED), until, pause=0.05)


def test_page_that_stays_mapped_disables_its_disk(host: RigHost) -> None:
    """A caller gets its error when the back end can no longer change its memory; a page that only
    describes segments is nobody's, and no reason to wait. Other disks go on."""
    host.load_back(back_end(host, "keeps-mapped"), feature_persistent=0)
    domu = host.create()
    before = domu.mapped_refs()
    luns = {disk: host.create_lun() for disk in (*KEPT, "xvdd")}
    for disk, lun in luns.items():
        domu.attach(lun, disk)
    written = domu.fill("xvdd")
    wrong: dict[str, str] = {}
    for disk, (parameter, script) in KEPT.items():
        domu.log.mark()
        host.set_back(**{parameter: virtual_device(disk)})
        read = Command(domu, script.format(disk))
        if not reported(domu):
            wrong[f"{disk}, {parameter}"] = "the front end does not report that a page stays mapped"
        elif not domu.log.lines(f"{disk} disabled"):
            wrong[f"{disk}, {parameter}"] = "its disk is not disabled"
        elif parameter == "keep_data":
            until = Deadline("a read to end too early", LOOKS)
            early = poll(read.status, until, until=lambda now: now is not None, pause=0.2)
            if early is not None:
                wrong[f"{disk}, {parameter}"] = (
                    f"the read ended with {early}; dom0 can still write to its memory"
                )
        elif (ended := read.wait()) != 1:
            how = "waits for ever" if ended is None else f"ended with {ended}"
            wrong[f"{disk}, {parameter}"] = f"the read {how}, though all of its data is unmapped"
        if (later := Command(domu, READ_ONE.format(disk)).wait()) != 1:
            wrong[f"{disk}, later"] = f"a read of the disabled disk ended with {later}"
        if domu.sum("xvdd") != written:
            wrong[f"beside {disk}"] = "another disk holds other data than was written"
        host.set_back(let_go=1)
        if (ended := read.wait()) != 1:
            how = "waits for ever" if ended is None else f"ended with {ended}"
            wrong[f"{disk}, let go of"] = f"the read {how}, though no page is mapped any more"
    for disk in luns:
        domu.detach(disk)
        domu.wait_gone(disk)
    if left := domu.mapped_refs() - before:
        wrong["all disks gone"] = f"dom0 still maps references {sorted(left)}"
    assert not wrong, "\n".join(f"{name}: {what}" for name, what in wrong.items())
