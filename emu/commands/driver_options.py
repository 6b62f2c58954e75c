"""The options that say what `patched` drivers are: patches, what they are applied on, a tree."""

from __future__ import annotations

import argparse
import hashlib
import sys
from dataclasses import replace
from pathlib import Path

from emu.errors import InputError
from emu.images import driver_patches
from emu.images.cache import Cache
from emu.images.context import BuildContext
from emu.images.driver_source import read_tree
from emu.images.modules import ENDS, MODULE, PATCHED
from emu.images.patch_files import STDIN
from emu.images.patched import BASES, End, PatchedDrivers, from_environment
from emu.progress import Progress

_INPUT = Path("-")


def add_patched_options(parser: argparse.ArgumentParser, *, reads_input: bool = False) -> None:
    """Add the options; `reads_input`: the command takes patches on standard input, too."""
    more = ", or - for standard input" if reads_input else ""
    parser.add_argument(
        "--driver-patches",
        action="extend",
        nargs="+",
        type=Path,
        default=[],
        metavar="FILE",
        help="patches for the patched drivers: diffs, mails, mailboxes, directories of them or a "
        f"maildir{more}; they come after our series",
    )
    parser.add_argument(
        "--on",
        choices=BASES,
        help="apply them on our series (default), or on the stock drivers of the kernel; an end "
        "that no patch changes is that of the base",
    )
    parser.add_argument(
        "--tree-drivers",
        type=Path,
        metavar="DIR",
        help="build the patched drivers from a kernel tree, without our series unless --on series "
        "says so, against the kernel that runs",
    )
    parser.set_defaults(reads_input=reads_input)


def context_for(arguments: argparse.Namespace, progress: Progress) -> BuildContext:
    """What builds get, with the drivers that options and environment ask for.

    Raises InputError for patches and trees that are none, before anything is built.
    """
    context = BuildContext(Cache(), progress)
    given: list[Path] = arguments.driver_patches
    paths = [_from_input(arguments, context) if path == _INPUT else path for path in given]
    asked = from_environment().but(paths, arguments.on, arguments.tree_drivers)
    _check(asked, arguments, progress)
    return replace(context, patched=asked)


def _check(asked: PatchedDrivers, arguments: argparse.Namespace, progress: Progress) -> None:
    patches = driver_patches.driver_patches(asked, "", progress.note)
    changed = ENDS
    if asked.tree is not None:
        read_tree(asked.tree)
    elif patches:
        changed = driver_patches.ends_of(patches)
    else:
        return
    which = {end: _asked(end, asked, arguments) for end in changed}
    others = {end: one for end, one in which.items() if one != PATCHED}
    if len(others) == len(changed):
        ends = " and ".join(f"--{end} {one}" for end, one in others.items())
        names = " and ".join(MODULE[end] for end in changed)
        raise InputError(
            f"nothing would use what was asked for {names}: there is {ends}",
            hint=f"leave out {ends}",
        )


def _asked(end: End, asked: PatchedDrivers, arguments: argparse.Namespace) -> str:
    """What an end's driver is to be: "patched", or what overrides that."""
    given = asked.given(end)
    return str(given) if given else str(vars(arguments).get(end, PATCHED))


def _from_input(arguments: argparse.Namespace, context: BuildContext) -> Path:
    """Standard input, as a file in the cache: patches are read more than once."""
    if not arguments.reads_input:
        raise InputError("- (standard input) is for `emu run` alone", hint="give a file")
    if sys.stdin is None or sys.stdin.isatty():
        raise InputError(
            "--driver-patches - reads standard input, which is a terminal",
            hint="git format-patch --stdout … | emu run --driver-patches -",
        )
    with context.progress.stage("reading patches from standard input"):
        content = sys.stdin.buffer.read()
    name = hashlib.sha256(content).hexdigest()

    def write(made: Path) -> None:
        (made / STDIN).write_bytes(content)

    return context.entry("driver-patches", {"sha256": name}, write) / STDIN
