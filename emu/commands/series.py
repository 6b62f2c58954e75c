"""`emu series`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from emu.commands.options import Commands, add_locked_option, show, table
from emu.errors import EXIT_HELD, EXIT_NOT_HELD
from emu.images.cache import Cache
from emu.images.context import BuildContext
from emu.images.kernel_specs import own_series
from emu.screen import Screen, fail
from emu.series import check as series
from emu.series import report as seriesreport
from emu.series.checkpatch import ALLOWED

_EPILOG = f"""A file `{ALLOWED}` beside the patches lists exceptions from checkpatch. Exit status: 0
all held; 1 something did not; 3 an input was refused; 130 interrupted"""


def add(commands: Commands) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "series",
        help="check a driver series patch by patch: applies, builds, checkpatch, sparse",
        description="Apply each patch of a series to fresh sources (and with git am), build "
        "both modules after each with W=1, run checkpatch and sparse. Boots nothing.",
        epilog=_EPILOG,
    )
    parser.add_argument(
        "--patches",
        type=Path,
        default=own_series(),
        metavar="DIR",
        help="its *.patch files, by name; 6.12/ has those that differ for 6.12, and so on "
        "(default: our series)",
    )
    parser.add_argument(
        "--kernel",
        action="append",
        default=[],
        metavar="NAME",
        help="only this kernel (`emu images kernels` lists them), repeatable; default: every "
        "debian-… of guest-images/kernels.toml",
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    add_locked_option(parser)
    parser.set_defaults(command=_series)


def _series(arguments: argparse.Namespace) -> int:
    wish = series.SeriesWish(arguments.patches, tuple(arguments.kernel))
    with Screen() as screen:
        report = series.perform(wish, BuildContext(Cache(), screen))
    if arguments.json:
        print(json.dumps(seriesreport.as_json(report), indent=2))
    else:
        _show(report)
    if not report.held:
        fail("the series does not hold")
    return EXIT_HELD if report.held else EXIT_NOT_HELD


def _show(report: series.SeriesReport) -> None:
    kernels = report.kernels
    rows = table("", "patch", "checkpatch", *(one.kernel.name for one in kernels), right=[""])
    rows.add_row("", "(unpatched)", "", *(seriesreport.base_cell(one.base) for one in kernels))
    for number, patch in enumerate(report.patches):
        cells = (seriesreport.step_cell(one.steps[number]) for one in kernels)
        style = seriesreport.style_cell(patch)
        rows.add_row(str(number + 1), patch.subject, style, *cells)
    rows.add_row(
        "", "(sparse, all patches)", "", *(seriesreport.sparse_cell(one) for one in kernels)
    )
    show(rows)
    for line in (*seriesreport.base_messages(report), *seriesreport.faults(report)):
        print(line)
    for one in report.unused:
        print(f"{ALLOWED}: nothing needs {one.type} {one.file} {one.words} any more")
