"""One emulated PC: QEMU's process, its monitor, its consoles, its ports.

All links to QEMU are socket pairs whose other ends it inherits: a machine has no file that
another process could open, and leaves nothing behind when it is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from qemu.qmp import QMPError

from emu.errors import GuestError, InputError, RigError
from emu.machine.console import Console
from emu.machine.consolelog import CappedLog
from emu.machine.disks import open_layers
from emu.machine.link import Link
from emu.machine.monitor import Event, Monitor, Refused
from emu.machine.process import Child
from emu.machine.rundir import RunDir, disk_full
from emu.machine.spec import MachineSpec, QemuFds, build_argv, disk_layers
from emu.machine.verdict import LINUX, XEN
from emu.machine.watch import Watch
from emu.reactor import reactor

START_TIMEOUT = 20.0
"""Seconds for QEMU to answer on its monitor after it was started."""
QMP_TIMEOUT = 30.0


class MachineEnded(RigError):
    """QEMU exited, or stopped its machine for good, while it was still needed."""


class GuestEnded(MachineEnded, GuestError):
    """A guest ended its machine: Xen or dom0 was reset, or shut itself down."""


class Machine:
    """A running QEMU, from `Machine.start` (cold) or `checkpoint.load`.

    `xen` and `dom0` are the consoles; every wait goes through `watch`. Leaving the context
    ends QEMU.
    """

    def __init__(self, spec: MachineSpec, rundir: RunDir) -> None:
        self.spec = spec
        self.rundir = rundir
        self.watch = Watch()
        self.ram: int | None = None
        """Descriptor of the RAM's file, on a machine that can be saved."""
        self.overlays: dict[int, int] = {}
        """Descriptors of the overlays, by disk index, on a machine that can be saved."""
        self.frozen: tuple[tuple[Path, ...], ...] = tuple(() for _ in spec.disks)
        self._links: list[Link] = []
        self._sockets: dict[str, socket.socket] = {}
        self._consoles: list[Console] = []
        self._given: list[int] = []
        self._child: Child | None = None
        self._monitor: Monitor | None = None
        self._ending = False
        self._ending_task: asyncio.Task[None] | None = None
        self._shutdown_reason = ""
        self._merged: CappedLog | None = None
        self.xen: Console
        self.dom0: Console

    @classmethod
    def start(
        cls,
        spec: MachineSpec,
        rundir: RunDir,
        *,
        savable: bool = False,
        wire: socket.socket | None = None,
    ) -> Machine:
        """Start a cold machine; with `savable` its RAM and overlays can become a checkpoint.

        `wire` is the end of a socket pair on which its network card hangs (the caller's to
        close); the other end is another machine's.

        Returns as soon as QEMU answers; the guest is booting then. Raises InputError (a
        file or program is missing), RigError (QEMU did not start; its last words).
        """
        machine = cls(spec, rundir)
        if savable:
            ram = os.memfd_create("emu-ram", os.MFD_CLOEXEC)
            os.ftruncate(ram, spec.memory_mib * 2**20)
            machine.ram = ram
        try:
            machine.launch(ram=machine.ram, keep_overlays=savable, ram_shared=savable, wire=wire)
        except BaseException:
            machine.kill()
            raise
        return machine

    def launch(
        self,
        *,
        ram: int | None = None,
        ram_shared: bool = False,
        keep_overlays: bool = False,
        frozen: Sequence[Sequence[Path]] | None = None,
        incoming: bool = False,
        wire: socket.socket | None = None,
    ) -> None:
        """Start QEMU. `frozen[i]` are the overlays between disk i and its throwaway one."""
        self._merged = self._log("console")
        if frozen is not None:
            self.frozen = tuple(tuple(paths) for paths in frozen)
        theirs: dict[str, socket.socket] = {}
        files: dict[str, int] = {}
        try:
            layers = self._open_files(files)
            if ram is not None:
                files["ram"] = os.dup(ram)
            for name, fd in files.items():
                # Guests see these names: keep them equally long, however many files are open.
                files[name] = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 100)
                os.close(fd)
            self._make_links(theirs, wire)
            argv = build_argv(
                self.spec,
                QemuFds(files, {name: sock.fileno() for name, sock in theirs.items()}),
                layers=layers,
                ram_shared=ram_shared,
                incoming=incoming,
            )
            inherited = [*files.values(), *(sock.fileno() for sock in theirs.values())]
            inherited += self._given
            self._child = Child.spawn(argv, inherited, self.rundir.log("qemu"))
            if keep_overlays:
                for index, disk in enumerate(self.spec.disks):
                    if disk.overlaid:
                        self.overlays[index] = os.dup(files[f"disk{index}.{layers[index] - 1}"])
        finally:
            for fd in files.values():
                os.close(fd)
            for sock in theirs.values():
                sock.close()
        self._child.on_end(self._ended)
        self._connect()

    def give(self, fd: int) -> int:
        """Let QEMU inherit one more descriptor when it is launched; returns its number."""
        self._given.append(fd)
        return fd

    def _open_files(self, files: dict[str, int]) -> tuple[int, ...]:
        spec = self.spec
        boot = {"xen": spec.xen, "dom0": spec.dom0_kernel, "initrd": spec.initrd}
        for name, path in boot.items():
            if path is not None:
                try:
                    files[name] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                except OSError as error:
                    raise InputError(f"can't open {path}: {error.strerror}") from error
        layers = []
        for index, disk in enumerate(spec.disks):
            fds = open_layers(disk, self.frozen[index], self.rundir.state)
            layers.append(len(fds))
            files.update(zip(disk_layers(index, len(fds)), fds, strict=True))
        return tuple(layers)

    def _make_links(self, theirs: dict[str, socket.socket], wire: socket.socket | None) -> None:
        if bool(self.spec.mac) != (wire is not None):
            raise ValueError("a machine with a network card needs a wire, and no other does")
        if wire is not None:
            theirs["wire"] = wire.dup()
        names = ["qmp", "com1", "com2", *(f"port.{port}" for port in self.spec.ports)]
        for name in names:
            self._sockets[name], theirs[name] = socket.socketpair()

    def _connect(self) -> None:
        # A PV dom0's kernel prints to Xen's console as well, and at first only there.
        self.xen = self._serial("xen", self._sockets.pop("com1"), {XEN: "xen", LINUX: "dom0"})
        self.dom0 = self._serial("dom0", self._sockets.pop("com2"), {LINUX: "dom0"})
        self._monitor = Monitor(self._sockets.pop("qmp"), self._event)
        assert self._child is not None
        try:
            self._monitor.connect(START_TIMEOUT)
        except (QMPError, EOFError, OSError, RigError) as error:
            self._child.wait(2)
            raise RigError(
                f"QEMU did not start ({self._child.epitaph()})", lines=self._child.last_words()
            ) from error

    def _serial(self, name: str, sock: socket.socket, speakers: Mapping[str, str]) -> Console:
        def write(data: bytes) -> None:
            link.send(data)

        console = self.add_console(name, write, speakers=speakers)
        link = Link(sock, console.feed)
        self._links.append(link)
        return console

    def _log(self, name: str) -> CappedLog:
        path = self.rundir.log(name)
        count = 1
        while path.exists():  # a domU of this name was there before
            count += 1
            path = self.rundir.log(f"{name}-{count}")
        return CappedLog(path, broken=lambda _: self.watch.fail(disk_full(path, "a console's log")))

    # Events, in the reactor's thread.

    def _ended(self) -> None:
        for link in self._links:
            link.close()
        self._ending_task = reactor().loop.create_task(self._report_end())

    async def _report_end(self) -> None:
        if self._monitor:
            await self._monitor.drained()  # its last event may say why
        child = self._child
        assert child is not None
        why = f", {self._shutdown_reason}" if self._shutdown_reason else ""
        by_guest = self._shutdown_reason.startswith("guest-")
        ended = GuestEnded if by_guest else MachineEnded
        self.watch.fail(ended(f"QEMU ended ({child.epitaph()}{why})", lines=child.last_words()))
        # After `fail`: a reader of a console gets that error, not EOF.
        for console in self._consoles:
            console.close()

    async def _end_reported(self) -> None:
        if self._ending_task:
            await self._ending_task

    def _event(self, event: Event) -> None:
        name, data = event["event"], event.get("data", {})
        if name == "SHUTDOWN":
            self._shutdown_reason = str(data.get("reason", ""))
        elif name == "BLOCK_IO_ERROR" and data.get("nospace"):
            self.watch.fail(disk_full(self.rundir.state, "what the guest writes"))
        elif name == "BLOCK_IO_ERROR":
            self.watch.fail(MachineEnded(f"QEMU met a disk error: {data.get('reason')}"))
        elif name == "STOP" and not self._ending:
            reactor().loop.run_in_executor(None, self._ask_why_stopped)

    def _ask_why_stopped(self) -> None:
        with contextlib.suppress(RigError):
            status = self.qmp("query-status")["status"]
            if status in ("internal-error", "io-error", "guest-panicked"):
                assert self._child is not None
                self.watch.fail(
                    MachineEnded(
                        f"QEMU stopped the machine ({status})", lines=self._child.last_words()
                    )
                )

    # For its user.

    @property
    def pid(self) -> int:
        """QEMU's process id."""
        assert self._child is not None
        return self._child.pid

    @property
    def running(self) -> bool:
        """Whether QEMU's process runs."""
        return self._child is not None and self._child.running

    @property
    def killed_by(self) -> int | None:
        """The signal that ended QEMU, where this process did not send it."""
        status = self._child.status if self._child else None
        return None if self._ending or status is None or status >= 0 else -status

    def qmp(self, command: str, *, timeout: float = QMP_TIMEOUT, **arguments: Any) -> Any:
        """Run a QMP command (underscores in argument names become hyphens); its answer.

        Raises monitor.Refused, MachineEnded, or RigError (no answer in `timeout` seconds).
        """
        return self.qmp_fd(command, None, timeout, **arguments)

    def qmp_fd(self, command: str, fd: int | None, timeout: float, **arguments: Any) -> Any:
        """`qmp` that sends a descriptor along (for `getfd`)."""
        assert self._monitor is not None
        named = {name.replace("_", "-"): value for name, value in arguments.items()}
        try:
            return self._monitor.execute(command, named, timeout, fd)
        except Refused:
            raise
        except RigError:
            assert self._child is not None
            if self._child.wait(1.0):
                self.watch.sleep_until_change(lambda: False, 2.0)
                self.watch.check()
            raise

    def port(self, name: str) -> socket.socket:
        """Our end of a virtio-serial port: a connected stream socket, the caller's to close.

        Given once; what the guest writes waits in it from the machine's start.
        """
        return self._sockets.pop(f"port.{name}")

    def add_console(
        self,
        name: str,
        write: Callable[[bytes], None],
        *,
        speakers: Mapping[str, str] | None = None,
    ) -> Console:
        """A console of a nested guest (a domU): `Console.feed` takes what it prints."""

        def merged(stamp: float, who: str, line: str) -> None:
            if self._merged:
                self._merged.write(f"[{stamp:9.3f}] {who} | {line}")

        console = Console(
            name, self.watch, write, speakers=speakers, log=self._log(name), merged=merged
        )
        self._consoles.append(console)
        return console

    def remark(self, line: str) -> None:
        """Write a line of ours to the merged log of the consoles (not once QEMU is being ended)."""

        def write() -> None:
            if self._merged and not self._ending:
                self._merged.write(f"[{self.watch.now():9.3f}] rig | {line}")

        reactor().call(write)

    def pause(self) -> None:
        """Stop the virtual CPUs."""
        self.qmp("stop")

    def resume(self) -> None:
        """Start the virtual CPUs."""
        self.qmp("cont")

    def wait(self, timeout: float, what: str = "QEMU to end") -> int:
        """Wait until QEMU ends by itself (the guest shut down); its exit status.

        Raises GuestTrouble when a guest gets into trouble first, WaitTimeout.
        """
        child = self._child
        assert child is not None
        if child.running:
            with contextlib.suppress(MachineEnded):
                self.watch.wait(lambda: None if child.running else True, what, timeout)
        assert child.status is not None
        return child.status

    def stop(self) -> None:
        """Quit QEMU (disks are flushed), by force when that takes more than 5 s."""
        self._ending = True
        if self.running:
            with contextlib.suppress(RigError):
                self.qmp("quit", timeout=5)
            assert self._child is not None
            self._child.wait(5)
        self.kill()

    def kill(self) -> None:
        """End QEMU at once and release everything. Twice is fine."""
        self._ending = True
        if self._child:
            self._child.kill()
            reactor().run(self._end_reported(), 5, "the consoles to close")
        if self._monitor:
            self._monitor.close()
            self._monitor = None
        for sock in self._sockets.values():
            sock.close()
        self._sockets = {}
        for fd in [*self.overlays.values(), *([] if self.ram is None else [self.ram])]:
            os.close(fd)
        self.overlays, self.ram = {}, None
        if self._merged:
            reactor().call(self._merged.close)

    def __enter__(self) -> Machine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if any(not disk.readonly and not disk.throwaway for disk in self.spec.disks):
            self.stop()
        else:
            self.kill()
