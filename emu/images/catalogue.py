"""The kernels that Debian's archives hold, as kernels.lock has them, and the names they go by.

    debian-6.18            the newest of a line
    debian-6.12.107        upstream's version; of several packages one with headers, the newest
    debian-6.12.107+deb12  the ABI, where there are two: `uname -r` less the flavour
    debian-6.1.192-1       the version of the package
    cloud-6.12.95          Debian's kernel for virtual machines, for a domU
    6.1.0-56-cloud-amd64   what `uname -r` prints

Those that Debian keeps headers and source for can have drivers of ours.
"""

from __future__ import annotations

import bisect
import difflib
import functools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from debian.debian_support import Version

from emu import paths
from emu.images.packages import INCOMPLETE, KERNELS, Lock, kernel_set

DEBIAN, CLOUD = "debian", "cloud"
_CLOUD_TAIL, _TAIL = "-cloud-amd64", "-amd64"


@dataclass(frozen=True)
class PackagedLinux:
    """A Linux in Debian's archives. `release` is what `uname -r` prints, `version` the package's,
    `archive` where it is from; `buildable`: the archive has headers and source of it;
    `complete`: it has all of the image, and not the kernel without its modules.
    """

    release: str
    version: str
    archive: str
    buildable: bool
    complete: bool = True

    @property
    def flavour(self) -> str:
        """ "debian", or "cloud" for the one without hardware (and without dom0)."""
        return CLOUD if self.release.endswith(_CLOUD_TAIL) else DEBIAN

    @property
    def abi(self) -> str:
        """The release less its flavour: "6.1.0-56", "6.12.107+deb13"."""
        return self.release.removesuffix(_TAIL).removesuffix("-cloud")

    @property
    def upstream(self) -> str:
        """Upstream's version: "6.12.107", "7.3~rc7"."""
        return self.version.rpartition("-")[0]

    @property
    def line(self) -> str:
        """The first two numbers of the version: "6.12"."""
        return line_of(self.version)

    @property
    def packages(self) -> dict[str, str]:
        """Its sets in kernels.lock by role, as `Spec.packages`."""
        roles = ("image", "headers", "source") if self.buildable else ("image",)
        return {role: kernel_set(role, self.release) for role in roles}

    @property
    def names(self) -> tuple[str, ...]:
        """All names it may be given; several may have the first two."""
        told = (self.line, self.upstream, self.abi, self.version)
        return (*(f"{self.flavour}-{one}" for one in told), self.release)


@dataclass(frozen=True)
class Catalogue:
    """All of them, the oldest version first."""

    kernels: tuple[PackagedLinux, ...]

    @classmethod
    def of(cls, lock: Lock) -> Catalogue:
        """The kernels that a lock has sets for."""
        sets = {name for package in lock.entries for name in package.sets}
        found = []
        for package in lock.entries:
            release = package.name.removeprefix("linux-image-")
            image, part, *building = (
                kernel_set(role, release) for role in ("image", INCOMPLETE, "headers", "source")
            )
            if {image, part} & set(package.sets):
                buildable, complete = sets.issuperset(building), image in package.sets
                found.append(
                    PackagedLinux(release, package.version, package.archive, buildable, complete)
                )
        return cls(tuple(sorted(found, key=lambda one: (Version(one.version), one.release))))

    def find(self, name: str) -> PackagedLinux | None:
        """The kernel of that name. Of several it is the newest, for an upstream version the newest
        with headers."""
        return self._by_name.get(name)

    def short_name(self, kernel: PackagedLinux) -> str:
        """Its name in lists and reports: as short as it can be and still mean this one alone."""
        for kind in (kernel.upstream, kernel.abi, kernel.version):
            name = f"{kernel.flavour}-{kind}"
            if kernel.upstream in kind and self._counted[name] == 1:
                return name
        return f"{kernel.flavour}-{kernel.version}"

    def nearest(self, name: str) -> list[str]:
        """Names that may have been meant by one that is not there: its neighbours."""
        flavour, _, version = name.partition("-")
        same = [one for one in self.kernels if one.flavour == flavour and one.complete]
        if not (same and re.match(r"\d", version)):
            return difflib.get_close_matches(name, list(self._by_name), 3)
        return [self.short_name(one) for one in around(version, same)]

    def neighbours(self, kernel: PackagedLinux, lines: Iterable[str] | None) -> list[str]:
        """The nearest kernels of its flavour, older and newer, that drivers can be built for (of
        these release lines, where there is a series only for some)."""
        known = None if lines is None else set(lines)
        able = [
            one
            for one in self.kernels
            if one.buildable
            and one.flavour == kernel.flavour
            and (known is None or one.line in known)
        ]
        return [self.short_name(one) for one in around(kernel.version, able)]

    @functools.cached_property
    def _by_name(self) -> dict[str, PackagedLinux]:
        found: dict[str, PackagedLinux] = {}
        for kernel in self.kernels:
            for name in kernel.names:
                before = found.get(name)
                same = before is not None and before.upstream == kernel.upstream
                if not (before and same and before.buildable and not kernel.buildable):
                    found[name] = kernel
        return found

    @functools.cached_property
    def _counted(self) -> dict[str, int]:
        counted: dict[str, int] = {}
        for kernel in self.kernels:
            for name in set(kernel.names):
                counted[name] = counted.get(name, 0) + 1
        return counted


def line_of(version: str) -> str:
    """ "6.12" of "6.12.107+deb13" and of "6.12"."""
    found = re.match(r"\d+\.\d+", version)
    return found[0] if found else version


def around(version: str, kernels: Sequence[PackagedLinux]) -> list[PackagedLinux]:
    """Of kernels, the oldest first, the last one before a version and the first one after it."""
    at = bisect.bisect_left([Version(one.version) for one in kernels], Version(version))
    return [*kernels[max(0, at - 1) : at], *kernels[at : at + 1]]


@functools.lru_cache(maxsize=1)
def catalogue() -> Catalogue:
    """The kernels of kernels.lock. Raises InputError for a lock that can't be read."""
    return Catalogue.of(Lock.load(paths.guest_images() / KERNELS))
