"""Kernel headers' programs, which may want a newer C library than this machine's."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from emu.images.kbuild_programs import LIBRARIES, make_runnable, recipe

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


def test_wrapped_program_keeps_its_name(tree: Path) -> None:
    """By it objtool finds objtool.real-x86."""
    program = tree / "usr/lib/linux-kbuild-7.3/tools/objtool/objtool"
    source = "int puts(const char *); int main(int n, char **words) { puts(words[0]); return 0; }"
    compiled(source, program)
    shutil.copy("/lib/x86_64-linux-gnu/libc.so.6", tree / LIBRARIES)
    make_runnable(tree)
    done = subprocess.run([program], capture_output=True, text=True)
    assert done.stdout == f"{program}\n", done.stderr


def test_program_that_starts_here_is_wrapped_too(tree: Path) -> None:
    """An entry made here is used where the C library may be older."""
    program = tree / "usr/lib/linux-kbuild-7.3/scripts/basic/fixdep"
    compiled("int main(void) { return 5; }", program)
    shutil.copy("/lib/x86_64-linux-gnu/libc.so.6", tree / LIBRARIES)
    make_runnable(tree)
    assert program.read_bytes().startswith(b"#!/bin/sh")
    assert subprocess.run([program]).returncode == 5


@pytest.mark.parametrize("flags", [["-static"], ["-c"], ["-shared", "-fPIC"]])
def test_what_no_dynamic_linker_starts_is_left_alone(tree: Path, flags: list[str]) -> None:
    file = tree / "usr/lib/linux-kbuild-7.3/scripts/basic/fixdep"
    compiled("int main(void) { return 0; }", file, *flags)
    script = file.with_name("script")
    script.write_text("#!/bin/sh\n")
    before = file.read_bytes()
    make_runnable(tree)
    assert (file.read_bytes(), script.read_text()) == (before, "#!/bin/sh\n")


def test_recipe_counts_where_there_is_a_c_library() -> None:
    assert recipe(["linux-headers-amd64"]) == {}
    assert recipe(["linux-headers-amd64", "libc6"]).keys() == {"programs"}


def test_headers_without_a_dynamic_linker_are_left_alone(tree: Path) -> None:
    (tree / LIBRARIES / LINKER.name).unlink()
    assert not make_runnable(tree)
    assert (tree / PROGRAM).read_bytes()[:4] == b"\x7fELF"
