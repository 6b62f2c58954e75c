"""The Xens there are, one of each Debian suite, and all in which they differ for the rig.

A Xen is taken whole: hypervisor, libxl and xl, xenstored and what else runs in dom0 are of one
suite, and the LUN's server is built against that suite's C library and tcmu-runner. The sets are
in guest-images/packages.toml.
"""

from __future__ import annotations

from dataclasses import dataclass

from emu.errors import InputError

DEFAULT = "4.17"
"""The Xen of whoever names none."""


@dataclass(frozen=True)
class Xen:
    """One Xen, by its release ("4.17"), the Debian suite that has it, and its tcmu-runner.

    `channels`: how many of xl's `channel` a domU is given for one console past the first. Before
    4.20.1 xl numbers the first of them 0, which is the first console, and libxl refuses that one
    with a line in xl's log (tools/xl: fix channel configuration setting).
    """

    release: str
    suite: str
    tcmu_runner: str
    channels: int

    @property
    def hypervisor(self) -> str:
        """The set of packages.toml with the hypervisor."""
        return f"xen-{self.release}"

    @property
    def dom0(self) -> str:
        """The set with dom0's user space."""
        return f"dom0-{self.release}"

    @property
    def libc(self) -> str:
        """The set with dom0's C library and its headers."""
        return f"libc-{self.suite}"

    @property
    def tools(self) -> str:
        """Where the suite keeps the tool stack of this release, in dom0's root."""
        return f"usr/lib/xen-{self.release}"


XENS = {
    xen.release: xen
    for xen in (
        Xen("4.14", "bullseye", tcmu_runner="1.5.2", channels=2),
        Xen("4.17", "bookworm", tcmu_runner="1.5.4", channels=2),
        Xen("4.20", "trixie", tcmu_runner="1.5.4", channels=1),
    )
}


def find(release: str) -> Xen:
    """The Xen of a release. Raises InputError for one that no Debian suite has."""
    try:
        return XENS[release]
    except KeyError:
        there = ", ".join(f"{xen.release} ({xen.suite})" for xen in XENS.values())
        raise InputError(
            f"there is no Xen {release}: Debian's suites have {there}, and no other",
            hint=f"--xen {_nearest(release)}",
        ) from None


def _nearest(release: str) -> str:
    """That of a point release, else the next that there is, or the last; else the default."""
    try:
        wanted = _numbers(release)[:2]
    except ValueError:
        return DEFAULT
    return next((one for one in XENS if _numbers(one) >= wanted), max(XENS, key=_numbers))


def _numbers(release: str) -> tuple[int, ...]:
    return tuple(int(number) for number in release.split("."))
