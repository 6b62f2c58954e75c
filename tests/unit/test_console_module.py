"""The module for a domU's second console: which kernels get it, and where it is put."""

from __future__ import annotations

from pathlib import Path

import pytest

from emu import paths
from emu.errors import InputError
from emu.images import console
from emu.images.cache import Cache
from emu.images.context import BuildContext
from emu.images.guests import add_init
from emu.images.kernels import Kernel
from emu.images.tree import FileTree


def kernel(release: str, root: Path) -> Kernel:
    return Kernel("debian-x", "debian", release, "", root)


@pytest.mark.parametrize(
    ("release", "needed"),
    [
        ("5.10.0-46-cloud-amd64", True),
        ("6.1.0-56-amd64", False),
        ("6.12.95+deb12-amd64", False),
        ("7.3-amd64", False),
        ("own", False),
    ],
)
def test_old_kernels_need_it(release: str, needed: bool, tmp_path: Path) -> None:
    assert console.is_needed(kernel(release, tmp_path)) == needed


def test_kernel_without_headers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="debian-x can't be a domU's"):
        console.build(kernel("5.10.0-46-amd64", tmp_path), BuildContext(Cache(tmp_path)))


def test_module_is_loaded_before_init(tmp_path: Path) -> None:
    init = (paths.guest_images() / "domu/init").read_bytes()
    plain, with_module = FileTree(), FileTree()
    add_init(plain, None)
    assert plain.read("init") == init
    module = tmp_path / "emu-console.ko"
    module.write_bytes(b"module")
    add_init(with_module, module)
    lines = with_module.read("init").decode().splitlines()
    assert lines.index("/bin/busybox insmod /emu-console.ko") < lines.index("exec /init.domu")
    assert with_module.read("init.domu") == init
    assert with_module.read("emu-console.ko") == b"module"
