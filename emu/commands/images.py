"""`emu images`: list and build what guests boot, renew the package lock."""

from __future__ import annotations

import argparse
import json

from emu.commands.driver_options import add_patched_options, context_for
from emu.commands.options import (
    Commands,
    add_kernel_options,
    add_locked_option,
    add_xen_option,
    ago,
    build_context,
    kernels_from_options,
    show,
    size,
    table,
)
from emu.errors import EXIT_HELD
from emu.images.cache import Cache
from emu.images.kernel_specs import LISTS
from emu.images.replaced import lock_in_use
from emu.lab import kernel_list, store
from emu.screen import Screen


def add(commands: Commands) -> None:
    """Add the command's parser, with its own commands."""
    parser = commands.add_parser(
        "images",
        help="what the guests boot: list, build, renew the package lock",
        description="Without a further command: the kernels, guest images, drivers and "
        "checkpoints in the cache, and the locked packages they were built from.",
    )
    parser.add_argument("--json", action="store_true", help="print the list as JSON")
    parser.set_defaults(command=_list)
    further = parser.add_subparsers(metavar="COMMAND")
    build = further.add_parser(
        "build",
        help="build everything that a run needs; run nothing",
        description="Fetch and build the kernel, the guest images and the patched drivers.",
    )
    add_kernel_options(build)
    add_xen_option(build)
    add_locked_option(build)
    add_patched_options(build)
    build.set_defaults(command=_build)
    kernels = further.add_parser(
        "kernels",
        help="list the kernels that --kernel and --domu-kernel take",
        description="Every kernel by name: Debian's, which are fetched when they are named, and "
        "those of guest-images/kernels.toml that are built here.",
        epilog="drivers: `series` is what patched drivers are; `no series`: it is not for that "
        "line; `stock only`: Debian has no headers for it any more; `modules gone`: nor modules, "
        "so that it can't be run. A line (debian-6.18) or a version (debian-6.12.107), an ABI "
        "(debian-6.1.0-55), a package's version (debian-6.1.192-1) and what `uname -r` prints are "
        "names, too.",
    )
    kernels.add_argument(
        "filter",
        nargs="?",
        default="",
        metavar="WORD",
        help="only those with this word in name, version or suite: 6.12, cloud, trixie",
    )
    kernels.add_argument("--json", action="store_true", help="print the list as JSON")
    kernels.set_defaults(command=_kernels)
    lock = further.add_parser(
        "lock",
        help="lock the packages that the mirror has now",
        description="Renew packages.lock and kernels.lock in guest-images/ from packages.toml and "
        "what the mirror has now, and show what that changed.",
    )
    lock.set_defaults(command=_lock)


def _list(arguments: argparse.Namespace) -> int:
    cache = Cache()
    found = store.images(cache, lock_in_use(cache))
    if arguments.json:
        print(json.dumps(store.images_as_json(found), indent=2))
        return EXIT_HELD
    rows = table("what", "kernel", "key", "size", "used", "locked packages", right=["size"])
    for image in found:
        entry = image.entry
        origin = image.main_package or f"{len(image.packages)} packages"
        rows.add_row(
            image.kind,
            image.name or "–",
            entry.key[:8],
            size(entry.size),
            ago(entry.last_used),
            origin if image.locked else _elsewhere(image),
        )
    show(rows)
    if not found:
        print("nothing is built yet: `emu images build`")
    return EXIT_HELD


def _elsewhere(image: store.Image) -> str:
    return "of a tree" if image.kind == "kernel-tree" else "of another lock"


def _kernels(arguments: argparse.Namespace) -> int:
    cache = Cache()
    found = kernel_list.list_kernels(cache, lock_in_use(cache), arguments.filter)
    if arguments.json:
        print(json.dumps(kernel_list.as_json(found), indent=2))
        return EXIT_HELD
    columns = ("name", "package version", "suite", "kernel", "drivers", "source", "guests", "cache")
    rows = table(*columns, right=["kernel", "source"])
    for one in found:
        rows.add_row(
            one.name,
            one.version,
            one.suite,
            size(one.bytes) if one.bytes else "–",
            one.drivers,
            size(one.source_bytes) if one.source_bytes else "–",
            "both" if one.dom0 else "domU" if one.bytes else "–",
            one.cached or "–",
        )
    show(rows)
    if not found:
        print(f"no kernel has the word {arguments.filter!r}: `{LISTS}` lists all")
    return EXIT_HELD


def _build(arguments: argparse.Namespace) -> int:
    wish = kernels_from_options(arguments)
    with Screen() as screen:
        built = store.build(wish, context_for(arguments, screen))
    print(f"kernel   {built.kernel.name}, Linux {built.kernel.release}, {built.kernel.root}")
    if (other := built.domu_kernel) != built.kernel:
        print(f"domU     {other.name}, Linux {other.release}, {other.root}")
    print(f"guests   {built.guests.root}")
    for end, driver in built.drivers.items():
        print(f"{end:<8} {driver.path} ({driver.made_of}, build id {driver.build_id[:12]})")
    return EXIT_HELD


def _lock(arguments: argparse.Namespace) -> int:
    with Screen() as screen:
        changes = store.renew_lock(build_context(screen))
    for change in changes:
        before, after = change.before or "(new)", change.after or "(gone)"
        print(f"{change.name:<36} {before} → {after}   {change.archive}: {', '.join(change.sets)}")
    if changes:
        print(
            f"{len(changes)} packages changed: images built from them, and their checkpoints, are "
            "rebuilt at the next run"
        )
    else:
        print("the locks match the mirror; nothing changed")
    return EXIT_HELD
