"""Kernels and modules as ELF files, and whether a module fits a kernel.

The rules are the module loader's own (Linux `kernel/module/main.c`, `version.c`), applied
on the host, so that a module which cannot load is refused with its reason before any
guest runs. No function here builds or changes anything.
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from elftools.common.exceptions import ELFError, ELFParseError
from elftools.construct import ConstructError
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import NoteSection, SymbolTableSection

from emu.errors import InputError
from emu.images.packed import unpacked

_MODVERSION = struct.Struct("<Q56s")
"""struct modversion_info, include/linux/module.h: the CRC, the symbol's name."""
_XEN_ENTRY, _XEN_SUPPORTED, _XEN_PHYS32 = 1, 17, 18
_FEATURE_DOM0 = 1 << 11
"""Xen's public headers: elfnote.h, features.h (XENFEAT_dom0)."""
_BROKEN = (ELFError, ELFParseError, ConstructError, struct.error, UnicodeError, ValueError)


@dataclass(frozen=True)
class Export:
    """An exported symbol. `crc` is None without CONFIG_MODVERSIONS; `by` is "vmlinux"
    or a module; `gpl`: only for modules with a GPL-compatible licence.
    """

    crc: int | None
    by: str
    gpl: bool = False
    namespace: str = ""


@dataclass(frozen=True)
class ModuleInfo:
    """A kernel module, as its ELF file has it.

    `build_id` and `srcversion` are hex; `parameters` maps name to type as modinfo shows it
    ("" if unknown); `versions` maps each symbol the module was built against to its CRC.
    """

    path: Path
    name: str
    vermagic: str
    build_id: str
    srcversion: str
    license: str
    depends: tuple[str, ...]
    softdeps_pre: tuple[str, ...]
    aliases: tuple[str, ...]
    namespaces: frozenset[str]
    parameters: Mapping[str, str]
    versions: Mapping[str, int]
    undefined: frozenset[str]
    weak: frozenset[str]
    exports: Mapping[str, Export]
    has_dwarf: bool


@dataclass(frozen=True)
class KernelInfo:
    """What a module has to fit: the kernel's release, vermagic and every exported symbol."""

    release: str
    vermagic: str
    exports: Mapping[str, Export] = field(repr=False)


@dataclass(frozen=True)
class XenSupport:
    """As which kind of guest a kernel's Xen ELF notes let it start."""

    pv: bool
    pvh: bool
    dom0: bool


def read_module(path: Path) -> ModuleInfo:
    """Everything we ask of a kernel module (`.ko`, or compressed).

    Raises InputError: not an ELF file, truncated, for another machine, not a module.
    """
    elf = read_elf(path)
    if elf["e_type"] != "ET_REL" or elf.get_section_by_name(".gnu.linkonce.this_module") is None:
        raise InputError(f"{path} is an ELF file but not a kernel module")
    try:
        return _module(path, elf)
    except _BROKEN as error:
        raise InputError(f"{path} is a damaged or truncated module: {error}") from error


def read_symvers(text: str, *, what: str = "Module.symvers") -> dict[str, Export]:
    """Parse a kernel's `Module.symvers`: CRC, symbol, who exports it, how, namespace (by tabs)."""
    exports: dict[str, Export] = {}
    for number, line in enumerate(text.splitlines(), 1):
        try:
            crc, name, by, how, *rest = line.split("\t")
            value = int(crc, 16)
        except ValueError as error:
            raise InputError(f"{what}, line {number}, makes no sense: {line!r}") from error
        exports[name] = Export(value or None, by, how.endswith("_GPL"), rest[0] if rest else "")
    if not exports:
        raise InputError(f"{what} is empty: no module could be checked against it")
    return exports


def read_kernel(vmlinux: Path, release: str, symvers: Path) -> KernelInfo:
    """What modules have to fit; the vermagic is read out of the kernel image itself."""
    image = unpacked(vmlinux)
    pattern = rb"\0(" + re.escape(release.encode()) + rb" (?:[\w-]+ )*)\0"
    if not (found := re.search(pattern, image)):
        raise InputError(f"{vmlinux} holds no vermagic of {release}: it is another kernel")
    text = symvers.read_text()
    return KernelInfo(release, found[1].decode(), read_symvers(text, what=str(symvers)))


def banner(vmlinux: Path) -> str:
    """The kernel's banner: "Linux version 6.1.0-…"."""
    found = re.search(rb"Linux version \d[^\n\0]*", unpacked(vmlinux))
    if not found:
        raise InputError(f"{vmlinux} has no Linux banner: it is not a Linux kernel")
    return found[0].decode("utf-8", "replace")


def xen_support(vmlinux: Path) -> XenSupport:
    """What the Xen ELF notes of an uncompressed kernel promise; all False without any."""
    notes = _notes(vmlinux)
    features = notes.get(("Xen", _XEN_SUPPORTED), b"")
    bits = int.from_bytes(features[:4], "little")
    pv, pvh = (("Xen", note) in notes for note in (_XEN_ENTRY, _XEN_PHYS32))
    return XenSupport(pv, pvh, bool(bits & _FEATURE_DOM0))


def require_xen(vmlinux: Path, *, pv: bool = False, pvh: bool = False, dom0: bool = False) -> None:
    """Raise InputError unless the kernel can start under Xen in each of the asked ways."""
    has = xen_support(vmlinux)
    if not (has.pv or has.pvh):
        raise InputError(
            f"{vmlinux} has no Xen ELF notes: a kernel without Xen support",
            hint="build it with CONFIG_XEN, CONFIG_XEN_PV and CONFIG_XEN_PVH",
        )
    asked = {"CONFIG_XEN_PV": pv, "CONFIG_XEN_PVH": pvh, "CONFIG_XEN_PV_DOM0": dom0}
    given = {"CONFIG_XEN_PV": has.pv, "CONFIG_XEN_PVH": has.pvh, "CONFIG_XEN_PV_DOM0": has.dom0}
    for option, wanted in asked.items():
        if wanted and not given[option]:
            raise InputError(f"{vmlinux} was built without {option}", hint=f"build with {option}=y")


def build_id(path: Path) -> str:
    """The build id (hex) of a module or of an uncompressed kernel."""
    wanted = _notes(path).get(("GNU", 3))
    if not wanted:
        raise InputError(
            f"{path} has no build id", hint="link it with --build-id=sha1, as kbuild does"
        )
    return wanted.hex()


def check_module(
    module: ModuleInfo,
    kernel: KernelInfo,
    *,
    also: Iterable[ModuleInfo] = (),
    parameters: Iterable[str] = (),
) -> None:
    """Raise InputError, with the first reason, if `kernel` would refuse to load `module`.

    `also` are modules of ours loaded before it, whose exports come before the kernel's;
    `parameters` are the names that will be given to insmod.
    """
    _check_vermagic(module, kernel)
    exports = {**kernel.exports}
    for other in also:
        exports.update(other.exports)
    for symbol in sorted(module.undefined | module.versions.keys()):
        if symbol in exports:
            _check_symbol(module, kernel, symbol, exports[symbol])
        elif symbol in module.undefined and symbol not in module.weak:
            raise InputError(
                f"{module.path} needs the symbol {symbol}, which {kernel.release} does not export"
            )
    for name in parameters:
        if name not in module.parameters:
            known = ", ".join(sorted(module.parameters)) or "none"
            raise InputError(f"{module.name} has no parameter {name}", hint=f"it has: {known}")
    if not module.build_id:
        raise InputError(
            f"{module.path} has no build id, so the loaded one could not be identified",
            hint="link it with --build-id=sha1, as kbuild does",
        )


# -- below: how the loader judges


def _check_vermagic(module: ModuleInfo, kernel: KernelInfo) -> None:
    ours, theirs = module.vermagic, kernel.vermagic
    if module.versions and "modversions" in theirs:
        # With CRCs the loader lets another release pass: the CRCs decide (same_magic()).
        ours, theirs = (text.partition(" ")[2] for text in (ours, theirs))
    if ours.split() != theirs.split():
        raise InputError(
            f"{module.path} was built for another kernel: its vermagic is "
            f'"{module.vermagic.strip()}", the kernel\'s "{kernel.vermagic.strip()}"'
        )
    if "modversions" in theirs.split() and not module.versions:
        # The loader refuses it without a word (check_version(), try_to_force_load()).
        raise InputError(
            f"{module.path} says that it has symbol versions, but has none",
            hint="build it for a kernel with CONFIG_BASIC_MODVERSIONS=y",
        )


def _check_symbol(module: ModuleInfo, kernel: KernelInfo, symbol: str, export: Export) -> None:
    crc = module.versions.get(symbol)
    if crc is not None and export.crc is not None and crc != export.crc:
        raise InputError(
            f"{module.path} was built against another version of {symbol}: "
            f"CRC {crc:#010x} in the module, {export.crc:#010x} in {kernel.release}"
        )
    if symbol not in module.undefined:
        return
    if export.gpl and not _gpl_compatible(module.license):
        raise InputError(
            f'{module.path} has the licence "{module.license}" but uses {symbol}, '
            "which is exported to GPL-compatible modules only"
        )
    if export.namespace and export.namespace not in module.namespaces:
        raise InputError(
            f"{module.path} uses {symbol} of the namespace {export.namespace} "
            "without importing it (MODULE_IMPORT_NS)"
        )


def _gpl_compatible(text: str) -> bool:
    """As license_is_gpl_compatible() in include/linux/license.h has it."""
    return text in {
        "GPL",
        "GPL v2",
        "GPL and additional rights",
        "Dual BSD/GPL",
        "Dual MIT/GPL",
        "Dual MPL/GPL",
    }


# -- below: how ELF has it


def read_elf(path: Path) -> ELFFile:
    """An ELF file, perhaps compressed. Raises InputError: not ELF, truncated, not for x86-64."""
    return _open_elf(path, unpacked(path))


def _open_elf(path: Path, data: bytes) -> ELFFile:
    if not data.startswith(b"\x7fELF"):
        raise InputError(f"{path} is not an ELF file")
    try:
        elf = ELFFile(io.BytesIO(data))
        end = elf["e_shoff"] + elf["e_shnum"] * elf["e_shentsize"]
        ends = [
            section["sh_offset"] + section["sh_size"]
            for section in elf.iter_sections()
            if section["sh_type"] not in ("SHT_NOBITS", "SHT_NULL")
        ]
    except _BROKEN as error:
        raise InputError(f"{path} is a truncated or damaged ELF file") from error
    if len(data) < max([end, *ends]):
        raise InputError(f"{path} is truncated: {len(data)} bytes of {max([end, *ends])}")
    if elf["e_machine"] != "EM_X86_64":
        raise InputError(f"{path} is for {elf.get_machine_arch()}, the guests are x86-64")
    return elf


def _module(path: Path, elf: ELFFile) -> ModuleInfo:
    facts: dict[str, list[str]] = {}
    for item in _section(elf, ".modinfo").split(b"\0"):
        key, equals, value = item.decode("utf-8", "replace").partition("=")
        if equals:
            facts.setdefault(key, []).append(value)
    symbols = [s for s in _symbols(elf) if s.name]
    outside = [s for s in symbols if s["st_shndx"] == "SHN_UNDEF"]
    parameters = {text.partition(":")[0]: "" for text in facts.get("parm", [])}
    for text in facts.get("parmtype", []):
        name, _, kind = text.partition(":")
        parameters[name] = kind
    table = _section(elf, "__versions")
    versions = {
        name.partition(b"\0")[0].decode(): crc & 0xFFFFFFFF
        for crc, name in _MODVERSION.iter_unpack(table[: len(table) // 64 * 64])
    }
    # CONFIG_EXTENDED_MODVERSIONS (from 6.14 on): names of any length in a section of their own.
    names = _section(elf, "__version_ext_names").split(b"\0")
    crcs = struct.iter_unpack("<I", _section(elf, "__version_ext_crcs"))
    versions.update((name.decode(), crc) for name, (crc,) in zip(names, crcs, strict=False))
    pre = [part.partition("pre:")[2].partition("post:")[0] for part in facts.get("softdep", [])]
    return ModuleInfo(
        path=path,
        name=facts.get("name", [path.name.partition(".")[0]])[0].replace("-", "_"),
        vermagic=facts.get("vermagic", [""])[0],
        build_id=_notes_of(elf).get(("GNU", 3), b"").hex(),
        srcversion=facts.get("srcversion", [""])[0],
        license=facts.get("license", ["unspecified"])[0],
        depends=tuple(n.replace("-", "_") for n in _words(facts, "depends") if n),
        softdeps_pre=tuple(" ".join(pre).split()),
        aliases=tuple(facts.get("alias", [])),
        namespaces=frozenset(facts.get("import_ns", [])),
        parameters=parameters,
        versions=versions,
        undefined=frozenset(s.name for s in outside),
        weak=frozenset(s.name for s in outside if s["st_info"]["bind"] == "STB_WEAK"),
        exports=_exports(elf, symbols, path),
        has_dwarf=elf.get_section_by_name(".debug_info") is not None,
    )


def _words(facts: Mapping[str, list[str]], key: str) -> list[str]:
    return facts.get(key, [""])[0].split(",")


def _exports(elf: ELFFile, symbols: list[Any], path: Path) -> dict[str, Export]:
    """Exported symbols: `__ksymtab_NAME`, its CRC in `__crc_NAME` (absolute, or in a section)."""
    crcs: dict[str, int] = {}
    for symbol in symbols:
        if symbol.name.startswith("__crc_"):
            where, value = symbol["st_shndx"], symbol["st_value"]
            if isinstance(where, int):
                (value,) = struct.unpack_from("<I", elf.get_section(where).data(), value)
            crcs[symbol.name[6:]] = value & 0xFFFFFFFF
    exports = {}
    for symbol in symbols:
        where = symbol["st_shndx"]
        if symbol.name.startswith("__ksymtab_") and isinstance(where, int):
            name = symbol.name[len("__ksymtab_") :]
            gpl = elf.get_section(where).name.startswith("___ksymtab_gpl")
            exports[name] = Export(crcs.get(name), path.name, gpl)
    return exports


def _section(elf: ELFFile, name: str) -> bytes:
    section = elf.get_section_by_name(name)
    return bytes(section.data()) if section is not None else b""


def _symbols(elf: ELFFile) -> Iterable[Any]:
    table = elf.get_section_by_name(".symtab")
    return table.iter_symbols() if isinstance(table, SymbolTableSection) else ()


def _notes(path: Path) -> dict[tuple[str, int], bytes]:
    elf = read_elf(path)
    try:
        return _notes_of(elf)
    except _BROKEN as error:
        raise InputError(f"{path} has damaged ELF notes: {error}") from error


def _notes_of(elf: ELFFile) -> dict[tuple[str, int], bytes]:
    """All notes by (owner, number). pyelftools names the numbers it knows: we want numbers."""
    found: dict[tuple[str, int], bytes] = {}
    for section in elf.iter_sections():
        if isinstance(section, NoteSection):
            found.update(_parse_notes(bytes(section.data())))
    return found


def _parse_notes(data: bytes) -> dict[tuple[str, int], bytes]:
    found, at = {}, 0
    while at + 12 <= len(data):
        name_size, size, kind = struct.unpack_from("<III", data, at)
        name = data[at + 12 : at + 12 + name_size].rstrip(b"\0").decode("ascii", "replace")
        at += 12 + (name_size + 3 & ~3)
        found[name, kind] = data[at : at + size]
        at += size + 3 & ~3
    return found
