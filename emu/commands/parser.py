"""The parser of the `emu` command line, made of those of commands/."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence

from emu import __version__
from emu.commands.options import EPILOG

COMMANDS = (
    "run",
    "shell",
    "replay",
    "runs",
    "series",
    "prepare",
    "mutants",
    "coverage",
    "tests-for",
    "repeat",
    "doctor",
    "images",
    "qemu",
    "cache",
    "bench",
    "completion",
)
"""Modules of commands/ (a hyphen is an underscore there), in the order of `--help`."""


def parser(words: Sequence[str] = ()) -> argparse.ArgumentParser:
    """The parser for `words`; without any, the whole one.

    Importing all commands takes 0.1 s: where `words` name one, only that one is.
    """
    made = argparse.ArgumentParser(
        prog="emu",
        description="The Xen block stack in QEMU: Xen, dom0, a tcmu-runner LUN, a domU, "
        "our drivers.",
        epilog=EPILOG,
    )
    made.add_argument("--version", action="version", version=f"emu {__version__}")
    commands = made.add_subparsers(required=True, metavar="COMMAND")
    for name in words[:1] if words[:1] and words[0] in COMMANDS else COMMANDS:
        importlib.import_module(f"emu.commands.{name.replace('-', '_')}").add(commands)
    return made
