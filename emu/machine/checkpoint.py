"""Checkpoints: a machine saved on disk, from which any number of machines start.

    ram         the guest's RAM, sparse; every machine maps it privately
    state       the devices' state, in QEMU's migration format (no RAM: x-ignore-shared)
    disk<i>     what had been written to disk i, a qcow2 overlay on it
    meta.json   what the checkpoint fits

QEMU leaves RAM out of the migration stream when it is a shared file and the capability
`x-ignore-shared` is set. A machine that maps the same file privately and loads the stream
resumes in a fraction of a second, and copies only the pages it writes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from emu.deadline import Deadline, poll
from emu.errors import InputError, RigError
from emu.hosttools import installs
from emu.machine import ram
from emu.machine.identity import hash_of_program, host_cpu, qemu_version
from emu.machine.qemu import Machine
from emu.machine.rundir import RunDir, disk_errors
from emu.machine.spec import MachineSpec, QemuFds, build_argv

T = TypeVar("T")

FORMAT = 1
_CAPABILITIES = [{"capability": "x-ignore-shared", "state": True}]
_MIGRATE_TIMEOUT = 60.0


class CheckpointBroken(RigError):
    """The checkpoint does not load: it is to be removed and made again."""


def checkpoint_inputs(spec: MachineSpec) -> dict[str, Any]:
    """What a checkpoint of `spec` depends on besides the files the machine boots.

    QEMU's binary (SHA-256) and version, its arguments with descriptors by name, and the
    CPU's model when KVM passes it on. The caller adds the hashes of xen, kernel, initrd
    and disks. Raises InputError when QEMU is not there.
    """
    path = shutil.which(spec.qemu)
    if path is None:
        raise InputError(f"{spec.qemu} is not installed", hint=installs(spec.qemu))
    return {
        "format": FORMAT,
        "qemu": qemu_version(path),
        "qemu_sha256": hash_of_program(Path(path).resolve()),
        "argv": symbolic_argv(spec),
        "host_cpu": host_cpu() if spec.accel == "kvm" else "any",
    }


def symbolic_argv(spec: MachineSpec) -> list[str]:
    """QEMU's arguments with names in place of descriptors and without paths of this machine."""
    names = ["xen", "dom0", "initrd", "ram"]
    links = ["qmp", "com1", "com2", *(f"port.{port}" for port in spec.ports), "wire"]
    names += [f"disk{index}.0" for index in range(len(spec.disks))]
    files = {name: 1000 + number for number, name in enumerate(names)}
    fds = {name: 2000 + number for number, name in enumerate(links)}
    spec = replace(spec, recording=None)  # which is none of the machine's state
    argv = build_argv(spec, QemuFds(files, fds), ram_shared=True)
    return argv[1:] + [f"overlaid={disk.overlaid}" for disk in spec.disks]


def save(machine: Machine, directory: Path, *, settle: bool = True) -> None:
    """Save a machine (started with `savable=True`) into `directory`; it ends.

    `settle`: wait first until its consoles are quiet (3 s at most).
    Raises RigError (QEMU refused, disk full); GuestTrouble when the machine is in trouble:
    every machine from its checkpoint would be.
    """
    if machine.ram is None:
        raise ValueError("only a machine started with savable=True can be saved")
    if settle:
        machine.watch.settle()
    machine.watch.check()
    directory.mkdir(parents=True, exist_ok=True)
    machine.pause()
    machine.qmp("migrate-set-capabilities", capabilities=_CAPABILITIES)
    with disk_errors(directory, "a checkpoint"):
        with _peer(_all_from) as (theirs, received):
            machine.qmp_fd("getfd", theirs.fileno(), 30.0, fdname="state")
            theirs.close()
            machine.qmp("migrate", uri="fd:state")
            _await_migration(machine)
            state = received.result(30.0)
        (directory / "state").write_bytes(state)
        ram.write_sparse(machine.ram, directory / "ram")
        for index, fd in machine.overlays.items():
            ram.copy_file(fd, directory / f"disk{index}")
        meta = {"format": FORMAT, "argv": _digest(machine.spec), "disks": sorted(machine.overlays)}
        (directory / "meta.json").write_text(json.dumps(meta, indent=1, sort_keys=True) + "\n")
    machine.kill()


def load(
    spec: MachineSpec,
    directory: Path,
    rundir: RunDir,
    *,
    paused: bool = False,
    wire: socket.socket | None = None,
) -> Machine:
    """A machine resumed from the checkpoint in `directory`; `wire` as for `Machine.start`.

    Raises CheckpointBroken when the checkpoint is incomplete, was made for another spec,
    or is refused by QEMU; other errors as `Machine.start`.
    """
    _check(spec, directory)
    frozen = [
        [directory / f"disk{index}"] if disk.overlaid else []
        for index, disk in enumerate(spec.disks)
    ]
    machine = Machine(spec, rundir)
    with contextlib.ExitStack() as opened:
        opened_ram = _open(directory / "ram", opened)
        with os.fdopen(os.dup(_open(directory / "state", opened)), "rb") as file:
            state = file.read()
        theirs, _ = opened.enter_context(_peer(lambda ours: _all_to(ours, state)))
        incoming = machine.give(theirs.fileno())
        try:
            machine.launch(ram=opened_ram, frozen=frozen, incoming=True, wire=wire)
            theirs.close()
            machine.qmp("migrate-set-capabilities", capabilities=_CAPABILITIES)
            machine.qmp("migrate-incoming", uri=f"fd:{incoming}")
            _await_migration(machine)
            if not paused:
                machine.resume()
        except RigError as error:
            machine.kill()
            raise CheckpointBroken(
                f"the checkpoint in {directory} does not load: {error.message}",
                hint="it is thrown away and made again at the next start",
                lines=error.lines,
            ) from error
        except BaseException:
            machine.kill()
            raise
    return machine


def _check(spec: MachineSpec, directory: Path) -> None:
    try:
        meta = json.loads((directory / "meta.json").read_text())
        size = (directory / "ram").stat().st_size
    except (OSError, ValueError) as error:
        raise CheckpointBroken(f"the checkpoint in {directory} is incomplete: {error}") from error
    if meta.get("format") != FORMAT or meta.get("argv") != _digest(spec):
        raise CheckpointBroken(f"the checkpoint in {directory} was made for another machine")
    if size != spec.memory_mib * 2**20:
        raise CheckpointBroken(f"the checkpoint in {directory} has {size} bytes of RAM")


def _digest(spec: MachineSpec) -> str:
    return hashlib.sha256(json.dumps(symbolic_argv(spec)).encode()).hexdigest()


def _open(path: Path, opened: contextlib.ExitStack) -> int:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise CheckpointBroken(f"can't open {path}: {error.strerror}") from error
    opened.callback(os.close, fd)
    return fd


@contextlib.contextmanager
def _peer(talk: Callable[[socket.socket], T]) -> Iterator[tuple[socket.socket, Future[T]]]:
    """A socket for QEMU, and the result of `talk`, which runs meanwhile with its other end.

    (QEMU 7.2 takes a file, but newer ones refuse it: `migration to a file is not supported`,
    seen with 11.1. Their way for files is not in 7.2.)
    """
    ours, theirs = socket.socketpair()
    with ours, theirs, ThreadPoolExecutor(1, "checkpoint") as pool:
        try:
            yield theirs, pool.submit(talk, ours)
        finally:
            ours.shutdown(socket.SHUT_RDWR)  # or `talk` would wait for ever after an error


def _all_from(ours: socket.socket) -> bytes:
    parts = []
    while part := ours.recv(1 << 20):
        parts.append(part)
    return b"".join(parts)


def _all_to(ours: socket.socket, data: bytes) -> None:
    with contextlib.suppress(OSError):  # QEMU reports why it stopped reading
        ours.sendall(data)
        ours.shutdown(socket.SHUT_WR)


def _await_migration(machine: Machine) -> None:
    deadline = Deadline("QEMU's migration", _MIGRATE_TIMEOUT)

    def completed() -> bool:
        answer = machine.qmp("query-migrate")
        status = answer.get("status")
        if status in ("failed", "cancelled"):
            raise RigError(f"QEMU's migration {status}: {answer.get('error-desc', 'no reason')}")
        machine.watch.check()
        return bool(status == "completed")

    if not poll(completed, deadline, pause=0.01):
        raise RigError(f"QEMU's migration took more than {deadline.seconds:.0f} s")
