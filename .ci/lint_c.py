"""Check the C of guest-images/ and tests/: its format, gcc's warnings and gcc's analyzer.

Run by `make lint`. Prints what it checks, and each finding; status 1 if there are any.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from os import cpu_count
from pathlib import Path

from emu import paths
from emu.images import cbuild, handler, xens
from emu.images.cache import Cache
from emu.images.context import BuildContext

CC = "gcc-12"
"""Debian 12's, wherever this runs: the analyzer of each gcc finds (and imagines) other things."""
FLAGS = (*cbuild.LANGUAGE, *cbuild.WARNINGS, "-O2", "-fanalyzer", "-c", "-o", "/dev/null")
BARE = ("-m32", "-ffreestanding")
"""More flags for guests without an operating system, which begin at `_start`."""
KERNEL = "#include <linux/module.h>"
"""Modules are built against a kernel, with its flags: their format alone is checked."""


def main() -> int:
    top = paths.checkout()
    listed = _run(["git", "ls-files", "-co", "--exclude-standard", "guest-images", "tests"], top)
    if _report(listed):
        return 1
    files = [top / name for name in listed.stdout.split() if name.endswith((".c", ".h"))]
    files = [file for file in files if file.exists()]
    programs = [file for file in files if file.suffix == ".c" and KERNEL not in file.read_text()]
    print(f"clang-format: {len(files)} files", flush=True)
    clang_format = str(Path(sys.executable).with_name("clang-format"))
    failed = _report(_run([clang_format, "--dry-run", "-Werror", *map(str, files)], top))
    print(f"{CC} -fanalyzer: {len(programs)} files", flush=True)
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(cpu_count()) as pool:
        handler.unpack(Path(folder), xens.find(xens.DEFAULT), BuildContext(Cache()))
        include = _include(Path(folder) / "tcmu-runner")
        done = pool.map(lambda file: _run([*_compiler(file), *include, str(file)], top), programs)
        reported = [_report(each) for each in done]  # each of them, not up to the first
    failed |= any(reported)
    return int(failed)


def _compiler(file: Path) -> list[str]:
    return [CC, *FLAGS, *(BARE if ".globl _start" in file.read_text() else ())]


def _include(tcmu_runner: Path) -> list[str]:
    """tcmu-runner's headers, for the LUN server, and our own, for the players in tests."""
    own = [paths.guest_images() / name for name in ("agent", "handler")]
    others = [tcmu_runner, tcmu_runner / "ccan"]
    return [
        *(word for folder in own for word in ("-I", str(folder))),
        *(word for folder in others for word in ("-isystem", str(folder))),
    ]


def _run(command: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def _report(done: subprocess.CompletedProcess[str]) -> bool:
    """Print a command's output if it failed; whether it did."""
    if done.returncode:
        print(done.stdout + done.stderr, end="", flush=True)
    return done.returncode != 0


if __name__ == "__main__":
    sys.exit(main())
