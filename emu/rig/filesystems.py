"""File systems on the disks of a domU."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from emu.errors import EmuError, InputError
from emu.images.filesystem import make_ext4
from emu.rig.disks import FIRST_DISK, DomuDisks
from emu.rig.lun import RigLun
from emu.xen import filesystems

KINDS = ("ext4",)


class DomuFileSystems(DomuDisks):
    """A domU that mounts its disks."""

    @contextlib.contextmanager
    def mounted(
        self, disk: RigLun | str = FIRST_DISK, fs: str = "ext4", *, make: bool = True
    ) -> Iterator[str]:
        """A new file system on a disk, mounted while the body runs; the path of its root.

        With `make` False what is there is mounted, as it is: its journal is replayed where it
        was not unmounted. The kernel's modules for it are loaded on demand. It stays mounted
        while the domU is saved and restored; of one that has ended nothing is unmounted.
        Raises InputError for another `fs` than ext4, NotHeld with the kernel's words.
        """
        if fs not in KINDS:
            raise InputError(f"a file system to mount is {' or '.join(KINDS)}, not {fs!r}")
        name = self.block(disk)
        files = self.host.stack.artifacts.domu_kernel.module_order([fs])
        filesystems.load_modules(self.channel, files)
        if make:
            extents = make_ext4(filesystems.size(self.channel, name))
            filesystems.write(self.channel, name, extents)
        path = f"/mnt/{name}"
        filesystems.mount(self.channel, name, path, fs)
        try:
            yield path
        except BaseException:
            with contextlib.suppress(EmuError):
                self._unmount(path)
            raise
        self._unmount(path)

    def _unmount(self, path: str) -> None:
        if not self.ended:
            filesystems.unmount(self.channel, path)

    def trim(self, path: str) -> int:
        """Discard what a mounted file system does not use (fstrim); how many bytes.

        Raises NotHeld with the kernel's words.
        """
        return filesystems.trim(self.channel, path)

    def frozen(self, path: str) -> contextlib.AbstractContextManager[None]:
        """A mounted file system frozen while the body runs (fsfreeze): all that was written is on
        the disk, and who writes waits. Raises NotHeld with the kernel's words.
        """
        return filesystems.frozen(self.channel, path)
