"""This machine's tools: host-packages.txt, the list that `make setup` and `emu doctor` share."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from emu import paths

HOST_PACKAGES = paths.PACKAGE / "host-packages.txt"
_ADMIN_PATHS = ("/usr/local/sbin", "/usr/sbin", "/sbin")


@dataclass(frozen=True)
class HostPackage:
    """A line of host-packages.txt. `found_by`: names of programs, absolute paths of files."""

    name: str
    needed_for: str
    found_by: tuple[str, ...]
    purpose: str

    @property
    def lacks(self) -> tuple[str, ...]:
        """What of it is not on this machine."""
        return tuple(what for what in self.found_by if find_tool(what) is None)


def load_packages(path: Path = HOST_PACKAGES) -> tuple[HostPackage, ...]:
    """Read host-packages.txt."""
    found = []
    for line in path.read_text().splitlines():
        columns, _, purpose = line.partition("#")
        if columns.strip():
            name, needed_for, found_by = columns.split()
            found.append(HostPackage(name, needed_for, tuple(found_by.split(",")), purpose.strip()))
    return tuple(found)


def find_tool(what: str) -> str | None:
    """The path of a program, also where only root's PATH looks, or of a file."""
    if what.startswith("/"):
        return what if Path(what).exists() else None
    search = os.pathsep.join([os.environ.get("PATH", os.defpath), *_ADMIN_PATHS])
    return shutil.which(what, path=search)


def install_command(packages: Iterable[str]) -> str:
    """What installs these packages here."""
    names = " ".join(packages)
    if find_tool("apt-get") is None:
        return f"install what these Debian packages hold: {names}"
    return f"{'' if os.geteuid() == 0 else 'sudo '}apt-get install {names}"


def installs(*programs: str) -> str:
    """What installs programs of host-packages.txt: a checkout's `make setup`, else apt."""
    if not paths.installed():
        return "make setup"
    wanted = [one.name for one in load_packages() if set(one.found_by) & set(programs)]
    return install_command(wanted) if wanted else "`emu doctor` says what to install"


def builds_qemu(name: str = "patched") -> str:
    """What builds a QEMU of ours, with all it takes where this is a checkout."""
    if paths.installed():
        return f"emu qemu build {name}"
    return "make qemu" if name == "patched" else f"make qemu ARGS={name}"
