"""`emu completion`: what makes a shell complete our commands and options."""

from __future__ import annotations

import argparse

import shtab

from emu.commands import parser as parsers
from emu.commands.options import Commands
from emu.errors import EXIT_HELD

SHELLS = ("bash", "zsh")

_EPILOG = """bash: eval "$(emu completion bash)" in ~/.bashrc. zsh: emu completion zsh > _emu in a
folder of $fpath."""


def add(commands: Commands) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "completion",
        help="print a script that makes the shell complete this command line",
        description="Print a script that makes the shell complete commands and options.",
        epilog=_EPILOG,
    )
    parser.add_argument("shell", choices=SHELLS)
    parser.set_defaults(command=_completion)


def _completion(arguments: argparse.Namespace) -> int:
    print(shtab.complete(parsers.parser(), arguments.shell))
    return EXIT_HELD
