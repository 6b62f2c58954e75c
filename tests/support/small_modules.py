"""Small real ELF files for the tests: modules and kernels that gcc and ld make in milliseconds."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

RELEASE = "6.1.0-56-amd64"
LAYOUT = 0x9060323F
VERMAGIC = f"{RELEASE} SMP preempt mod_unload modversions "


def build_module(
    path: Path,
    *,
    name: str | None = None,
    vermagic: str = VERMAGIC,
    uses: Mapping[str, int] | None = None,
    exports: Mapping[str, int] | None = None,
    info: Sequence[str] = (),
    licence: str = "GPL",
    layout: int | None = LAYOUT,
    build_id: bool = True,
    extended: bool = False,
) -> Path:
    """A loadable-looking module at `path`: it uses and exports symbols (name to CRC).

    Without a `layout` (the CRC of module_layout) it has no CRCs of what it uses. `extended`
    has them as CONFIG_EXTENDED_MODVERSIONS alone writes them.
    """
    uses, exports = {"printk": 0x92997ED8} if uses is None else uses, exports or {}
    name = name or path.name.partition(".")[0].replace("-", "_")
    table = {} if layout is None else {"module_layout": layout, **uses}
    facts = [f"name={name}", f"vermagic={vermagic}", f"license={licence}", *info]
    modinfo = "".join(f"{fact}\\0" for fact in facts)
    versions = "".join(f'{{{crc:#x}, "{symbol}"}},' for symbol, crc in table.items())
    calls = "".join(f"extern void {s}(void); void use_{s}(void) {{ {s}(); }}\n" for s in uses)
    offered = "".join(
        f'void {s}(void) {{}}\nasm(".section ___ksymtab_gpl+{s},\\"a\\"\\n__ksymtab_{s}: .long 0\\n'
        f'.section ___kcrctab,\\"a\\"\\n__crc_{s}: .long {crc:#x}\\n.text");\n'
        for s, crc in exports.items()
    )
    kept = f"""static const struct {{ unsigned long crc; char name[56]; }}
            versions[] IN("__versions") = {{ {versions} }};"""
    if extended:
        names = "".join(f"{symbol}\\0" for symbol in table)
        crcs = ", ".join(f"{crc:#x}" for crc in table.values())
        kept = f"""static const unsigned int crcs[] IN("__version_ext_crcs") = {{ {crcs} }};
            static const char names[] IN("__version_ext_names") = "{names}";"""
    source = f"""
        #define IN(name) __attribute__((section(name), used, aligned(1)))
        static const char modinfo[] IN(".modinfo") = "{modinfo}";
        static char this_module[64] IN(".gnu.linkonce.this_module");
        {kept}
        {calls}{offered}
    """
    return _link(source, path, ["--build-id=sha1" if build_id else "--build-id=none"])


def build_kernel(path: Path, *, release: str = RELEASE, notes: Mapping[int, int]) -> Path:
    """An ELF file with a banner, a vermagic and these Xen notes (number to 32-bit value)."""
    made = "".join(
        f'asm(".pushsection .notes,\\"a\\",@note\\n.long 4, 4, {number}\\n.asciz \\"Xen\\"\\n'
        f'.long {value:#x}\\n.popsection");'
        for number, value in notes.items()
    )
    source = f"""
        const char linux_banner[] = "Linux version {release} (x@y) (gcc) # SMP\\n";
        const char vermagic[] = "\\000{VERMAGIC.replace(RELEASE, release)}";
        {made}
    """
    return _link(source, path, ["--build-id=sha1"])


def symvers(**symbols: int) -> str:
    """A Module.symvers of vmlinux exporting these, GPL only if named gpl_…"""
    rows = {"module_layout": LAYOUT, **symbols}
    return "".join(
        f"{crc:#010x}\t{symbol}\tvmlinux\tEXPORT_SYMBOL{'_GPL' * symbol.startswith('gpl_')}\t\n"
        for symbol, crc in rows.items()
    )


def _link(source: str, path: Path, flags: Sequence[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    made = path.with_suffix(".o")
    subprocess.run(
        ["gcc", "-c", "-O1", "-fno-pic", "-xc", "-", "-o", made],
        input=source,
        text=True,
        check=True,
    )
    subprocess.run(["ld", "-r", *flags, "-o", path, made], check=True)
    made.unlink()
    return path
