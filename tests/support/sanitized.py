"""Our C programs built with gcc's sanitizers, as the unit tests run them.

A fault that a sanitizer finds ends the program at once with `FAULT` as its status and a report on
standard error. The programs that go into guests are built without: emu/images/agent.py.
"""

from __future__ import annotations

import functools
import os
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from emu import paths
from emu.images import agent, cbuild, kbuild
from emu.images.cache import Cache
from emu.images.context import BuildContext
from emu.images.manifest import JSON

Sanitizer = Literal["address", "thread"]
FAULT = 99
"""The exit status of a program in which a sanitizer found a fault."""
_FLAGS = (*cbuild.LANGUAGE, *cbuild.WARNINGS, "-O2", "-g", "-fno-omit-frame-pointer", "-pthread")
_SANITIZERS: dict[Sanitizer, tuple[str, ...]] = {
    "address": ("-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
    "thread": ("-fsanitize=thread",),
}
ENVIRONMENT = {
    # A malloc() of more than there is fails, as it does without the sanitizer.
    "ASAN_OPTIONS": f"exitcode={FAULT}:allocator_may_return_null=1:detect_stack_use_after_return=1",
    "LSAN_OPTIONS": f"exitcode={FAULT}",
    "UBSAN_OPTIONS": f"exitcode={FAULT}:print_stacktrace=1",
    "TSAN_OPTIONS": f"exitcode={FAULT}:halt_on_error=1",
}


def program(name: str) -> Path:
    """A program of emu.images.agent with ASan and UBSan, built unless the cache has it."""
    folder = paths.guest_images() / "agent"
    return build(name, folder, [folder / source for source in agent.SOURCES[name]])


def build(
    name: str,
    folder: Path,
    sources: Sequence[Path],
    sanitizer: Sanitizer = "address",
    include: Callable[[Path], Sequence[str]] = lambda scratch: (),
    flags: Sequence[str] = (),
) -> Path:
    """A program from `sources` and the headers of `folder`, built unless the cache has it.

    `include` puts headers of others into a scratch folder and returns the flags that name them.
    """
    context = BuildContext(Cache())
    flags = (*_FLAGS, *flags, *_SANITIZERS[sanitizer])
    digests = kbuild.digest(sources)
    version = subprocess.run([agent.CC, "--version"], stdout=-1, check=True).stdout

    def fill(made: Path) -> None:
        with context.cache.scratch(name) as scratch:
            headers = ["-I", str(folder), *include(scratch)]
            output = ["-o", str(made / name)]
            files = [str(source) for source in sources]
            subprocess.run([agent.CC, *flags, *headers, *output, *files], check=True)

    inputs: dict[str, JSON] = {
        "name": name,
        "sources": list(digests),
        "headers": cbuild.sources(folder),
        "flags": list(flags),
        "compiler": version.decode().splitlines()[0],
    }
    return context.entry("sanitized", inputs, fill) / name


def command(path: Path, sanitizer: Sanitizer = "address") -> list[str]:
    """How to start a program: ThreadSanitizer of gcc 13 and before maps fixed addresses, which
    a kernel that randomizes more than 28 bits may have given away."""
    return [*(_fixed_addresses() if sanitizer == "thread" else ()), str(path)]


@functools.cache
def _fixed_addresses() -> tuple[str, ...]:
    # Some containers forbid it.
    setarch = ("setarch", "-R")
    allowed = subprocess.run([*setarch, "true"], stderr=subprocess.DEVNULL, check=False)
    return setarch if allowed.returncode == 0 else ()


def environment(**more: str) -> dict[str, str]:
    """This process's environment with the sanitizers' options."""
    return {**os.environ, **ENVIRONMENT, **more}


def reports(prefix: Path) -> dict[str, str]:
    """Options that write a report to `prefix`.PID in place of standard error."""
    return {key: f"{value}:log_path={prefix}" for key, value in ENVIRONMENT.items()}
