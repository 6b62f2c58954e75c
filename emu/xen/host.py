"""One emulated host: Xen and dom0, with the verbs that need both."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from emu.channel.channel import Channel, CommandFailed, CommandResult, CommandTimeout
from emu.channel.process import Process
from emu.errors import EmuError, NotHeld, RigError
from emu.images.xens import Xen
from emu.machine.console import Console
from emu.machine.qemu import Machine
from emu.machine.watchdog import Watchdog
from emu.xen import domain as domains
from emu.xen import grants, xenstore
from emu.xen import lun as luns
from emu.xen.config import DomuConfig

AGENT_PORT = "emu.agent"
"""Name of the virtio-serial port that dom0's agent listens on."""

_XENSTORE = "/usr/lib/emu/emu-xenstore"
_LIST = re.compile(r"^(\S+)\s+(\d+)\s+(\d+)\s+(\d+)\s+([rbpscd-]{6})\s+([\d.]+)$")


@dataclass(frozen=True)
class DomainInfo:
    """A line of `xl list`: memory in MiB, CPU time in seconds."""

    name: str
    domid: int
    memory: int
    vcpus: int
    state: str
    cpu_seconds: float


def parse_list(text: str) -> tuple[DomainInfo, ...]:
    """Read the output of `xl list`."""
    matches = (_LIST.match(line) for line in text.splitlines()[1:])
    return tuple(
        DomainInfo(m[1], int(m[2]), int(m[3]), int(m[4]), m[5], float(m[6])) for m in matches if m
    )


def parse_info(text: str) -> dict[str, str]:
    """Read the output of `xl info`: name → value."""
    pairs = (line.partition(":") for line in text.splitlines())
    return {name.strip(): value.strip() for name, colon, value in pairs if colon}


class Host:
    """Xen and its dom0 on one machine. Closing it lets go of the channels, not of the machine."""

    def __init__(self, machine: Machine, xen: Xen) -> None:
        self.machine = machine
        self.xen_release = xen
        self.dom0 = Channel(machine.port(AGENT_PORT), name="dom0", guard=machine.watch)
        self.watchdog: Watchdog | None = None
        """Wakes the machine if QEMU lost an interrupt, as soon as dom0's agent can."""
        self.domains: dict[str, domains.Domain] = {}
        """The domUs taken up on this host, by name. One that is restored is another `Domain`."""
        self.leaving: Callable[[Channel], None] | None = None
        """Called with a domU's channel before the domU, or the channel, is let go of."""

    def wait_agent(self, timeout: float = 120.0) -> None:
        """Wait until dom0's agent answers."""
        self.dom0.hello(timeout)
        # What comes in for the agent is an interrupt.
        self.watchdog = self.watchdog or Watchdog(self.machine, self.dom0.ping)

    def wait_ready(self, timeout: float = 120.0) -> None:
        """Wait until dom0's init has started everything."""
        self.wait_agent(timeout)
        try:
            self.dom0.wait_until("[ -e /run/emu/ready ]", "dom0's services", timeout)
        except CommandTimeout as error:
            raise RigError(f"dom0's services are not up: {error.message}") from None

    def xl(self, *arguments: str, timeout: float = 30.0) -> CommandResult:
        """Run xl in dom0; CommandFailed carries its output."""
        return self.dom0.run(["xl", *arguments], timeout=timeout)

    def info(self) -> dict[str, str]:
        """What `xl info` reports of the hypervisor."""
        return parse_info(self.xl("info").text)

    def list(self) -> tuple[DomainInfo, ...]:
        """The domains that run."""
        return parse_list(self.xl("list").text)

    def domain_info(self, name: str) -> DomainInfo:
        """The line of `xl list` for domain `name`. Raises NoDomain when there is none."""
        running = self.list()
        for info in running:
            if info.name == name:
                return info
        names = ", ".join(info.name for info in running)
        raise domains.NoDomain(f"no domain {name} runs on this host (there are: {names})")

    def read(self, path: str) -> str | None:
        """One xenstore key; None where it is absent."""
        answer = self.dom0.run([_XENSTORE, "read", path], timeout=20, check=False)
        return answer.text if answer.status == 0 else None

    def xenstore(self, path: str) -> xenstore.XenstoreTree:
        """The part of xenstore below `path`; an empty tree where there is nothing."""
        answer = self.dom0.run([_XENSTORE, "ls", path], timeout=20)
        return xenstore.parse(answer.text, path)

    def write(self, keys: Mapping[str, str | int]) -> None:
        """Write xenstore keys, by absolute path, in one transaction."""
        pairs = [str(word) for pair in keys.items() for word in pair]
        if pairs:
            self.dom0.run(["xenstore-write", "--", *pairs], timeout=20)

    def remove(self, *paths: str) -> None:
        """Remove xenstore keys; one that is absent is no error."""
        if paths:
            script = 'for path; do xenstore-rm "$path" 2> /dev/null; done; true'
            self.dom0.run(["sh", "-c", script, "sh", *paths], timeout=20)

    def grants(self) -> grants.GrantDump:
        """What every domain has granted and another maps, right now."""
        text = self.dom0.run(grants.DUMP, timeout=30).stdout.decode(errors="replace")
        return grants.parse(text.splitlines())

    def create_lun(
        self,
        name: str = "lun0",
        size: int = 256 * luns.MIB,
        sector: int = 512,
        server_timeout: int = 0,
        physical: int | None = None,
        *,
        thin: bool = True,
        write_protected: bool = False,
        digests: bool = False,
    ) -> luns.Lun:
        """Make, export and log in to a LUN: see `emu.xen.lun.create`."""
        return luns.create(
            self.dom0, name, size, sector, server_timeout, physical,
            thin=thin, write_protected=write_protected, digests=digests,
        )  # fmt: skip

    def create(self, config: DomuConfig, *, boot_timeout: float = 120.0) -> domains.Domain:
        """Create a domU, follow its console and wait until its agent answers.

        Raises NotHeld as `start`.
        """
        domain = self.start(config)
        domain.open_channel(boot_timeout)
        return domain

    def start(self, config: DomuConfig) -> domains.Domain:
        """Create a domU and follow its console; its kernel has only begun to boot.

        Raises NotHeld with xl's own output when xl refuses the configuration, or when the domU
        ends as soon as it was started.
        """
        path = f"/run/emu/{config.name}.cfg"
        self.dom0.put(config.render(self.xen_release).encode(), path)
        try:
            self.xl("create", path, timeout=120)
        except CommandFailed as failed:
            output = failed.result.stderr.decode(errors="replace").splitlines()
            raise NotHeld(f"xl refused to create domU {config.name}", lines=output[-8:]) from None
        try:
            return self.find(config.name)
        except domains.NoDomain as missing:
            log = f"/var/log/xen/xl-{config.name}.log"
            output = self.dom0.run(["cat", log], timeout=20, check=False).text.splitlines()
            raise NotHeld(
                f"domU {config.name} ended as soon as it was started: {missing}",
                lines=output[-8:],
            ) from None

    def adopt(self, name: str, domid: int, tty: str) -> domains.Domain:
        """Take up a domU that runs already; its console is followed, its channel not open yet.

        It takes the place of one of the same name.
        """
        self.release(name)
        domain = self.domains[name] = domains.Domain(self, name, domid, tty)
        domain.open_console()
        return domain

    def release(self, name: str) -> None:
        """Close a domU's channel and console and forget it, as when it has migrated away."""
        if domain := self.domains.pop(name, None):
            domain.close()

    def domain(self, name: str) -> domains.Domain:
        """The domU `name`, taken up before. Raises NoDomain when this host has none."""
        if name not in self.domains:
            raise domains.NoDomain(f"this host has no domU {name}")
        return self.domains[name]

    def find(self, name: str) -> domains.Domain:
        """Take up the domU `name`, which runs on this host. Raises NoDomain when none does."""
        domid = self.domain_info(name).domid
        tty = self.read(f"/local/domain/{domid}/console/tty")
        if tty is None:
            raise domains.NoDomain(f"xenconsoled serves no console of domU {name}")
        return self.adopt(name, domid, tty)

    def follow_tty(self, tty: str, name: str) -> tuple[Console, Process]:
        """A console fed from a terminal in dom0 (a domU's, as xenconsoled serves it).

        And the process in dom0 that reads it: close that before another one follows the terminal,
        or each gets a part.
        """
        bridge = self.dom0.bridge(tty, tty=True)
        console = self.machine.add_console(name, bridge.write)
        # A daemon: Python's exit, and with it the output, must not wait for a guest.
        threading.Thread(
            target=_pump, args=(bridge, console), name=f"{name} console", daemon=True
        ).start()
        return console, bridge

    def close(self) -> None:
        """Let go of every channel and console."""
        if self.watchdog:
            self.watchdog.close()
        for domain in self.domains.values():
            domain.close()
        self.dom0.close()


def _pump(bridge: Process, console: Console) -> None:
    with contextlib.suppress(EmuError):  # the end of the channel is reported where it is awaited
        while data := bridge.recv(65536):
            console.feed(data)
    console.close()
