"""The programs that Debian's kernel headers bring along (modpost, objtool), run on this machine.

They are linked against the C library of the suite that the kernel is from. Where this machine's
is older the dynamic linker refuses them ("version `GLIBC_2.38' not found"), so that libraries of
that suite are put beside them and each is started through its own dynamic linker.
"""

from __future__ import annotations

from pathlib import Path

from emu.runprogram import run

LIBRARIES = "usr/lib/x86_64-linux-gnu"
"""Where a package's libraries lie, below the tree that it was unpacked into."""
_LINKER = "ld-linux-x86-64.so.2"
_WRAPPER = """#!/bin/sh
# {name} wants a newer C library than this machine has: take the one beside it.
here=$(dirname "$(readlink -f "$0")")
lib=$here/{up}/{libraries}
exec "$lib/{linker}" --library-path "$lib" "$here/{name}.linked" "$@"
"""


def make_runnable(tree: Path) -> bool:
    """Wrap the programs below `tree`/usr/lib that do not start here; whether there were any.

    Does nothing where the tree has no dynamic linker: then the packages are of this machine's
    own suite, or an older one.
    """
    if not (tree / LIBRARIES / _LINKER).exists():
        return False
    wrapped = False
    for path in sorted((tree / "usr/lib").glob("linux-kbuild-*/**/*")):
        if path.is_file() and not path.is_symlink() and _refused(path):
            up = "/".join([".."] * (len(path.relative_to(tree).parts) - 1))
            path.rename(path.with_name(f"{path.name}.linked"))
            path.write_text(
                _WRAPPER.format(name=path.name, up=up, libraries=LIBRARIES, linker=_LINKER)
            )
            path.chmod(0o755)
            wrapped = True
    return wrapped


def _refused(path: Path) -> bool:
    """Whether this machine's dynamic linker refuses a program for want of a newer library."""
    with path.open("rb") as file:
        if file.read(4) != b"\x7fELF":
            return False
    # --list (what ldd does) loads libraries and runs nothing of the program's.
    linker = Path("/lib64") / _LINKER
    done = run([str(linker), "--list", str(path)])
    # A symbol's version ("not found") or a whole library.
    words = done.text + done.errors
    return "not found" in words or "cannot open shared object file" in words
