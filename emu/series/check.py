"""`emu series`: does a driver series hold patch by patch, as its reviewers would try it?

Every patch is applied to fresh sources, exactly, and as mail by `git am`; both modules are
built after each with W=1 and C=2, so that a bisection can stop anywhere; checkpatch reads
each. Steps that were built are remembered by what their source is.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from elftools.elf.constants import SH_FLAGS
from elftools.elf.elffile import ELFFile

from emu.errors import InputError
from emu.hosttools import installs
from emu.images import kbuild, modules
from emu.images.compiler_messages import (
    Message,
    messages_as_json,
    messages_of_json,
    new_messages,
    read_messages,
)
from emu.images.context import BuildContext
from emu.images.driver_source import driver_source
from emu.images.kernel_specs import full_name, require_buildable, spec, specs
from emu.images.kernels import Kernel, get_kernel
from emu.images.manifest import JSON
from emu.images.modules import End
from emu.images.patching import apply_patch
from emu.images.series_fit import series_for
from emu.runprogram import run
from emu.series import checkpatch, git_am
from emu.series.checkpatch import Allowed, Remark, Style

_TOOLS = ("git", "make", "patch", "perl", "sparse")
_STEPS = 14
"""Lines of progress that make prints for both modules with C=2 (6.12)."""
_RECIPE = 1
"""Raised when a step's outcome would be another for the same source; a part of cache keys."""


@dataclass(frozen=True)
class SeriesWish:
    """Which patches on which kernels (none: every debian one of kernels.toml)."""

    patches: Path
    kernels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Failure:
    """Something that did not hold: `what` in a few words for a table, then all of it."""

    what: str
    message: str
    lines: tuple[str, ...] = ()


@dataclass(frozen=True)
class Build:
    """Both modules, built once: all messages, and bytes of each in a guest's memory."""

    messages: tuple[Message, ...]
    sizes: Mapping[End, int]

    def of(self, tool: str) -> tuple[Message, ...]:
        """The messages of one tool."""
        return tuple(message for message in self.messages if message.tool == tool)


@dataclass(frozen=True)
class Step:
    """One patch on one kernel. `build` is None where it was not come to, or failed;
    `warnings` are those that the patch before did not have.
    """

    faults: tuple[Failure, ...] = ()
    build: Build | None = None
    warnings: tuple[Message, ...] = ()
    tried: bool = True

    @property
    def held(self) -> bool:
        """Whether it applies and builds, and warns of nothing new."""
        return self.tried and not self.faults and not self.warnings


@dataclass(frozen=True)
class KernelReport:
    """The series on one kernel, a step for each patch. `sparse` has its messages about the last
    source that was built and not of the unpatched one, each with the index of its patch.
    """

    kernel: Kernel
    toolchain: str
    base: Build
    steps: tuple[Step, ...]
    sparse: tuple[tuple[int, Message], ...]

    @property
    def held(self) -> bool:
        """Whether nothing is wrong on this kernel."""
        return not self.sparse and all(step.held for step in self.steps)


@dataclass(frozen=True)
class Patch:
    """A patch and its subject; `styles` is checkpatch's result for each file of that
    name: the patch, and its variants for the kernels asked for.
    """

    path: Path
    subject: str
    styles: tuple[tuple[Path, Style], ...]

    @property
    def open(self) -> tuple[Remark, ...]:
        """Remarks of checkpatch that are not allowed."""
        return tuple(remark for _, style in self.styles for remark in style.open)

    @property
    def excused(self) -> tuple[Remark, ...]:
        """Remarks that checkpatch-allowed allows."""
        return tuple(remark for _, style in self.styles for remark in style.excused)


@dataclass(frozen=True)
class SeriesReport:
    """Everything about a series; `checkpatch_of` names the kernel whose script was used."""

    patches: tuple[Patch, ...]
    kernels: tuple[KernelReport, ...]
    checkpatch_of: str
    sparse_version: str
    unused: tuple[Allowed, ...]

    @property
    def held(self) -> bool:
        """Whether all of it holds."""
        styled = all(not patch.open for patch in self.patches)
        return styled and all(kernel.held for kernel in self.kernels)


def perform(wish: SeriesWish, context: BuildContext) -> SeriesReport:
    """Check the series; the report has the results.

    Raises InputError for what can't be checked: no patches, no such kernel, a missing tool.
    """
    missing = [tool for tool in _TOOLS if not shutil.which(tool)]
    if missing:
        raise InputError(
            f"{', '.join(missing)} is missing on this machine", hint=installs(*missing)
        )
    found = kbuild.series(wish.patches)
    if not found:
        raise InputError(f"{wish.patches} holds no patches (*.patch)")
    allowed = checkpatch.read_allowed(wish.patches)
    sparse = _first_line(["sparse", "--version"])
    names = _names(wish)
    for name in names:
        require_buildable(spec(name))
    read = {name: series_for(spec(name), wish.patches, context) for name in names}
    kernels = [get_kernel(name, context) for name in names]
    newest = max(kernels, key=lambda kernel: [int(n) for n in re.findall(r"\d+", kernel.release)])
    tool = checkpatch.scripts(spec(newest.name), context)
    checked = []
    with context.progress.stage("checkpatch"), context.cache.scratch("checkpatch") as place:
        for number, path in enumerate(found):
            context.progress.tick(path.name, number, len(found))
            files = dict.fromkeys([path, *(patches[number] for patches in read.values())])
            styles = tuple((one, checkpatch.check(one, allowed, tool, place)) for one in files)
            checked.append(Patch(path, git_am.subject(path), styles))
    reports = tuple(_on_kernel(kernel, read[kernel.name], sparse, context) for kernel in kernels)
    remarks = [remark for patch in checked for remark in patch.excused]
    unused = tuple(one for one in allowed if not any(one.excuses(remark) for remark in remarks))
    return SeriesReport(tuple(checked), reports, newest.release, sparse, unused)


def _names(wish: SeriesWish) -> list[str]:
    asked = [full_name(name) for name in wish.kernels]
    every = [one.name for one in specs().values() if one.flavour == "debian" and one.driver_patches]
    return list(dict.fromkeys(asked or every))


def _on_kernel(
    kernel: Kernel, patches: Sequence[Path], sparse: str, context: BuildContext
) -> KernelReport:
    source = driver_source(spec(kernel.name), context)
    toolchain = kbuild.find_toolchain(kernel.config.read_text())
    steps: list[Step] = []
    with (
        context.progress.stage(f"{len(patches)} patches on {kernel.name}"),
        kbuild.workplace(context.cache, "series") as place,
    ):
        builder = _Builder(kernel, toolchain, sparse, place, context)
        tree = place / "tree"
        shutil.copytree(source / "drivers", tree / "drivers")
        repository = git_am.Repository(tree, place)
        base = builder.build(tree, repository.tree_id(), "unpatched")
        last: Build = base
        for number, patch in enumerate(patches):
            if steps and (not steps[-1].tried or _unapplied(steps[-1])):
                steps.append(Step(tried=False))
                continue
            context.progress.tick(patch.name, number, len(patches))
            step = _step(patch, tree, repository, builder)
            if step.build is not None:
                warnings = new_messages(last.of("build"), step.build.of("build"))
                last = step.build
                step = replace(step, warnings=tuple(warnings))
            steps.append(step)
    new = new_messages(base.of("sparse"), last.of("sparse"))
    blamed = tuple((_since(message, base, steps), message) for message in new)
    return KernelReport(kernel, toolchain.version, base, tuple(steps), blamed)


def _step(patch: Path, tree: Path, repository: git_am.Repository, builder: _Builder) -> Step:
    faults: list[Failure] = []
    try:
        apply_patch(patch, tree)
    except InputError as error:
        return Step((_fault("does not apply", error),))
    wanted = repository.tree_id()
    try:
        repository.am(patch)
        if repository.tree_id() != wanted:
            message = f"git am makes another source of {patch.name} than patch does"
            faults.append(Failure("git am differs", message))
    except InputError as error:
        faults.append(_fault("git am fails", error))
        apply_patch(patch, tree)
        repository.commit(patch.name)
    try:
        return Step(tuple(faults), builder.build(tree, wanted, patch.name))
    except InputError as error:
        return Step((*faults, _fault("does not build", error)))


def _unapplied(step: Step) -> bool:
    return any(fault.what == "does not apply" for fault in step.faults)


def _since(message: Message, base: Build, steps: Sequence[Step]) -> int:
    """The index of the first patch whose source has a new message of this kind."""
    for number, step in enumerate(steps):
        if step.build is not None:
            new = new_messages(base.of("sparse"), step.build.of("sparse"))
            if message.key in {one.key for one in new}:
                return number
    raise AssertionError("a message of the last build is one of some build")


def _fault(what: str, error: InputError) -> Failure:
    hint = (error.hint,) if error.hint else ()
    return Failure(what, error.message, (*error.lines, *hint))


class _Builder:
    """Builds sources of one kernel, each once: its output is cached under the source's name."""

    def __init__(
        self,
        kernel: Kernel,
        toolchain: kbuild.Toolchain,
        sparse: str,
        place: Path,
        context: BuildContext,
    ) -> None:
        self._kernel, self._toolchain, self._sparse = kernel, toolchain, sparse
        self._place, self._context = place, context

    def build(self, tree: Path, tree_id: str, what: str) -> Build:
        """The drivers in `tree`, built from scratch, so that messages do not depend on
        what was built before. `what` is shown meanwhile. Raises InputError with the
        compiler's errors.
        """
        inputs: dict[str, JSON] = {
            "kernel": self._kernel.root.name,
            "tree": tree_id,
            "toolchain": self._toolchain.version,
            "sparse": self._sparse,
            "recipe": _RECIPE,
        }

        def make(made: Path) -> None:
            with self._context.progress.stage(what):
                self._make(tree, made)

        entry = self._context.entry("series-step", inputs, make)
        kept = json.loads((entry / "build.json").read_text())
        return Build(messages_of_json(kept["messages"]), kept["sizes"])

    def _make(self, tree: Path, made: Path) -> None:
        place = self._place
        if not (place / "devel").exists():
            modules.unpack_devel(self._kernel, place, self._context.progress)
        shutil.rmtree(place / "source", ignore_errors=True)
        shutil.copytree(tree / "drivers", place / "source/drivers")
        printed = modules.compile_drivers(
            self._kernel, place, self._toolchain, self._context.progress,
            "W=1", "C=2", "CHECK=sparse", "--output-sync=target", steps=_STEPS,
        )  # fmt: skip
        built = modules.compiled(place, self._kernel)
        kept = {
            "messages": messages_as_json(read_messages(printed)),
            "sizes": {end: _loaded_size(path) for end, path in built.items()},
        }
        (made / "build.json").write_text(json.dumps(kept))


def _loaded_size(module: Path) -> int:
    """Bytes a module takes when it is loaded: its sections that are, without debug information."""
    with module.open("rb") as file:
        return sum(
            section["sh_size"]
            for section in ELFFile(file).iter_sections()
            if section["sh_flags"] & SH_FLAGS.SHF_ALLOC
        )


def _first_line(command: list[str]) -> str:
    return run(command).text.strip()
