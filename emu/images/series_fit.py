"""Which variants of a series' patches fit a kernel's source.

A series has variants of some patches for release lines ("6.12/"). Within a line the drivers change
as well, when fixes are backported: 6.12.117 has what 7.3 has, so that for some patches its source
is that of 6.12, for others that of 7.3. A patch applies exactly, with all its context, or it does
not: whichever variant does is the one for this source.
"""

from __future__ import annotations

import functools
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from emu.images import kbuild
from emu.images.context import BuildContext
from emu.images.driver_source import driver_source
from emu.images.kernel_specs import Spec, specs
from emu.images.patching import apply_patch
from emu.runprogram import run

_DRY = ("patch", "-p1", "-N", "-F0", "--dry-run", "--quiet", "-r-", "-i")


def series_for(wanted: Spec, directory: Path, context: BuildContext) -> tuple[Path, ...]:
    """The patches of a series for a kernel, in order.

    For those of kernels.toml its variants say which; for others what fits their source.
    """
    if wanted.name in specs():
        return kbuild.series(directory, wanted.version)
    return fit(directory, wanted.version, driver_source(wanted, context))


def fit(directory: Path, version: str, source: Path) -> tuple[Path, ...]:
    """The patches of a series for `source` (a directory with `drivers/block/…`), in order.

    `version` is the release line of the source ("6.12"), whose variants are tried first. Raises
    InputError as `apply_patch` for the first patch of which no variant applies.
    """
    every = tuple(sorted(directory.rglob("*.patch")))
    return _fit(directory, version, source, kbuild.digest(every))


@functools.lru_cache(maxsize=16)
def _fit(directory: Path, version: str, source: Path, digest: tuple[str, ...]) -> tuple[Path, ...]:
    del digest  # what is remembered is of these patches
    found = []
    with tempfile.TemporaryDirectory(prefix="emu-series-") as place:
        tree = Path(place)
        shutil.copytree(source / "drivers", tree / "drivers")
        for named in kbuild.series(directory, version):
            variants = _variants(directory, named)
            patch = next((one for one in variants if _applies(one, tree)), named)
            apply_patch(patch, tree)
            found.append(patch)
    return tuple(found)


def _variants(directory: Path, named: Path) -> Iterator[Path]:
    """The patch that the release line names, then its other variants, of the newest line first."""
    yield named
    lines = [path.name for path in directory.iterdir() if path.is_dir()]
    lines.sort(key=lambda line: [int(n) for n in line.split(".") if n.isdecimal()], reverse=True)
    for line in ("", *lines):
        path = directory / line / named.name
        if path != named and path.is_file():
            yield path


def _applies(patch: Path, tree: Path) -> bool:
    return run([*_DRY, str(patch.absolute())], cwd=tree).status == 0
