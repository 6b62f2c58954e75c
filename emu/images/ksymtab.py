"""What a kernel image exports, read out of the image itself: for kernels without Module.symvers.

Debian keeps `Module.symvers` in the packages of headers, and those of the newest kernels alone.
The table that the module loader searches is in every image: `struct kernel_symbol` in
`__ksymtab` and `__ksymtab_gpl`, three offsets relative to their own places (value, name,
namespace); CRCs in `__kcrctab*`, where the kernel has any. From 7.1 on there is one table, and
`__kflagstab` says what is for GPL-compatible modules only (Linux include/linux/export-internal.h,
kernel/module/main.c).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from elftools.elf.elffile import ELFFile
from elftools.elf.sections import Section

from emu.errors import InputError
from emu.images.elf import Export, read_elf

_ENTRY = struct.Struct("<iii")
_GPL_ONLY = 1
"""KSYM_FLAG_GPL_ONLY."""


@dataclass(frozen=True)
class _Table:
    """One table of exported symbols, and what lies beside it in the same order."""

    symbols: Section
    crcs: Section | None
    flags: bytes
    gpl: bool


def read_exports(vmlinux: Path) -> dict[str, Export]:
    """The symbols that an uncompressed kernel exports itself, as its Module.symvers has them.

    Raises InputError for an image without a table of them.
    """
    elf = read_elf(vmlinux)
    names = elf.get_section_by_name("__ksymtab_strings")
    found: dict[str, Export] = {}
    if names is not None:
        for table in _tables(elf):
            found.update(_read(table, names))
    if not found:
        raise InputError(f"{vmlinux} has no table of exported symbols")
    return found


def render(exports: dict[str, Export]) -> str:
    """The text of a Module.symvers."""
    return "".join(
        f"{export.crc or 0:#010x}\t{name}\t{export.by}\tEXPORT_SYMBOL{'_GPL' * export.gpl}\t"
        f"{export.namespace}\n"
        for name, export in exports.items()
    )


def _tables(elf: ELFFile) -> Iterator[_Table]:
    flags = elf.get_section_by_name("__kflagstab")
    for suffix in ("", "_gpl"):
        symbols = elf.get_section_by_name(f"__ksymtab{suffix}")
        if symbols is not None:
            crcs = elf.get_section_by_name(f"__kcrctab{suffix}")
            yield _Table(symbols, crcs, flags.data() if flags else b"", suffix == "_gpl")


def _read(table: _Table, strings: Section) -> Iterator[tuple[str, Export]]:
    data, address = table.symbols.data(), table.symbols["sh_addr"]
    text, start = strings.data(), strings["sh_addr"]
    crcs = table.crcs.data() if table.crcs is not None else b""

    def string(place: int, offset: int) -> str:
        at = place + offset - start
        if not offset or not 0 <= at < len(text):
            return ""
        return text[at : text.index(b"\0", at)].decode()

    for number, (_, name, namespace) in enumerate(_ENTRY.iter_unpack(data)):
        place = address + number * _ENTRY.size
        crc = int.from_bytes(crcs[4 * number : 4 * number + 4], "little") or None
        flags = table.flags[number] if table.flags else 0
        gpl = table.gpl or bool(flags & _GPL_ONLY)
        yield string(place + 4, name), Export(crc, "vmlinux", gpl, string(place + 8, namespace))
