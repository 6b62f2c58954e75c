"""`emu qemu`: the QEMUs that can run the stack, their faults; build ours."""

from __future__ import annotations

import argparse
import json

from emu.commands.options import Commands, add_locked_option, show, table
from emu.emulator.build import PATCHED
from emu.errors import EXIT_HELD
from emu.images.cache import Cache
from emu.images.context import BuildContext
from emu.lab import qemus
from emu.screen import Screen


def add(commands: Commands) -> None:
    """Add the command's parser, with its own commands."""
    parser = commands.add_parser(
        "qemu",
        help="the QEMUs that --qemu names, and their faults; build ours",
        description="Without a further command: the QEMU of this machine and ours, as far as they "
        "are there, and the faults of each, found by trying it (seconds, once).",
    )
    parser.add_argument("--json", action="store_true", help="print the list as JSON")
    parser.set_defaults(command=_list)
    further = parser.add_subparsers(metavar="COMMAND")
    build = further.add_parser(
        "build",
        help="build QEMU with our patches",
        description="Build QEMU from Debian's source package with the patches of qemu-patches/ "
        "(minutes), unless it is built.",
    )
    build.add_argument(
        "name",
        nargs="?",
        choices=tuple(PATCHED),
        default=next(iter(PATCHED)),
        help="which (default %(default)s)",
    )
    add_locked_option(build)
    build.set_defaults(command=_build)


def _list(arguments: argparse.Namespace) -> int:
    with Screen() as screen:
        found = qemus.examine(BuildContext(Cache(), screen))
    if arguments.json:
        print(json.dumps([qemus.as_json(one) for one in found], indent=2))
        return EXIT_HELD
    rows = table("name", "version", "guests get", "wrong", "program")
    for one in found:
        wrong = ", ".join(fault.name for fault in one.faults) or "–"
        cells = (one.version, one.cpu, wrong, one.program) if one.program else one.lacks
        rows.add_row(one.name, *cells)
    show(rows)
    return EXIT_HELD


def _build(arguments: argparse.Namespace) -> int:
    with Screen() as screen:
        built = qemus.build(arguments.name, BuildContext(Cache(), screen))
    wrong = "; ".join(fault.what for fault in built.faults) or "no fault that is tried"
    print(f"{built.name}  {built.version}")
    print(f"program  {built.program}")
    print(f"wrong    {wrong}")
    print(f"cpu      {built.cpu}")
    return EXIT_HELD
