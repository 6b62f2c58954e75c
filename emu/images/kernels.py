"""The kernels the guests run: taken out of a Debian package, or built for this rig.

Either becomes the same directory, a `Kernel`: what Xen boots, what modules have to fit,
and what modules are built against. `guest-images/kernels.toml` lists them.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from emu.errors import InputError
from emu.images import elf
from emu.images.built_kernel import lab_kernel
from emu.images.catalogue import CLOUD, DEBIAN
from emu.images.context import BuildContext
from emu.images.depends import find_modules, order_of, plain
from emu.images.kconfig import check_requirements
from emu.images.kernel_specs import requirements, spec
from emu.images.packaged_kernel import packaged_kernel
from emu.images.replaced import settled
from emu.images.source_tree import Tree
from emu.images.tree_kernel import TreeWish, tree_kernel


@dataclass(frozen=True)
class Kernel:
    """A kernel on this machine, with all its files below `root`.

    `name` is that of its `Spec` (or the path of a given one, or of a tree), `release` what
    `uname -r` prints in the guest, `version` its whole banner ("Linux version …"). `tree` is
    what it was built of where that is a tree on this machine.
    """

    name: str
    flavour: str
    release: str
    version: str
    root: Path
    tree: Tree | None = None

    @property
    def vmlinux(self) -> Path:
        """The uncompressed ELF file that Xen boots, without symbols."""
        return self.root / "vmlinux"

    @property
    def debug(self) -> Path | None:
        """The same with symbols and DWARF, where we have it."""
        path = self.root / "vmlinux.debug"
        return path if path.exists() else None

    @property
    def config(self) -> Path:
        """The final .config."""
        return self.root / "config"

    @property
    def symvers(self) -> Path:
        """Module.symvers: exported symbols and their CRCs (where they have any)."""
        return self.root / "Module.symvers"

    @property
    def modules(self) -> Path:
        """`lib/modules/<release>`."""
        return self.root / "lib/modules" / self.release

    @property
    def devel(self) -> Path:
        """A tar of what modules are built against; its `build` is the directory for make. There
        is none for a packaged kernel without headers."""
        return self.root / "devel.tar"

    def info(self) -> elf.KernelInfo:
        """What modules are checked against (read once per process)."""
        return _info(self)

    def module(self, name: str) -> Path:
        """The file of one of its modules; InputError if there is none of that name."""
        path = find_modules(self.modules).get(plain(name))
        if path is None:
            raise InputError(f"{self.name} ({self.release}) has no module {name}")
        return path

    def module_order(self, names: Iterable[str]) -> list[Path]:
        """The files to insmod for these modules, in order; what is built in is left out."""
        return order_of(self.modules, names)


@settled
def get_kernel(wanted: str | TreeWish, context: BuildContext) -> Kernel:
    """The kernel of any name that `spec` knows, or of a tree, from the cache or made now (lab,
    tree: minutes).

    Raises InputError for an unknown name, a missing tool, a patch or an option that does
    not take, a kernel without Xen support, or a tree that is none or does not compile.
    """
    if isinstance(wanted, TreeWish):
        root, tree = tree_kernel(wanted, context)
        return replace(_load(root, str(wanted), "tree"), tree=tree)
    known = spec(wanted)
    make = {DEBIAN: packaged_kernel, CLOUD: packaged_kernel, "lab": lab_kernel}[known.flavour]
    return _load(make(known, context), known.name, known.flavour)


def check_known(wanted: str | TreeWish) -> None:
    """Raise InputError for a kernel that `get_kernel` refuses before it fetches or builds."""
    if isinstance(wanted, TreeWish):
        wanted.check()
    else:
        spec(wanted)


def kernel_at(root: Path) -> Kernel:
    """A kernel built elsewhere: a directory with the files that `Kernel` names.

    Raises InputError for what is missing: a file, an option, Xen support.
    """
    for name in ("vmlinux", "config", "Module.symvers", "release", "lib/modules"):
        if not (root / name).exists():
            raise InputError(f"{root} is not a kernel: it has no {name}")
    check_requirements(root / "config", requirements())
    elf.require_xen(root / "vmlinux", pv=True, pvh=True, dom0=True)
    kernel = _load(root, str(root), "given")
    kernel.info()
    return kernel


def _load(root: Path, name: str, flavour: str) -> Kernel:
    release = (root / "release").read_text().strip()
    version = root / "version"
    banner = version.read_text().strip() if version.exists() else elf.banner(root / "vmlinux")
    return Kernel(name, flavour, release, banner, root)


@functools.lru_cache(maxsize=8)
def _info(kernel: Kernel) -> elf.KernelInfo:
    return elf.read_kernel(kernel.vmlinux, kernel.release, kernel.symvers)
