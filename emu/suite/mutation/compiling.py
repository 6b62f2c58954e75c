"""What the compiler says of a candidate: another program, the same one, or none.

A change that leaves the object code as it was is no mutant: whatever a test does, the driver does
the same. Two candidates with the same object code are one mutant.
"""

from __future__ import annotations

import contextlib
import enum
import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from emu.images import kbuild, modules
from emu.images.context import BuildContext
from emu.images.driver_recipe import Recipe, apply_all
from emu.images.kernels import Kernel
from emu.images.manifest import canonical
from emu.progress import Progress
from emu.runprogram import run
from emu.suite.mutation.candidates import Candidate
from emu.suite.mutation.source import Source

STORE = "mutants"
"""The cache's directory of what is kept of mutants made by machine."""
_BLOCK = Path("drivers/block")
_OBJECTS = {
    "xen-blkfront.c": ("xen-blkfront.o",),
    "xen-blkback/blkback.c": ("xen-blkback/blkback.o",),
    "xen-blkback/xenbus.c": ("xen-blkback/xenbus.o",),
    "xen-blkback/common.h": ("xen-blkback/blkback.o", "xen-blkback/xenbus.o"),
}
"""The objects that a file is compiled into."""
_NO_SLIP = re.compile(r"warning: .*\[-W(?:int-conversion|incompatible-pointer-types)\]")
"""Warnings of what the kernel's developers take for an error, and gcc before 14 does not."""
_RECIPE = 1
"""Raised when the way objects are compared changes; a part of the key of what is kept."""
_CHUNK = 12


class Kind(enum.Enum):
    """What the compiler makes of a candidate."""

    MUTANT = "mutant"
    SAME = "same object code"
    TWIN = "same object code as another"
    REFUSED = "does not compile"


@dataclass(frozen=True)
class Compiled:
    """A candidate's object code: the hash, empty where the compiler refused it."""

    digest: str
    kind: Kind


class _Bench:
    """The sources in a directory, built once: what is changed is compiled anew. Not thread-safe."""

    def __init__(self, place: Path, recipe: Recipe, kernel: Kernel, context: BuildContext) -> None:
        self._place, self._kernel = place, kernel
        self._toolchain = kbuild.find_toolchain(kernel.config.read_text())
        recipe.copy(place / "source", context)
        apply_all(recipe, place / "source", context)
        modules.unpack_devel(kernel, place, Progress())
        modules.compile_drivers(kernel, place, self._toolchain, Progress())
        self._sound = {
            file: self._digest(file, (self._path(file)).read_bytes()) for file in _OBJECTS
        }

    def compiled(self, candidate: Candidate) -> Compiled:
        digest = self._digest(candidate.short_file, candidate.content)
        if not digest:
            return Compiled("", Kind.REFUSED)
        same = digest == self._sound[candidate.short_file]
        return Compiled(digest, Kind.SAME if same else Kind.MUTANT)

    def _path(self, file: str) -> Path:
        return self._place / "source" / _BLOCK / file

    def _digest(self, file: str, content: bytes) -> str:
        """Of the objects made from a file with this content; empty if the compiler refuses it."""
        path = self._path(file)
        before = path.read_bytes()
        objects = _OBJECTS[file]
        for name in objects:
            self._path(name).unlink(missing_ok=True)
        path.write_bytes(content)
        try:
            lines = kbuild.make(
                self._place / "devel/build",
                f"M={os.path.realpath(self._place / 'source' / _BLOCK)}",
                "CONFIG_XEN_BLKDEV_FRONTEND=m", "CONFIG_XEN_BLKDEV_BACKEND=m", *objects,
                *kbuild.without_newer_flags(self._toolchain, self._kernel.config.read_text()),
                toolchain=self._toolchain, progress=Progress(), what=file, hide=self._place,
            )  # fmt: skip
        except kbuild.BuildFailed:
            return ""
        finally:
            path.write_bytes(before)
        if any(map(_NO_SLIP.search, lines)):
            return ""
        found = hashlib.sha256()
        for name in objects:
            bare = self._place / "bare.o"
            run(["objcopy", "--strip-debug", str(self._path(name)), str(bare)], f"no object {name}")
            found.update(bare.read_bytes())
        return found.hexdigest()


class Compiler:
    """Compiles candidates, several at once; what came out is kept in the cache."""

    def __init__(
        self, recipe: Recipe, kernel: Kernel, sources: Sequence[Source], context: BuildContext
    ) -> None:
        self._recipe, self._kernel, self._context = recipe, kernel, context
        inputs = {
            "sources": [hashlib.sha256(one.content).hexdigest() for one in sources],
            "kernel": kernel.root.name,
            "toolchain": kbuild.find_toolchain(kernel.config.read_text()).version,
            "recipe": _RECIPE,
        }
        key = hashlib.sha256(canonical(inputs)).hexdigest()[:32]
        self._file = context.cache.store(STORE) / f"objects-{key}.json"
        self._known: dict[str, str] = _read(self._file)

    def choose(
        self, order: Sequence[Candidate], count: int, jobs: int
    ) -> tuple[list[Candidate], dict[str, Kind]]:
        """The first `count` of `order` that are mutants, and what all that were looked at are.

        Raises RigError or InputError where the drivers themselves cannot be built.
        """
        chosen: list[Candidate] = []
        kinds: dict[str, Kind] = {}
        seen: set[str] = set()
        at = 0
        with self._benches(jobs) as benches, ThreadPoolExecutor(jobs) as pool:
            while len(chosen) < count and at < len(order):
                chunk = order[at : at + max(_CHUNK, count - len(chosen))]
                found: list[Compiled] = []
                try:
                    for one, compiled in zip(chunk, pool.map(benches.compiled, chunk), strict=True):
                        done = len(chosen) + len(found)
                        self._context.progress.tick(f"compiling {one.where}", done, count)
                        found.append(compiled)
                except BaseException:
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise
                finally:
                    self._keep()
                for one, compiled in zip(chunk, found, strict=True):
                    if len(chosen) == count:
                        break
                    at += 1
                    kind = compiled.kind
                    if kind is Kind.MUTANT and compiled.digest in seen:
                        kind = Kind.TWIN
                    kinds[one.id] = kind
                    if kind is Kind.MUTANT:
                        seen.add(compiled.digest)
                        chosen.append(one)
        return chosen, kinds

    @contextlib.contextmanager
    def _benches(self, jobs: int) -> Iterator[_Benches]:
        with contextlib.ExitStack() as opened:
            yield _Benches(self, opened, jobs)

    def _keep(self) -> None:
        with self._context.cache.scratch("objects") as scratch:
            (scratch / "known").write_text(json.dumps(dict(self._known)))
            (scratch / "known").replace(self._file)


class _Benches:
    """As many benches as work at once, each set up when it is needed. Thread-safe."""

    def __init__(self, compiler: Compiler, opened: contextlib.ExitStack, jobs: int) -> None:
        self._compiler, self._opened = compiler, opened
        self._free: SimpleQueue[_Bench | None] = SimpleQueue()
        for _ in range(jobs):
            self._free.put(None)

    def compiled(self, candidate: Candidate) -> Compiled:
        own = self._compiler
        if (known := own._known.get(candidate.id)) is not None:
            digest, _, kind = known.partition(" ")
            return Compiled(digest, Kind(kind))
        bench = self._free.get()
        try:
            if bench is None:
                place = self._opened.enter_context(
                    kbuild.workplace(own._context.cache, "mutant-objects")
                )
                quiet = BuildContext(own._context.cache)
                bench = _Bench(place, own._recipe, own._kernel, quiet)
            found = bench.compiled(candidate)
        finally:
            self._free.put(bench)
        own._known[candidate.id] = f"{found.digest} {found.kind.value}"
        return found


def _read(path: Path) -> dict[str, str]:
    try:
        kept = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return kept if isinstance(kept, dict) else {}
