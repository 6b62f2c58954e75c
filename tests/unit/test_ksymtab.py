"""What a kernel image exports, read out of images that gcc and ld make in milliseconds."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from emu.errors import InputError
from emu.images import elf, ksymtab
from emu.images.elf import Export

NAMES = ("printk", "xenbus_grant_ring", "crypto_alloc")


def entry(name: str, table: str, namespace: str) -> str:
    """One `struct kernel_symbol`: offsets from their own places to the value and both strings."""
    return (
        f'.section {table},"a"\n'
        f".long {name} - .\n.long str_{name} - .\n.long str_{namespace or 'empty'} - .\n"
        f'.section __ksymtab_strings,"a"\nstr_{name}: .asciz "{name}"\n.text\n{name}: ret\n'
    )


def image(path: Path, assembler: str) -> Path:
    strings = '.section __ksymtab_strings,"a"\nstr_empty: .asciz ""\nstr_CRYPTO: .asciz "CRYPTO"\n'
    gcc = ["gcc", "-c", "-xassembler", "-", "-o", str(path.with_suffix(".o"))]
    subprocess.run(gcc, input=strings + assembler, text=True, check=True)
    subprocess.run(["ld", "-Ttext=0x1000", "-e0", "-o", path, path.with_suffix(".o")], check=True)
    subprocess.run(["strip", path], check=True)  # as in a bzImage
    return path


def test_two_tables_with_crcs(tmp_path: Path) -> None:
    # Until 7.0.
    text = entry(NAMES[0], "__ksymtab", "") + '.section __kcrctab,"a"\n.long 0x92997ed8\n'
    text += entry(NAMES[1], "__ksymtab_gpl", "") + entry(NAMES[2], "__ksymtab_gpl", "CRYPTO")
    text += '.section __kcrctab_gpl,"a"\n.long 7\n.long 0xfffffff8\n'
    found = ksymtab.read_exports(image(tmp_path / "vmlinux", text))
    assert found == {
        "printk": Export(0x92997ED8, "vmlinux"),
        "xenbus_grant_ring": Export(7, "vmlinux", gpl=True),
        "crypto_alloc": Export(0xFFFFFFF8, "vmlinux", gpl=True, namespace="CRYPTO"),
    }
    assert elf.read_symvers(ksymtab.render(found)) == found


def test_one_table_with_flags(tmp_path: Path) -> None:
    # From 7.1 on; Debian's kernels of then have no CRCs.
    text = "".join(entry(name, "__ksymtab", "") for name in NAMES)
    text += '.section __kflagstab,"a"\n.byte 0, 1, 3\n'
    found = ksymtab.read_exports(image(tmp_path / "vmlinux", text))
    assert {name: export.gpl for name, export in found.items()} == dict(
        zip(NAMES, (False, True, True), strict=True)
    )
    assert {export.crc for export in found.values()} == {None}
    assert elf.read_symvers(ksymtab.render(found)) == found


def test_image_without_a_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no table of exported symbols"):
        ksymtab.read_exports(image(tmp_path / "vmlinux", ".text\nret\n"))
