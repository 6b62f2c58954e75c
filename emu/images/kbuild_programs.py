"""The programs that Debian's kernel headers bring along (modpost, objtool), run on this machine.

They are linked against the C library of the suite that the kernel is from. Where a machine's
is older the dynamic linker refuses them ("version `GLIBC_2.38' not found"), so that libraries of
that suite are put beside them and each is started through its own dynamic linker: on every
machine, since a cache may be carried to another, or shared by two.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile

LIBRARIES = "usr/lib/x86_64-linux-gnu"
"""Where a package's libraries lie, below the tree that it was unpacked into."""
_LINKER = "ld-linux-x86-64.so.2"
_WRAPPER = """#!/bin/sh
# {name} may want a newer C library than this machine has: take the one beside it. The program
# keeps its name, by which some find others: objtool starts objtool.real-x86.
here=$(dirname "$(readlink -f "$0")")
lib=$here/{up}/{libraries}
exec "$lib/{linker}" --argv0 "$0" --library-path "$lib" "$here/{name}.linked" "$@"
"""
_RECIPE = 3
"""Raised when the way programs are wrapped changes the outcome."""


def recipe(packages: Iterable[str]) -> dict[str, int]:
    """What `make_runnable` adds to the cache key of headers that are unpacked from `packages`.

    Nothing where it does nothing: without a C library among them.
    """
    return {"programs": _RECIPE} if "libc6" in packages else {}


def make_runnable(tree: Path) -> bool:
    """Wrap the programs below `tree`/usr/lib; whether there were any.

    Does nothing where the tree has no dynamic linker: then the packages are of the oldest suite
    that is supported as a host, or an older one.
    """
    if not (tree / LIBRARIES / _LINKER).exists():
        return False
    wrapped = False
    for path in sorted((tree / "usr/lib").glob("linux-kbuild-*/**/*")):
        if path.is_file() and not path.is_symlink() and _is_linked(path):
            up = "/".join([".."] * (len(path.relative_to(tree).parts) - 1))
            path.rename(path.with_name(f"{path.name}.linked"))
            path.write_text(
                _WRAPPER.format(name=path.name, up=up, libraries=LIBRARIES, linker=_LINKER)
            )
            path.chmod(0o755)
            wrapped = True
    return wrapped


def _is_linked(path: Path) -> bool:
    """Whether a file is a program that the dynamic linker starts."""
    with path.open("rb") as file:
        try:
            return any(one.header.p_type == "PT_INTERP" for one in ELFFile(file).iter_segments())
        except ELFError:
            return False
