"""Options that several commands share, and how values are printed."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeAlias

from rich.console import Console
from rich.table import Table

from emu.commands.driver_options import add_patched_options
from emu.emulator import choice as emulator
from emu.images import patched, replaced, xens
from emu.images.cache import Cache
from emu.images.context import BuildContext
from emu.machine.spec import DOM0_MEMORY
from emu.progress import Progress
from emu.stack.wish import LARGE_RING, Wish, memory_for
from emu.xen.config import KINDS, Dom0Config, DomuConfig
from emu.xen.disk import FIRST

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

EPILOG = """exit status: 0 all held; 1 the stack ran and something did not hold; 2 wrong usage;
3 an input was refused; 125 the rig broke; 130 interrupted"""

_WIDTH = 1000
"""Columns; wider than any table, which take what they need."""


def build_context(progress: Progress) -> BuildContext:
    """What builds get: the user's cache, and the drivers that the environment asks for."""
    return BuildContext(Cache(), progress, patched=patched.from_environment())


def add_stack_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that select the stack."""
    add_kernel_options(parser)
    add_xen_option(parser)
    parser.add_argument("--domu", choices=KINDS, default="pv", help="kind of domU (default pv)")
    parser.add_argument(
        "--domu-memory",
        type=int,
        metavar="MIB",
        help=f"default {memory_for(1)}, and {memory_for(64)} for rings beyond {LARGE_RING} pages",
    )
    parser.add_argument(
        "--dom0-memory", type=int, default=DOM0_MEMORY, metavar="MIB",
        help=f"default {DOM0_MEMORY}",
    )  # fmt: skip
    parser.add_argument(
        "--dom0-vcpus", type=int, default=1, metavar="N", help="which share one CPU (default 1)"
    )
    for whose, what in (("dom0", "dom0's kernel"), ("xen", "Xen")):
        parser.add_argument(
            f"--{whose}-options", default="", metavar="OPTIONS",
            help=f"words to add to the command line of {what}",
        )  # fmt: skip
    parser.add_argument(
        "--accel",
        choices=("auto", "tcg", "kvm"),
        default="auto",
        help="auto (default) uses KVM only where Xen was seen to start under it",
    )
    parser.add_argument(
        "--clock",
        choices=("wall", "icount"),
        help="wall (default), or icount: guest time counts instructions, independent of this "
        "machine's speed",
    )
    add_qemu_option(parser)
    parser.set_defaults(qemu=None)
    parser.add_argument(
        "--record",
        action="store_true",
        help="record the run, for `emu replay`: with --clock icount, and by default on a patched "
        "QEMU",
    )
    parser.add_argument(
        "--cold", action="store_true", help="boot instead of starting from a checkpoint"
    )
    add_locked_option(parser)


def add_kernel_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that select the guests' kernels: by name, or a source tree."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--kernel",
        default="debian",
        metavar="NAME",
        help="debian (default), lab, debian-7.3, debian-6.12.107, …: see `emu images kernels`",
    )
    which.add_argument(
        "--tree",
        metavar="DIR",
        help="build the kernel from this source tree, with its own block drivers; nothing is "
        "written there, and only what has changed is built the next time",
    )
    domus = parser.add_mutually_exclusive_group()
    domus.add_argument(
        "--domu-kernel",
        metavar="NAME",
        help="the domU's kernel, cloud-… as well (default: dom0's)",
    )
    domus.add_argument(
        "--domu-tree", metavar="DIR", help="build the domU's kernel from this source tree"
    )
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="configure trees from this .config, completed by what the guests need, or from the "
        "lab kernel's configuration with this fragment after it (default: without)",
    )


def add_locked_option(parser: argparse.ArgumentParser) -> None:
    """Add the option that insists on the locked packages; `cli.main` heeds it."""
    parser.add_argument(
        replaced.INSIST_OPTION,
        dest="locked",
        action="store_true",
        help="refuse a package that the archive has replaced; by default the newest of its series "
        f"is taken, with a line that says so (${replaced.INSIST}=1 does the same)",
    )


def add_xen_option(parser: argparse.ArgumentParser) -> None:
    """Add the option that selects Xen and the user space of dom0."""
    parser.add_argument(
        "--xen",
        default=xens.DEFAULT,
        metavar="RELEASE",
        help=f"{', '.join(xens.XENS)} (default {xens.DEFAULT}): hypervisor, xl, xenstored and the "
        "rest of dom0's user space",
    )


def add_qemu_option(parser: argparse.ArgumentParser) -> None:
    """Add the option that selects QEMU."""
    parser.add_argument(
        "--qemu",
        default=emulator.default(),
        metavar="QEMU",
        help=f"{', '.join(emulator.NAMES)} or the path of one (default: ${emulator.GIVEN}, or "
        f"{emulator.SYSTEM}); patched ones are built when missing",
    )


def add_driver_options(parser: argparse.ArgumentParser, *, reads_input: bool = False) -> None:
    """Add the options that select drivers and ring; `reads_input` as `add_patched_options`."""
    parser.add_argument(
        "--ring-pages",
        type=int,
        default=16,
        metavar="N",
        help="1, 2, 4, … up to the limit of both ends (default 16); sets max_ring_pages of the "
        "front end, or max_ring_page_order where it has no such parameter",
    )
    for end in ("front", "back"):
        parser.add_argument(
            f"--{end}",
            default="patched",
            metavar="DRIVER",
            help="patched (default), stock, or the path of a .ko",
        )
    parser.add_argument(
        "--disk",
        default=FIRST.name,
        metavar="NAME[,WORD…]",
        help="the disk's name for xl (default xvda: any of xvd…, hda to hdd, sda to sdp, with a "
        "partition's number or without), then r, cdrom, discard, no-discard, untrusted",
    )
    add_patched_options(parser, reads_input=reads_input)


def kernels_from_options(arguments: argparse.Namespace) -> Wish:
    """A stack with the kernels and the Xen that the options select."""
    return Wish(
        kernel=arguments.kernel,
        domu_kernel=arguments.domu_kernel,
        tree=arguments.tree,
        domu_tree=arguments.domu_tree,
        config=arguments.config,
        xen=arguments.xen,
    )


def wish_from_options(arguments: argparse.Namespace, ring_pages: int = 1) -> Wish:
    """The stack that the options select."""
    memory = arguments.domu_memory or memory_for(ring_pages)
    return replace(
        kernels_from_options(arguments),
        domu=DomuConfig(kind=arguments.domu, memory=memory),
        dom0=Dom0Config(arguments.dom0_memory, arguments.dom0_vcpus, arguments.dom0_options),
        xen_options=arguments.xen_options,
        accel=arguments.accel,
        clock=arguments.clock,
        qemu=arguments.qemu or "",
        cold=arguments.cold,
        record=arguments.record,
    )


def count(text: str) -> int:
    """A count of at least one, as a parser's `type`."""
    if text.isdecimal() and int(text) > 0:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not 1, 2, 3, …")


def table(*columns: str, right: Sequence[str] = ()) -> Table:
    """An empty table, one line a row; the columns in `right` are right-aligned."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        made.add_column(column, justify="right" if column in right else "left", no_wrap=True)
    return made


def show(table: Table) -> None:
    """Print a table without truncation; a narrow terminal wraps its lines."""
    Console(file=sys.stdout, highlight=False, width=_WIDTH).print(table)


def size(amount: float) -> str:
    """Bytes, readable: "12 KiB", "3.4 MiB", "1.2 GiB"."""
    units: Sequence[str] = ("B", "KiB", "MiB", "GiB", "TiB")
    power = 0
    while amount >= 1024 and power < len(units) - 1:
        amount, power = amount / 1024, power + 1
    shown = f"{amount:.1f}" if power > 1 and amount < 100 else f"{amount:.0f}"
    return f"{shown} {units[power]}"


def ago(when: float, now: float | None = None) -> str:
    """A Unix time, readable: "12 s ago", "3 h ago", "5 days ago"."""
    past = max(0.0, (time.time() if now is None else now) - when)
    for limit, unit, seconds in ((120, "s", 1), (7200, "min", 60), (172800, "h", 3600)):
        if past < limit:
            return f"{past / seconds:.0f} {unit} ago"
    return f"{past / 86400:.0f} days ago"
