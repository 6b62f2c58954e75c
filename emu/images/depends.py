"""A kernel's module tree: which modules it has, and which have to be loaded before which.

kmod decides: `depmod` reads what the modules depend on, `modprobe --show-depends` gives the
order. Neither changes the tree, nor reads this machine's configuration: they work on links
to its files in a temporary directory. Names are compared as the kernel compares them: "-" and
"_" are the same.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from emu.errors import InputError
from emu.images import packed
from emu.runprogram import run

_DEP = "modules.dep"
_BUILTIN = "modules.builtin"
_ORDER = "modules.order"
_MISSING = "apt-get install kmod"


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


@contextlib.contextmanager
def indexed(modules: Path) -> Iterator[Path]:
    """A tree of links to the modules of `lib/modules/<release>`, with depmod's indexes.

    The indexes that the tree has itself are not used: they may be of other modules.
    """
    with tempfile.TemporaryDirectory() as root:
        tree = Path(root) / "lib/modules" / modules.name
        shutil.copytree(modules.absolute(), tree, copy_function=os.symlink, ignore=_ignored)
        # What depmod lists first where it is free to choose; without it, what readdir(3) does.
        order = sorted(_unpacked_name(str(one.relative_to(tree))) for one in tree.rglob("*.ko*"))
        (tree / _ORDER).write_text("".join(f"{path}\n" for path in order))
        run(["depmod", "-b", root, modules.name], "depmod failed", missing=_MISSING)
        yield tree


def read_indexes(modules: Path) -> dict[str, bytes]:
    """The files `modules.*` of a tree that depmod has seen, by name."""
    with indexed(modules) as tree:
        (tree / _ORDER).unlink()
        return {path.name: path.read_bytes() for path in sorted(tree.glob("modules.*"))}


def order_of(modules: Path, names: Iterable[str]) -> list[Path]:
    """The files to load for these modules, what they depend on first, each once.

    What is built in is left out; what a module asks for (softdep) counts as a dependency.
    Raises InputError for a name the kernel does not have.
    """
    names = [plain(name) for name in names]
    _check_names(modules, names)
    if not names:
        return []
    with indexed(modules) as tree:
        command = ["modprobe", "-C", os.devnull, "-d", str(tree.parents[2]), "-S", modules.name]
        done = run(
            [*command, "--show-depends", "--all", *names],
            f"modprobe cannot order the modules of {modules.name}",
            missing=_MISSING,
            env={key: text for key, text in os.environ.items() if key != "MODPROBE_OPTIONS"},
        )
        # "insmod PATH OPTIONS" or "builtin NAME"
        paths = [line.partition(f"{tree}/")[2].split() for line in done.text.splitlines()]
    return list(dict.fromkeys(modules / path[0] for path in paths if path))


def keep_modules(modules: Path, names: Iterable[str], into: Path) -> None:
    """Copy these modules and all they depend on to another module tree, uncompressed.

    With them go modules.builtin* and depmod's modules.dep. What a module only asks for
    (softdep) is not copied with it, since it may load without.
    """
    names = [plain(name) for name in names]
    _check_names(modules, names)
    with indexed(modules) as tree:
        lines = [line.partition(":") for line in (tree / _DEP).read_text().splitlines()]
    needs = {path: before.split() for path, _, before in lines}
    wanted = [path for path in needs if plain(Path(path).name) in names]
    kept = sorted({*wanted, *(path for one in wanted for path in needs[one])})
    for table in sorted(modules.glob(f"{_BUILTIN}*")):
        if table.suffix != ".bin":
            _put(into / table.name, table.read_bytes())
    for path in kept:
        _put(into / _unpacked_name(path), packed.unpacked(modules / path))
    rows = (" ".join([f"{path}:", *needs[path]]) for path in kept)
    _put(into / _DEP, "".join(f"{_unpacked_name(row)}\n" for row in rows).encode())


def _check_names(modules: Path, names: Iterable[str]) -> None:
    known = find_modules(modules).keys() | builtin(modules)
    for name in names:
        if name not in known:
            raise InputError(f"the kernel {modules.name} has no module {name}, nor is it built in")


def _ignored(folder: str, names: list[str]) -> set[str]:
    """Links to the kernel's source, and indexes made before."""
    kept = (_BUILTIN, f"{_BUILTIN}.modinfo")
    return {
        name
        for name in names
        if name in ("build", "source") or (name.startswith("modules.") and name not in kept)
    }


def _unpacked_name(paths: str) -> str:
    """Names of modules without the suffix of a compression."""
    return re.sub(r"\.ko\.\w+", ".ko", paths)


def _put(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
