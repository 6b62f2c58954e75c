"""`emu doctor`."""

from __future__ import annotations

import argparse
import json
import sys

from rich.console import Console
from rich.text import Text

from emu.commands.options import Commands, add_qemu_option
from emu.errors import EXIT_HELD, EXIT_INPUT
from emu.lab import doctor

_SIGN: dict[doctor.State, tuple[str, str]] = {
    "ok": ("ok", "green"),
    "note": ("note", "yellow"),
    "missing": ("MISSING", "bold red"),
}


def add(commands: Commands) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "doctor",
        help="check this machine, and say how to fix what is missing",
        description="Check this machine, and try its QEMU for faults.",
        epilog="exit status: 0 a run can work here; 3 something is missing",
    )
    add_qemu_option(parser)
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    parser.set_defaults(command=_doctor)


def _doctor(arguments: argparse.Namespace) -> int:
    diagnosis = doctor.examine(arguments.qemu)
    if arguments.json:
        print(json.dumps(doctor.as_json(diagnosis), indent=2))
    else:
        _show(diagnosis)
    return EXIT_HELD if diagnosis.able else EXIT_INPUT


def _show(diagnosis: doctor.Diagnosis) -> None:
    console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
    for finding in diagnosis.findings:
        sign, style = _SIGN[finding.state]
        line = Text(f"{sign:<8}", style=style)
        console.print(line, Text(f"{finding.subject:<12} {finding.text}"), sep="")
        if finding.fix:
            console.print(Text(f"{'':<21}→ {finding.fix}"))
    verdict = "`emu run` can work here" if diagnosis.able else "`emu run` can't work here yet"
    console.print(Text(verdict))
