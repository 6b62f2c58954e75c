"""What the guests boot from: dom0's root and initrd, the domU's initrd, Xen, a scratch disk.

dom0's root is one read-only squashfs, mounted under a RAM overlay, so no run can write
into another's state. The domU has only its initrd, which is in dom0's root.
Nothing here needs root, and the same inputs give the same bytes.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from emu import paths
from emu.errors import InputError, RigError
from emu.images import agent, console, handler
from emu.images.agent import GuestPrograms
from emu.images.context import BuildContext
from emu.images.depends import read_indexes
from emu.images.fetch import fetch
from emu.images.kernels import Kernel
from emu.images.manifest import JSON
from emu.images.packages import Package, Wanted, load_wanted, lock_digest
from emu.images.replaced import settled
from emu.images.tree import FileTree
from emu.images.xens import Xen
from emu.progress import Progress
from emu.runprogram import run

_RECIPE = 5
"""Raised when the way an image is made changes the outcome; part of the cache key."""
SCRATCH_SIZE = 8 << 30
"""Bytes of dom0's scratch disk, which holds the files behind the LUNs; sparse."""

# In the order they are needed: to mount the root, then by dom0's init.
INITRD_MODULES = ("virtio_ring", "virtio", "virtio_pci", "virtio_blk", "squashfs", "overlay")
DOM0_MODULES = (
    "virtio_console",
    *("xen-evtchn", "xen-gntdev", "xen-gntalloc", "xen-privcmd", "xenfs"),
    "ext4",
    *("target_core_user", "iscsi_target_mod", "iscsi_tcp", "sd_mod"),
)
_CONSOLE_INIT = "domu/init-console"
DOMU_SET = "domu"
TOOLS = "usr/lib/xen-tools"
"""Where dom0's init finds the tool stack, of whatever release."""
_SCRIPTS = ("dom0/init", "dom0/initrd-init", "dom0/iscsid.conf", "domu/init")


@dataclass(frozen=True)
class OwnPrograms:
    """What we built for the guests: static programs, tcmu-runner's handler, and for some kernels
    a module for the domU's console.
    """

    tools: GuestPrograms
    lun_server: Path
    console: Path | None = None


@dataclass(frozen=True)
class GuestImages:
    """The files a host boots from."""

    root: Path

    @property
    def xen(self) -> Path:
        """The hypervisor, unpacked."""
        return self.root / "xen"

    @property
    def initrd(self) -> Path:
        """dom0's initrd (cpio)."""
        return self.root / "dom0-initrd.cpio"

    @property
    def dom0(self) -> Path:
        """dom0's root file system (squashfs)."""
        return self.root / "dom0.squashfs"

    @property
    def domu(self) -> Path:
        """The domU's initrd (cpio), the same as in dom0's root."""
        return self.root / "domu-initrd.cpio"

    @property
    def scratch(self) -> Path:
        """An empty ext4 file system in a qcow2 image, the template of dom0's scratch disk."""
        return self.root / "scratch.qcow2"


@settled
def get_guests(
    xen: Xen, kernel: Kernel, context: BuildContext, *, domu_kernel: Kernel | None = None
) -> GuestImages:
    """The images with this Xen for dom0's kernel and the domU's (default: the same), from the
    cache or made.
    """
    sets = package_sets(xen)
    tools = agent.build(context)
    server = handler.build(xen, context)
    wanted = {want.name: want for want in load_wanted()}
    inputs: dict[str, JSON] = {
        "packages": lock_digest(context.lock, sets),
        "kernel": kernel.root.name,
        "agent": tools.agent.parent.name,
        "lun_server": server.parent.name,
        "scripts": _digest(paths.guest_images() / name for name in _SCRIPTS),
        "left_out": {name: list(wanted[name].leave_out) for name in sets},
        "modules": [*INITRD_MODULES, *DOM0_MODULES],
        "recipe": _RECIPE,
    }
    if domu_kernel is not None and domu_kernel != kernel:
        inputs["domu_kernel"] = domu_kernel.root.name
    module: Path | None = None
    if console.is_needed(domu_kernel or kernel):
        module = console.build(domu_kernel or kernel, context)
        inputs["console"] = [module.parent.name, _digest([paths.guest_images() / _CONSOLE_INIT])]

    def build(made: Path) -> None:
        debs = debs_by_set(fetch(sets, context), sets)
        with context.progress.stage("building the guest images"):
            own = OwnPrograms(tools, server, module)
            build_images(
                debs, xen, kernel, own, GuestImages(made), context.progress, domu_kernel=domu_kernel
            )

    return GuestImages(context.entry("guests", inputs, build))


def package_sets(xen: Xen) -> tuple[str, ...]:
    """The sets of packages.toml that guest images with this Xen are made of."""
    return xen.hypervisor, xen.dom0, DOMU_SET


def debs_by_set(debs: Mapping[Package, Path], sets: Iterable[str]) -> dict[str, list[Path]]:
    """Sort fetched packages by the sets they belong to."""
    return {name: [path for package, path in debs.items() if name in package.sets] for name in sets}


def build_images(
    debs: dict[str, list[Path]],
    xen: Xen,
    kernel: Kernel,
    own: OwnPrograms,
    into: GuestImages,
    progress: Progress,
    *,
    domu_kernel: Kernel | None = None,
) -> None:
    """Make every image; the domU's user space holds no modules, only dom0's depends on a kernel."""
    wanted = {want.name: want for want in load_wanted()}
    progress.tick("Xen")
    _hypervisor(debs[xen.hypervisor], into.xen)
    progress.tick("the domU's initrd")
    domu = domu_tree(debs[DOMU_SET], wanted[DOMU_SET], own.tools, own.console)
    domu.write_cpio(into.domu)
    progress.tick("dom0's root")
    root = dom0_tree([*debs[xen.dom0], *debs[DOMU_SET]], wanted[xen.dom0], xen, kernel, own)
    root.add_file("boot/domu/initrd", into.domu.read_bytes())
    root.add_file("boot/domu/vmlinux", (domu_kernel or kernel).vmlinux.read_bytes())
    missing = root.missing_libraries()
    if missing:
        lines = [f"/{path} needs {', '.join(names)}" for path, names in missing.items()]
        raise InputError(
            f"{len(missing)} programs in dom0's root would not load",
            lines=lines[:10],
            hint="guest-images/packages.toml drops or leaves out too much",
        )
    root.write_squashfs(into.dom0)
    progress.tick("dom0's initrd")
    initrd_tree(root, kernel).write_cpio(into.initrd)
    progress.tick("the scratch disk")
    _scratch(into.scratch, progress)


def domu_tree(
    debs: list[Path], wanted: Wanted, tools: GuestPrograms, module: Path | None = None
) -> FileTree:
    """The domU's user space: busybox, programs of ours, our init, a module for its console."""
    tree = FileTree.from_debs(debs, leave_out=wanted.leave_out)
    _busybox(tree)
    for name in ("dev", "proc", "run", "sys", "tmp", "root"):
        tree.add_dir(name)
    for program in (tools.agent, tools.io, tools.grants, tools.memory):
        tree.add_host(program, f"usr/lib/emu/{program.name}")
    add_init(tree, module)
    # The kernel opens it for init before init can mount devtmpfs.
    tree.add_node("dev/console", "char", 5, 1)
    _accounts(tree)
    return tree


def add_init(tree: FileTree, module: Path | None) -> None:
    """The domU's init, which a module for its console goes before."""
    if module is None:
        tree.add_file("init", _script("domu/init"), 0o755)
        return
    tree.add_file("init", _script(_CONSOLE_INIT), 0o755)
    tree.add_file("init.domu", _script("domu/init"), 0o755)
    tree.add_host(module, module.name)


def dom0_tree(
    debs: list[Path], wanted: Wanted, xen: Xen, kernel: Kernel, own: OwnPrograms
) -> FileTree:
    """dom0's user space, without the domU's files."""
    tree = FileTree.from_debs(debs, leave_out=wanted.leave_out)
    _busybox(tree)
    for name in ("dev", "proc", "run", "sys", "tmp", "root", "mnt", "scratch", "boot/domu"):
        tree.add_dir(name)
    for name in ("lock", "run"):
        tree.remove(f"var/{name}")
    tree.add_link("var/run", "/run")
    tree.add_link("var/lock", "/run/lock")
    own_programs = (
        own.tools.agent,
        own.tools.channeld,
        own.tools.lun,
        own.tools.grants,
        own.tools.memory,
        own.tools.stream,
        own.tools.xenstore,
    )
    for program in own_programs:
        tree.add_host(program, f"usr/lib/emu/{program.name}")
    # tcmu-runner loads every handler that it finds in there.
    tree.add_host(own.lun_server, f"usr/lib/emu/tcmu-handlers/{handler.NAME}")
    tree.add_file("sbin/init", _script("dom0/init"), 0o755)
    tree.add_link(TOOLS, f"/{xen.tools}")
    tree.add_link("etc/xen/scripts/block-emu", f"/usr/lib/emu/{own.tools.xenstore.name}")
    tree.add_file("etc/iscsi/iscsid.conf", _script("dom0/iscsid.conf"), 0o600)
    tree.add_file(
        "etc/iscsi/initiatorname.iscsi", b"InitiatorName=iqn.2015-05.org.xen-block:dom0\n"
    )
    _accounts(tree)
    modules = f"lib/modules/{kernel.release}"
    tree.add_host(kernel.modules, modules)
    # tcmu-runner looks its kernel side up in them (libkmod).
    for name, index in read_indexes(kernel.modules).items():
        # With it libkmod before 29 (bullseye's) finds nothing built-in by its name; without it,
        # any libkmod does, in modules.builtin.bin.
        if name != "modules.builtin.alias.bin":
            tree.add_file(f"{modules}/{name}", index)
    order = [path.relative_to(kernel.modules) for path in kernel.module_order(DOM0_MODULES)]
    early = {path.relative_to(kernel.modules) for path in kernel.module_order(INITRD_MODULES)}
    lines = [f"/{modules}/{path}\n" for path in order if path not in early]
    tree.add_file("etc/emu/modules.order", "".join(lines).encode())
    return tree


def initrd_tree(root: FileTree, kernel: Kernel) -> FileTree:
    """What finds and mounts dom0's root."""
    tree = FileTree(merged=False)
    for name in ("bin", "dev", "mnt", "modules"):
        tree.add_dir(name)
    tree.add_file("bin/busybox", root.read("bin/busybox"), 0o755)
    tree.add_file("init", _script("dom0/initrd-init"), 0o755)
    tree.add_node("dev/console", "char", 5, 1)
    files = kernel.module_order(INITRD_MODULES)
    for path in files:
        tree.add_file(f"modules/{path.name}", path.read_bytes())
    lines = [f"/modules/{path.name}\n" for path in files]
    tree.add_file("modules.order", "".join(lines).encode())
    return tree


def _busybox(tree: FileTree) -> None:
    """Link busybox under the name of every program it is that the tree has not got."""
    with contextlib.ExitStack() as stack:
        fd = stack.enter_context(_memory_file(tree.read("bin/busybox")))
        failed = "the guests' busybox does not run here"
        program = f"/proc/self/fd/{fd}"
        listed = run(["busybox", "--list-full"], failed, executable=program, pass_fds=(fd,))
    names = listed.text.split()
    if len(names) < 100:
        raise RigError(failed, lines=listed.tail(5))
    for name in sorted(names):
        program = Path(name).name
        places = (f"usr/{folder}/{program}" for folder in ("bin", "sbin"))
        if not any(place in tree for place in places):
            tree.add_link(f"usr/bin/{program}", "busybox")


@contextlib.contextmanager
def _memory_file(data: bytes) -> Iterator[int]:
    fd = os.memfd_create("busybox", 0)
    try:
        os.write(fd, data)
        yield fd
    finally:
        os.close(fd)


def _accounts(tree: FileTree) -> None:
    tree.add_file("etc/passwd", b"root::0:0:root:/root:/bin/sh\n")
    tree.add_file("etc/group", b"root::0:\n")
    tree.add_file("etc/hosts", b"127.0.0.1 localhost\n")


def _hypervisor(debs: list[Path], into: Path) -> None:
    tree = FileTree.from_debs(debs, keep=["boot"])
    images = tree.glob("boot/xen-*.gz")
    if len(images) != 1:
        raise RigError(f"the Xen package holds {len(images)} hypervisors, one was expected")
    into.write_bytes(gzip.decompress(tree.read(images[0])))


def _scratch(path: Path, progress: Progress) -> None:
    """An ext4 file system with fixed UUID, hash seed and times; no journal to recover.

    qcow2 keeps it at the few MiB it holds: the cache hashes what it keeps.
    """
    raw = path.with_suffix(".ext4")
    with raw.open("wb") as file:
        file.truncate(SCRATCH_SIZE)
    uuid = "0be10c00-7c3e-4a55-9d7e-000000000001"
    extended = f"lazy_itable_init=1,nodiscard,hash_seed={uuid},root_owner=0:0"
    make = ["mke2fs", "-q", "-F", "-t", "ext4", "-O", "^has_journal", "-m", "0", "-U", uuid]
    try:
        run(
            [*make, "-E", extended, str(raw)],
            "mke2fs failed",
            env={**os.environ, "E2FSPROGS_FAKE_TIME": "1"},
            progress=progress,
        )
        convert = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(path)]
        run(convert, "qemu-img failed", progress=progress)
    finally:
        raw.unlink()


def _script(name: str) -> bytes:
    return (paths.guest_images() / name).read_bytes()


def _digest(files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.read_bytes() + b"\0")
    return digest.hexdigest()
