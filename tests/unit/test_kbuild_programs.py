"""Kernel headers' programs that want a newer C library than this machine's."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from emu.images.kbuild_programs import LIBRARIES, make_runnable

PROGRAM = "usr/lib/linux-kbuild-7.3/scripts/mod/modpost"
LINKER = Path("/lib64/ld-linux-x86-64.so.2")


def compiled(source: str, into: Path, *flags: str) -> None:
    into.parent.mkdir(parents=True, exist_ok=True)
    command = ["gcc", "-x", "c", "-", "-o", str(into), *flags]
    subprocess.run(command, input=source, text=True, check=True)


MAIN = """
int newer(void);
int puts(const char *);
int main(int count, char **words) { puts(words[count - 1]); return newer(); }
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Unpacked headers: a program linked with a library that only they bring along."""
    root = tmp_path / "a tree"
    libraries = root / LIBRARIES
    compiled("int newer(void) { return 7; }", libraries / "libnewer.so", "-shared", "-fPIC")
    compiled(MAIN, root / PROGRAM, "-L", str(libraries), "-lnewer")
    shutil.copy(LINKER.resolve(), libraries / LINKER.name)
    return root


def test_program_runs_with_the_libraries_beside_it(tree: Path) -> None:
    assert make_runnable(tree)
    done = subprocess.run([tree / PROGRAM, "an argument"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (7, "an argument\n"), done.stderr


def test_wrapped_program_may_lie_anywhere(tree: Path, tmp_path: Path) -> None:
    make_runnable(tree)
    elsewhere = tmp_path / "elsewhere"
    tree.rename(elsewhere)
    link = tmp_path / "link"
    link.symlink_to(elsewhere / PROGRAM)
    assert subprocess.run([link], capture_output=True).returncode == 7


def test_program_that_starts_is_left_alone(tree: Path) -> None:
    program = tree / "usr/lib/linux-kbuild-7.3/scripts/basic/fixdep"
    compiled("int main(void) { return 0; }", program)
    before = program.read_bytes()
    make_runnable(tree)
    assert program.read_bytes() == before


def test_headers_without_a_dynamic_linker_are_left_alone(tree: Path) -> None:
    (tree / LIBRARIES / LINKER.name).unlink()
    assert not make_runnable(tree)
    assert (tree / PROGRAM).read_bytes()[:4] == b"\x7fELF"
