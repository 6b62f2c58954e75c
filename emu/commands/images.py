"""`emu images`: list and build what guests boot, renew the package lock."""

from __future__ import annotations

import argparse
import json

from emu.commands.driver_options import add_patched_options, context_for
from emu.commands.options import (
    Commands,
    add_kernel_option,
    add_locked_option,
    ago,
    build_context,
    show,
    size,
    table,
)
from emu.errors import EXIT_HELD
from emu.images.cache import Cache
from emu.images.replaced import lock_in_use
from emu.lab import store
from emu.screen import Screen
from emu.stack.wish import Wish


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
    add_kernel_option(build)
    add_locked_option(build)
    add_patched_options(build)
    build.set_defaults(command=_build)
    lock = further.add_parser(
        "lock",
        help="lock the packages that the mirror has now",
        description="Renew guest-images/packages.lock from packages.toml and what the mirror "
        "has now, and show what that changed.",
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


def _build(arguments: argparse.Namespace) -> int:
    wish = Wish(kernel=arguments.kernel, tree=arguments.tree, config=arguments.config)
    with Screen() as screen:
        built = store.build(wish.dom0_choice, context_for(arguments, screen))
    print(f"kernel   {built.kernel.name}, Linux {built.kernel.release}, {built.kernel.root}")
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
        print("packages.lock matches the mirror; nothing changed")
    return EXIT_HELD
