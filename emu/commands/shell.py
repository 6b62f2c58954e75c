"""`emu shell`."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys

from emu.commands.driver_options import context_for
from emu.commands.options import (
    Commands,
    add_driver_options,
    add_stack_options,
    wish_from_options,
)
from emu.errors import InputError
from emu.lab import shell
from emu.screen import Screen
from emu.stack.wish import check_ring_pages
from emu.xen.disk import parse_disk

_EPILOG = """Ctrl-] leaves a terminal, whatever the guest does, and leaves nothing running. Exit
status: that of the command or the shell (128 + n after signal n), 0 after Ctrl-], and
those of `emu run` when the guest can't be reached. With --command, or when standard input is
no terminal, standard output and standard error are exactly the guest's, but for a line on
standard error where starting the stack takes more than 30 seconds."""


def add(commands: Commands) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "shell",
        help="a terminal, or one command, in dom0 or the domU",
        description="Start the stack from its checkpoint and open a terminal in a guest. "
        "When standard input is no terminal, a shell in the guest reads it.",
        epilog=_EPILOG,
    )
    parser.add_argument(
        "guest", nargs="?", choices=shell.GUESTS, default="dom0", help="default dom0"
    )
    parser.add_argument(
        "-c",
        "--command",
        dest="line",
        metavar="LINE",
        help="run this with sh, with our standard input, and exit",
    )
    parser.add_argument(
        "--attach",
        action="store_true",
        help="load the drivers and attach the LUN first",
    )
    add_driver_options(parser)
    add_stack_options(parser)
    parser.set_defaults(command=_shell)


def _shell(arguments: argparse.Namespace) -> int:
    pages = arguments.ring_pages if arguments.attach else 1
    stack_wish = wish_from_options(arguments, pages)
    attachment = None
    if not arguments.attach and (arguments.driver_patches or arguments.tree_drivers):
        raise InputError("patched drivers are loaded with --attach alone", hint="add --attach")
    if arguments.attach:
        check_ring_pages(pages)
        disk = parse_disk(arguments.disk)
        attachment = shell.Attachment(pages, disk, arguments.front, arguments.back)
    files = _descriptors()
    terminal = arguments.line is None and files.stdin is not None and os.isatty(files.stdin)
    with contextlib.ExitStack() as opened:
        with Screen(quiet=not terminal and not sys.stderr.isatty()) as screen:
            entered = shell.opened(stack_wish, attachment, context_for(arguments, screen))
            stack = opened.enter_context(entered)
        if not terminal:
            channel = shell.channel_of(stack, arguments.guest)
            return shell.pipe(channel, arguments.line, files)
        _say(f"{arguments.guest}, from {stack.origin} in {stack.start_s:.1f} s; Ctrl-] leaves")
        status = shell.interactive(stack, arguments.guest, files, _say)
    before = "\r\n" if status is None else ""  # Ctrl-] comes in the middle of a line
    _say(f"left {arguments.guest}; nothing is left running", before)
    return status or 0


def _descriptors() -> shell.TerminalFds:
    """Our standard descriptors; input is None where it was closed before we started."""
    return shell.TerminalFds(stdin=None if sys.stdin is None else 0)


def _say(line: str, before: str = "") -> None:
    # The terminal may be raw: a line feed alone would not return to the first column.
    sys.stderr.write(f"{before}[emu] {line}\r\n")
    sys.stderr.flush()
