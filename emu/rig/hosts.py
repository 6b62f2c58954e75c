"""Two emulated hosts with a network between them and one LUN, for migrations.

    wish = Wish(domu=DomuConfig(kind="pvh", memory=96))
    with two_hosts(prepare(wish, context), context) as (here, there):
        domu = here.create(disk=here.lun, ring_pages=16)
        domu.migrate(there)

The first host serves the LUN and has the idle domU; the second has logged in to the same LUN
over the network and has no domU. Both start from one checkpoint of the pair: its two halves
were stopped together, while nothing was on its way between them.

With `Wish(xen="4.17", second_xen="4.20")` they have different Xens.

They run on wall time: on instruction time the clock of an idle host jumps to its next timer, and
the host would time out at once waiting for the other, whose clock is its own.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from emu.errors import InputError, RigError
from emu.images.context import BuildContext
from emu.images.manifest import JSON
from emu.images.xens import Xen
from emu.machine import checkpoint
from emu.machine.qemu import Machine
from emu.machine.rundir import RunDir
from emu.progress import Progress
from emu.rig.host import RigHost
from emu.stack.stack import BOOT_TIMEOUT, Artifacts, Stack, from_checkpoint
from emu.xen import lun as luns
from emu.xen import sharing
from emu.xen.host import Host
from emu.xen.lun import Lun

MACS = ("52:54:00:0e:00:01", "52:54:00:0e:00:02")
ADDRESSES = ("10.0.0.1", "10.0.0.2")
INITIATOR = "iqn.2015-05.org.xen-block:dom0-2"
"""The second host's name as an iSCSI initiator; the first has the one in its image."""
_RECIPE = 1
"""Raised when what a pair's checkpoint holds changes without one of its inputs changing."""


@contextlib.contextmanager
def two_hosts(artifacts: Artifacts, context: BuildContext) -> Iterator[tuple[RigHost, RigHost]]:
    """Two hosts made of `artifacts`, for the life of the context; each is ended, whatever happens.

    Raises what `running` raises for one, and InputError for hosts on instruction time.
    """
    if artifacts.wish.clock == "icount":
        raise InputError("two hosts have no clock of instructions in common: give them wall time")
    pair = from_checkpoint(
        pair_key(artifacts),
        lambda into: _save(artifacts, into, context.progress),
        lambda made, opened: _load(artifacts, made, opened),
        context,
    )
    with pair as (first, second):
        here, there = RigHost(first, context), RigHost(second, context)
        there.lun = replace(here.lun, lun=second.lun)
        yield here, there


def pair_key(artifacts: Artifacts) -> dict[str, JSON]:
    """Everything the checkpoint of a pair depends on."""
    return {
        **artifacts.checkpoint_key(),
        **checkpoint.checkpoint_inputs(_each(artifacts)[0].spec),
        "pair": [_RECIPE, *MACS, *ADDRESSES, sharing.MTU],
        **({"second": artifacts.second.checkpoint_key()} if artifacts.second else {}),
    }


def _each(artifacts: Artifacts) -> tuple[Artifacts, Artifacts]:
    """What each host is made of: its network card, too."""
    both = (artifacts, artifacts.second or artifacts)
    first, second = (
        replace(one, spec=replace(one.spec, mac=mac)) for one, mac in zip(both, MACS, strict=True)
    )
    return first, second


def _load(artifacts: Artifacts, made: Path, opened: contextlib.ExitStack) -> tuple[Stack, Stack]:
    saved = json.loads((made / "stack.json").read_text())
    each = _each(artifacts)
    began = time.monotonic()
    machines = []
    with _wires() as wires:
        for one, wire, name in zip(each, wires, ("first", "second"), strict=True):
            rundir = opened.enter_context(RunDir.create())
            machine = checkpoint.load(one.spec, made / name, rundir, paused=True, wire=wire)
            machines.append(opened.enter_context(machine))
    for machine in machines:
        machine.resume()
    hosts = [_host(m, one.xen, opened) for one, m in zip(each, machines, strict=True)]
    for host in hosts:
        host.wait_agent(30.0)
    dom0_s = time.monotonic() - began
    domain = hosts[0].adopt(**saved["domain"])
    domain.open_channel(30.0)
    times = ("checkpoint", time.monotonic() - began, dom0_s)
    first, second = (
        Stack(replace(one, spec=machine.spec), machine, host, Lun(**lun), *times)
        for one, machine, host, lun in zip(each, machines, hosts, saved["luns"], strict=True)
    )
    return first, second


def _save(artifacts: Artifacts, into: Path, progress: Progress) -> None:
    with (
        progress.stage("booting two hosts once, for a checkpoint of both"),
        contextlib.ExitStack() as opened,
    ):
        machines, each = [], _each(artifacts)
        with _wires() as wires:
            for one, wire in zip(each, wires, strict=True):
                rundir = opened.enter_context(RunDir.create())
                machine = Machine.start(one.spec, rundir, savable=True, wire=wire)
                machines.append(opened.enter_context(machine))
        here, there = (_host(m, one.xen, opened) for one, m in zip(each, machines, strict=True))
        progress.tick("waiting for both dom0s")
        _at_once(lambda: _connect(here, ADDRESSES[0]), lambda: _connect(there, ADDRESSES[1]))
        progress.tick("exporting the LUN, creating the domU")
        lun = here.create_lun("lun0", artifacts.wish.lun_mib * luns.MIB, artifacts.wish.sector)
        sharing.offer(here.dom0, lun, ADDRESSES[0])
        seen = sharing.join(there.dom0, lun, ADDRESSES[0], INITIATOR)
        if seen.device != lun.device:
            # xl sends the domU's configuration along, with the name the device has at the source.
            raise RigError(f"the LUN is {lun.device} on one host and {seen.device} on the other")
        domain = here.create(artifacts.wish.domu)
        saved = {
            "domain": domain.record(),
            "luns": [vars(lun), vars(seen)],
        }
        for host in (here, there):
            if not luns.session_up(host.dom0, lun):
                raise RigError(f"the iSCSI session of {lun.name} is not up on both hosts")
        domain.close()
        here.close()
        there.close()
        progress.tick("saving both machines")
        for machine in machines:
            machine.pause()
        for machine, name in zip(machines, ("first", "second"), strict=True):
            checkpoint.save(machine, into / name)
        (into / "stack.json").write_text(json.dumps(saved, indent=1) + "\n")


def _host(machine: Machine, xen: Xen, opened: contextlib.ExitStack) -> Host:
    host = Host(machine, xen)
    opened.callback(host.close)
    return host


def _connect(host: Host, address: str) -> None:
    host.wait_ready(BOOT_TIMEOUT)
    sharing.bring_up(host.dom0, address)


@contextlib.contextmanager
def _wires() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Both ends of a link, until the machines have inherited them."""
    one, other = socket.socketpair()
    with one, other:
        yield one, other


def _at_once(*doings: Callable[[], None]) -> None:
    """Do all, each on a thread of its own; raises the first error."""
    errors: list[BaseException] = []

    def attempt(doing: Callable[[], None]) -> None:
        try:
            doing()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=attempt, args=(doing,)) for doing in doings]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
