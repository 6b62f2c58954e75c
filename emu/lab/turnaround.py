"""Time from a change in the drivers' source to both modules loaded in running guests."""

from __future__ import annotations

import difflib
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

from emu.images import modules
from emu.images.context import BuildContext
from emu.images.driver_patches import driver_patch
from emu.images.driver_recipe import source_of
from emu.images.source_tree import read_tree
from emu.stack.drivers import checked_driver, load_drivers
from emu.stack.stack import Artifacts, running

_CHANGED = ("drivers/block/xen-blkfront.c", "drivers/block/xen-blkback/blkback.c")


def measure(artifacts: Artifacts, context: BuildContext) -> float:
    """Seconds to build both modules of a source that was not built before, patched with the
    series, and to load them into guests started from the checkpoint."""
    series = modules.patches_of(artifacts.kernel, context)
    with context.cache.scratch("turnaround") as folder:
        source = folder / "source"
        source_of(artifacts.kernel, context).copy(source, context)
        change = folder / "0000-a-change.patch"
        change.write_text("".join(_change(source)))
        began = time.monotonic()
        made = modules.build_drivers(artifacts.kernel, [driver_patch(change), *series], context)
        built = {
            end: checked_driver(
                end, str(made / f"{modules.MODULE[end]}.ko"), artifacts.kernel, context
            )
            for end in modules.ENDS
        }
        with running(artifacts, context) as stack:
            load_drivers(stack, built, context.cache, pages=1)
            return time.monotonic() - began


def measure_tree(artifacts: Artifacts, context: BuildContext) -> float:
    """The same for the drivers of a tree that was read before, its second look included."""
    assert artifacts.kernel.tree is not None
    began = time.monotonic()
    read_tree(artifacts.kernel.tree.path, context)
    return time.monotonic() - began + measure(artifacts, context)


def _change(source: Path) -> Iterator[str]:
    """A patch to both drivers that is different each time."""
    for name in _CHANGED:
        before = (source / name).read_text().splitlines(keepends=True)
        after = [*before, f"/* {secrets.token_hex(8)} */\n"]
        yield from difflib.unified_diff(before, after, f"a/{name}", f"b/{name}", n=1)
