"""Modules and kernels that do not fit are refused on this machine, before any QEMU starts."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from emu_command import Warm

from emu.errors import EXIT_INPUT, InputError
from emu.images.cache import Cache
from emu.images.context import BuildContext
from emu.images.elf import read_module
from emu.images.kernels import Kernel, get_kernel, kernel_at
from emu.images.patched import from_environment
from emu.pytestplugin.reports import PrintedProgress
from emu.stack.drivers import driver_for
from emu.stack.stack import Artifacts

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def module(artifacts: Artifacts, everything: Cache, tmp_path: Path) -> Path:
    """A copy of the patched front end, to be spoilt."""
    built = driver_for(
        "front", "patched", artifacts, BuildContext(everything, patched=from_environment())
    ).path
    return Path(shutil.copy(built, tmp_path / "xen-blkfront.ko"))


def refusal(warm: Warm, *arguments: str) -> str:
    """The error of an `emu run` that is refused; it must not have come to start a machine."""
    # Without a checkpoint the first thing to do would be to boot one.
    home = warm.home(without=("checkpoint",))
    command = warm.run(home, *arguments)
    output = command.fail(EXIT_INPUT, timeout=20)
    assert "booting" not in command.stderr
    assert not (home / "emu-xen-block/runs").exists(), "a machine was started"
    return output


def test_module_with_another_vermagic_is_refused(
    warm: Warm, module: Path, artifacts: Artifacts
) -> None:
    """As built for a kernel without SMP and symbol versions, of another release.

    (Where symbols have versions, these decide and not the release: kernel/module/version.c.)
    """
    content = module.read_bytes()
    at = content.index(f"vermagic={artifacts.kernel.release} ".encode())
    end = content.index(b"\0", at)
    edited = b"vermagic=6.0.0-9-other preempt mod_unload "
    module.write_bytes(content[:at] + edited.ljust(end - at, b"\0") + content[end:])
    output = refusal(warm, "--front", str(module))
    assert "6.0.0-9-other preempt mod_unload" in output
    assert artifacts.kernel.release in output
    assert str(module) in output


def test_module_with_another_crc_is_refused(warm: Warm, module: Path) -> None:
    """Built against a kernel in which `xenbus_dev_fatal` had another prototype."""
    with module.open("rb") as file:
        section = ELFFile(file).get_section_by_name("__versions")
        assert section is not None
        at, data = section["sh_offset"], section.data()
    # struct modversion_info: a CRC of 8 bytes, a name of 56 (Linux 6.1, linux/module.h).
    slot = next(
        n for n in range(0, len(data), 64) if data[n + 8 :].startswith(b"xenbus_dev_fatal\0")
    )
    with module.open("r+b") as file:
        file.seek(at + slot)
        file.write(bytes([data[slot] ^ 1]))
    assert "xenbus_dev_fatal" in refusal(warm, "--front", str(module))


def test_module_with_an_unknown_symbol_is_refused(warm: Warm, module: Path) -> None:
    renamed = ["objcopy", "--redefine-sym", "xenbus_dev_fatal=xenbus_dev_fatal_v2", str(module)]
    subprocess.run(renamed, check=True)
    assert "xenbus_dev_fatal_v2" in refusal(warm, "--front", str(module))


@pytest.mark.timeout(2700)  # it may have to build the lab kernel
def test_module_of_the_lab_kernel_is_refused(
    warm: Warm, everything: Cache, artifacts: Artifacts, progress: PrintedProgress
) -> None:
    built = get_kernel("lab-6.1", BuildContext(everything, progress)).module("xen-blkfront")
    output = refusal(warm, "--front", str(built))
    assert read_module(built).vermagic.split()[0] in output
    assert artifacts.kernel.release in output


def test_module_of_the_other_end_is_refused(warm: Warm, module: Path) -> None:
    assert "is the module xen_blkfront" in refusal(warm, "--back", str(module))


def test_file_that_is_no_module_is_refused(warm: Warm, tmp_path: Path) -> None:
    (tmp_path / "text.ko").write_text("not a module\n")
    assert "text.ko" in refusal(warm, "--front", str(tmp_path / "text.ko"))
    assert "gone.ko" in refusal(warm, "--front", str(tmp_path / "gone.ko"))


def test_kernel_without_xen_notes_is_refused(artifacts: Artifacts, tmp_path: Path) -> None:
    """As one is that was built without CONFIG_XEN: its notes say nothing to a hypervisor."""
    root = linked(artifacts.kernel, tmp_path)
    spoilt = root / "vmlinux"
    spoilt.unlink()
    command = ["objcopy", "--remove-section=.notes", str(artifacts.kernel.vmlinux), str(spoilt)]
    subprocess.run(command, check=True, capture_output=True)
    with pytest.raises(InputError, match=r"(?i)xen") as refused:
        kernel_at(root)
    assert str(root) in str(refused.value)


def test_kernel_without_xen_options_is_refused(artifacts: Artifacts, tmp_path: Path) -> None:
    root = linked(artifacts.kernel, tmp_path)
    lines = artifacts.kernel.config.read_text().splitlines()
    (root / "config").unlink()
    kept = [line for line in lines if not line.startswith(("CONFIG_XEN", "CONFIG_HVC_XEN"))]
    (root / "config").write_text("\n".join(kept))
    with pytest.raises(InputError, match="CONFIG_XEN") as refused:
        kernel_at(root)
    assert "CONFIG_XEN_BLKDEV_BACKEND" in str(refused.value)


def linked(kernel: Kernel, folder: Path) -> Path:
    """A kernel's directory whose files can be replaced."""
    root = folder / "kernel"
    root.mkdir()
    for path in kernel.root.iterdir():
        (root / path.name).symlink_to(path)
    return root
