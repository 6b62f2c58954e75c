"""Our programs in the guests: C, statically linked.

emu-agent serves the command channel, emu-channeld the domU's console for it; emu-lun controls the
LUN server, emu-io does verified I/O in a domU, emu-grants shows what a guest grants, emu-memory
what its kernel has allocated, emu-stream migrates a domU from dom0 to dom0, emu-xenstore reads
xenstore and is libxl's hotplug script for disks.

Sources: guest-images/agent/. They are built with this machine's compiler and need only the guest's
kernel.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from emu import paths
from emu.errors import InputError
from emu.images import cbuild
from emu.images.context import BuildContext
from emu.images.manifest import JSON
from emu.runprogram import run

CC = "gcc"
FLAGS = (*cbuild.FLAGS, "-static")
SOURCES = {
    "emu-agent": (
        "emu-agent.c",
        "link.c",
        "command.c",
        "spawn.c",
        "tree.c",
        "files.c",
        "bridge.c",
        cbuild.CRC32,
    ),
    "emu-channeld": ("emu-channeld.c", "xenstore.c", "ring.c", "qmp.c"),
    "emu-lun": ("emu-lun.c",),
    "emu-io": ("emu-io.c", "io-work.c"),
    "emu-grants": ("emu-grants.c", "keys.c", "table.c", "privcmd.c", "account.c", "kcore.c"),
    "emu-stream": ("emu-stream.c",),
    "emu-memory": ("emu-memory.c", "kcore.c"),
    "emu-xenstore": ("emu-xenstore.c", "xenstore.c"),
}


@dataclass(frozen=True)
class GuestPrograms:
    """Paths of the built programs on this machine."""

    agent: Path
    channeld: Path
    lun: Path
    io: Path
    grants: Path
    stream: Path
    memory: Path
    xenstore: Path


def build(context: BuildContext) -> GuestPrograms:
    """All programs, from the cache or built. Raises InputError without a compiler."""
    folder = paths.guest_images() / "agent"
    inputs: dict[str, JSON] = {
        "sources": cbuild.sources(folder),
        "flags": list(FLAGS),
        "compiler": _compiler(),
    }

    def fill(target: Path) -> None:
        for name, sources in SOURCES.items():
            with context.progress.stage(f"compiling {name}"):
                _compile(folder, sources, target / name)

    made = context.entry("guest-programs", inputs, fill)
    return GuestPrograms(*(made / name for name in SOURCES))


def _compiler() -> str:
    """What a static program depends on besides its sources and flags."""
    version = _run([CC, "--version"]).splitlines()[0]
    libc = Path(_run([CC, "-print-file-name=libc.a"]).strip())
    if not libc.is_absolute():
        raise InputError(
            "the static C library, which the guest programs need, is not installed",
            hint="sudo apt-get install libc6-dev",
        )
    return f"{version}; libc.a {hashlib.sha256(libc.read_bytes()).hexdigest()}"


def _compile(folder: Path, sources: tuple[str, ...], program: Path) -> None:
    _run([CC, *FLAGS, "-o", str(program), *sources], cwd=folder)
    program.chmod(0o755)


def _run(argv: list[str], cwd: Path | None = None) -> str:
    return run(
        argv,
        f"{argv[0]} failed on the guest programs",
        error=InputError,
        lines=15,
        hint="sudo apt-get install gcc libc6-dev linux-libc-dev, if a header is missing",
        missing="sudo apt-get install gcc libc6-dev",
        cwd=cwd,
    ).text
