"""`emu cache`: list the cache, make room."""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Mapping
from typing import Any

from emu import paths
from emu.commands.options import Commands, ago, show, size, table
from emu.errors import EXIT_HELD
from emu.images import tree_copy
from emu.images.cache import Cache, EntryInfo
from emu.lab import store

UNUSED_DAYS = 7.0


def add(commands: Commands) -> None:
    """Add the command's parser, with its own commands."""
    parser = commands.add_parser(
        "cache",
        help="list the cache and its size; prune it",
        description="Without a further command: every entry with its size on the disk.",
    )
    parser.add_argument("--json", action="store_true", help="print the list as JSON")
    parser.set_defaults(command=_list)
    further = parser.add_subparsers(metavar="COMMAND")
    prune = further.add_parser(
        "prune",
        help="remove what was not used for a while",
        description="Remove what was not used for a while, unless it is in use now.",
    )
    how = prune.add_mutually_exclusive_group()
    how.add_argument(
        "--unused-days",
        type=_days,
        default=UNUSED_DAYS,
        metavar="N",
        help=f"remove what was not used for N days (default {UNUSED_DAYS:.0f})",
    )
    how.add_argument("--all", action="store_true", help="everything that is not in use now")
    prune.add_argument(
        "--kind",
        action="append",
        metavar="KIND",
        help="only this kind (`emu cache` shows the kinds; runs: logs of ended runs); repeatable",
    )
    prune.set_defaults(command=_prune)
    path = further.add_parser("path", help="print where the cache is")
    path.set_defaults(command=_path)


def _days(text: str) -> float:
    with contextlib.suppress(ValueError):
        if (days := float(text)) >= 0:
            return days
    raise argparse.ArgumentTypeError(f"{text!r} is not a number of days")


def _list(arguments: argparse.Namespace) -> int:
    cache = Cache()
    found = [*cache.entries(), *store.runs(cache)]
    if arguments.json:
        about = {"path": str(cache.root), "bytes": sum(entry.size for entry in found)}
        print(json.dumps({**about, "entries": store.contents_as_json(found)}, indent=2))
        return EXIT_HELD
    rows = table("kind", "key", "size", "used", "of", right=["size"])
    for entry in found:
        rows.add_row(
            entry.kind, entry.key[:15], size(entry.size), ago(entry.last_used), _about(entry)
        )
    show(rows)
    print(f"{size(sum(entry.size for entry in found))} in {cache.root}")
    return EXIT_HELD


def _about(entry: EntryInfo) -> str:
    """How this entry differs from others of its kind, in a few words."""
    inputs: Mapping[str, Any] = entry.inputs
    words = []
    if entry.kind.startswith("tree-"):
        with contextlib.suppress(OSError):
            words.append((entry.path / tree_copy.PATH).read_text().strip())
    if isinstance(domu := inputs.get("domu"), dict):
        words.append(f"domU {domu.get('kind')} {domu.get('memory')} MiB")
    if isinstance(argv := inputs.get("argv"), list) and "-icount" in argv:
        words.append("instruction time")
    for name in ("kernel", "guests"):
        if isinstance(key := inputs.get(name), str) and len(key) == 32:
            words.append(f"{name} {key[:8]}")
    return ", ".join(words)


def _prune(arguments: argparse.Namespace) -> int:
    days = 0.0 if arguments.all else arguments.unused_days
    cache = Cache()
    gone = store.prune(cache, unused_days=days, kinds=set(arguments.kind or ()) or None)
    for entry in gone.entries:
        print(f"removed {entry.kind} {entry.key[:8]} ({size(entry.size)})")
    if gone.runs:
        print(f"removed the logs of {len(gone.runs)} runs")
    print(f"{size(gone.freed)} freed in {cache.root}")
    if not gone.entries and not gone.runs and not arguments.all:
        print(f"all was used within {days:g} days, or is in use; --all removes what is not in use")
    return EXIT_HELD


def _path(arguments: argparse.Namespace) -> int:
    print(paths.cache_root())
    return EXIT_HELD
