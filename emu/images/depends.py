"""A kernel's module tree: which modules it has, and what has to be loaded before what.

Read from the modules themselves, as depmod does, since a package's tree has not seen
depmod yet. Names are compared as the kernel compares them: "-" and "_" are the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from emu.errors import InputError
from emu.images import elf, packed

_DEP = "modules.dep"
_BUILTIN = "modules.builtin"


def plain(name: str) -> str:
    """A module's name as the kernel has it: "xen-blkback.ko.xz" is xen_blkback."""
    return name.partition(".")[0].replace("-", "_")


def find_modules(modules: Path) -> dict[str, Path]:
    """The modules below a `lib/modules/<release>`, by `plain` name."""
    return {plain(path.name): path for path in sorted(modules.rglob("*.ko*"))}


def builtin(modules: Path) -> frozenset[str]:
    """Plain names of what could be a module and is built in."""
    lines = (modules / _BUILTIN).read_text().splitlines()
    return frozenset(plain(Path(line).name) for line in lines)


def order_of(modules: Path, names: Iterable[str]) -> list[Path]:
    """The files to load for these modules, what they depend on first, each once.

    What is built in is left out. Raises InputError for a name the kernel does not have.
    """
    files = {plain(Path(line.partition(":")[0]).name): line for line in _dep_lines(modules)}
    inside = builtin(modules)
    order: dict[Path, None] = {}
    for name in map(plain, names):
        if name in inside:
            continue
        if name not in files:
            raise InputError(f"the kernel {modules.name} has no module {name}, nor is it built in")
        path, _, before = files[name].partition(":")
        # depmod's order: what is loaded last comes first.
        order.update(dict.fromkeys(modules / one for one in [*reversed(before.split()), path]))
    return list(order)


def keep_modules(modules: Path, names: Iterable[str], into: Path) -> None:
    """Copy these modules and all they depend on to another module tree, uncompressed.

    With them go modules.builtin* and a modules.dep, which also has what a module only
    asks for (softdep), since it may fail without.
    """
    files = find_modules(modules)
    inside = builtin(modules)
    infos: dict[str, elf.ModuleInfo] = {}
    waiting = [plain(name) for name in names if plain(name) not in inside]
    while waiting:
        name = waiting.pop()
        if name not in infos:
            if name not in files:
                raise InputError(f"the kernel {modules.name} has no module {name}")
            infos[name] = elf.read_module(files[name])
            waiting += infos[name].depends
    for table in sorted(modules.glob(f"{_BUILTIN}*")):
        if table.suffix != ".bin":
            _put(into / table.name, table.read_bytes())
    lines = []
    needs = {name: _direct(info, infos) for name, info in infos.items()}
    for name in sorted(infos):
        _put(into / _place(files[name], modules), packed.unpacked(files[name]))
        before = [str(_place(files[one], modules)) for one in reversed(_all(name, needs))]
        lines.append(f"{_place(files[name], modules)}: {' '.join(before)}".rstrip() + "\n")
    _put(into / _DEP, "".join(lines).encode())


def _direct(info: elf.ModuleInfo, infos: Mapping[str, elf.ModuleInfo]) -> list[str]:
    soft = [
        name
        for wish in info.softdeps_pre
        for name, other in sorted(infos.items())
        if name != plain(info.name) and (plain(wish) == name or wish in other.aliases)
    ]
    return [*info.depends, *soft]


def _all(name: str, needs: Mapping[str, list[str]]) -> list[str]:
    """Everything `name` needs, in the order of loading."""
    order: list[str] = []
    entered = {name}

    def visit(one: str) -> None:
        for before in needs[one]:
            if before not in entered:
                entered.add(before)
                visit(before)
                order.append(before)

    visit(name)
    return order


def _dep_lines(modules: Path) -> list[str]:
    path = modules / _DEP
    if not path.exists():
        raise InputError(f"{path} is missing", hint=f"run depmod for {modules.name}")
    return path.read_text().splitlines()


def _place(path: Path, modules: Path) -> Path:
    """Where a module lies in its tree, without a compression's suffix."""
    return path.relative_to(modules).with_name(path.name.partition(".ko")[0] + ".ko")


def _put(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
