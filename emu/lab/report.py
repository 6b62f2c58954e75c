"""The report of a run: values, checks, as text and as JSON."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from emu.images import configuration, replaced
from emu.images.driver_patches import ends_of
from emu.images.kernels import Kernel
from emu.images.modules import Driver, End
from emu.images.packages import Package
from emu.images.patch_files import Patch
from emu.progress import Progress
from emu.stack.stack import Artifacts
from emu.stack.wish import RunWish
from emu.xen import lun
from emu.xen.drivers import LoadedDriver
from emu.xen.grants import GrantTable
from emu.xen.queues import QueueView, Views
from emu.xen.ring import Ring

DOM0 = 0
SOURCES = {"drivers": "the drivers' own view", "xenstore": "the keys in xenstore"}
"""`Ring.source` in words."""
_NAMES = {"front": "blkfront", "back": "blkback"}


@dataclass(frozen=True)
class Check:
    """One condition, and what was seen."""

    name: str
    held: bool
    seen: str


@dataclass
class Timing:
    """Seconds of wall time, stage by stage, in order."""

    stages: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def stage(self, name: str, what: str, progress: Progress) -> Iterator[None]:
        """Time a stage and show it."""
        began = time.monotonic()
        with progress.stage(what):
            yield
        self.stages[name] = time.monotonic() - began


@dataclass(frozen=True)
class RunReport:
    """The results of a run."""

    wish: RunWish
    artifacts: Artifacts
    origin: str
    qemu: str
    xen: str
    dom0_release: str
    domu_release: str
    lun: lun.Lun
    session: bool
    ring: Ring
    views: Views
    before: GrantTable
    attached: GrantTable
    after: GrantTable
    bytes_moved: int
    written: str
    read_back: str
    seen_by_dom0: str
    front: LoadedDriver
    back: LoadedDriver
    built: dict[End, Driver]
    timing: Timing
    checks: tuple[Check, ...] = ()
    packages: tuple[Package, ...] = ()
    """Those that all of it is made of."""

    @property
    def held(self) -> bool:
        """Whether everything held."""
        return all(check.held for check in self.checks)


def checks(report: RunReport) -> Iterator[Check]:
    ring, wish = report.ring, report.wish
    offer = f"the back end offers order {ring.offer.order}, {ring.offer.pages or 'no'} pages key"
    yield Check(
        f"the ring has {wish.ring_pages} pages",
        ring.pages == wish.ring_pages,
        f"{ring.pages} pages; {offer}",
    )
    if views := report.views.ends:
        other = [*ring.disagreements(), *replace(ring, views=report.views).disagreements()]
        yield Check(
            f"the ring that {' and '.join(_NAMES[end] for end in views)} "
            f"{'shows' if len(views) == 1 else 'show'} is the one of the keys",
            not other,
            "; ".join(dict.fromkeys(other)),
        )
    unmapped = sorted(set(ring.refs) - report.attached.refs)
    yield Check("dom0 maps every page of the ring", not unmapped, f"not mapped: {unmapped}")
    left = sorted(report.after.refs - report.before.refs)
    yield Check("the ring's grants are gone after detach", not left, f"still mapped: {left}")
    yield Check(
        "the domU reads what it wrote",
        report.read_back == report.written,
        f"{report.read_back}, written {report.written}",
    )
    yield Check(
        "dom0 reads the same from the LUN",
        report.seen_by_dom0 == report.written,
        f"{report.seen_by_dom0}, written {report.written}",
    )
    yield Check(
        "the iSCSI session is up",
        report.session,
        "logged in" if report.session else "no session is logged in",
    )
    ends: tuple[tuple[End, LoadedDriver], ...] = (("front", report.front), ("back", report.back))
    for end, loaded in ends:
        wanted = report.built[end].build_id
        yield Check(
            f"the {end} end that runs is the one that was built",
            loaded.build_id == wanted,
            f"{loaded.build_id}, built {wanted}",
        )


def as_json(report: RunReport) -> dict[str, Any]:
    """The report as JSON; times in seconds, sizes in bytes or MiB as named."""
    artifacts, ring = report.artifacts, report.ring

    def driver(end: End, loaded: LoadedDriver) -> dict[str, Any]:
        return {
            "which": report.built[end].which,
            "build_id": loaded.build_id,
            "parameters": dict(loaded.parameters),
            "made_of": report.built[end].made_of,
            **(recipe.as_json() if (recipe := report.built[end].recipe) else {}),
            "warnings": [vars(warning) for warning in report.built[end].warnings],
        }

    return {
        "held": report.held,
        "checks": [vars(check) for check in report.checks],
        "accel": artifacts.accel.name,
        "accel_reason": artifacts.accel.reason,
        "clock": artifacts.wish.guest_clock,
        "cpu": artifacts.spec.cpu_model,
        "qemu": report.qemu,
        "origin": report.origin,
        "xen": report.xen,
        "kernel": artifacts.kernel.name,
        "trees": {"dom0": _tree(artifacts.kernel), "domu": _tree(artifacts.domu_kernel)},
        "dom0_kernel": report.dom0_release,
        "domu": {
            "kind": artifacts.wish.domu.kind,
            "memory_mib": artifacts.wish.domu.memory,
            "kernel": report.domu_release,
            "kernel_name": artifacts.domu_kernel.name,
        },
        "lun": {
            "size": report.lun.size,
            "sector": report.lun.sector,
            "device": report.lun.device,
            "iqn": report.lun.iqn,
            "session": report.session,
        },
        "ring": {
            "pages": ring.pages,
            "order": ring.order,
            "requests": ring.requests,
            "refs": list(ring.refs),
            "queues": len(ring.queues),
            "offered_order": ring.offer.order,
            "offered_pages": ring.offer.pages,
            "persistent": ring.persistent,
            "source": ring.source,
            "shown": {
                "front": _shown(report.views.front),
                "back": _shown(report.views.back),
            },
        },
        "grants": {
            "mapped_before": len(report.before.mapped_by(DOM0)),
            "mapped_attached": len(report.attached.mapped_by(DOM0)),
            "mapped_after": len(report.after.mapped_by(DOM0)),
        },
        "data": {
            "bytes": report.bytes_moved,
            "equal": report.written == report.read_back == report.seen_by_dom0,
            "sha256": report.written,
        },
        "drivers": {"front": driver("front", report.front), "back": driver("back", report.back)},
        "packages": [
            {
                "name": package.name,
                "version": package.version,
                "sha256": package.sha256,
                "instead_of": package.instead_of or None,
            }
            for package in report.packages
        ],
        "timing": {name: round(value, 3) for name, value in report.timing.stages.items()},
    }


def lines(report: RunReport) -> list[str]:
    """The report as text."""
    artifacts, ring, times = report.artifacts, report.ring, report.timing.stages
    accel = f"{artifacts.accel.name.upper()} ({artifacts.accel.reason})"
    clock = "instruction time" if artifacts.wish.clock == "icount" else "wall time"
    started = f"started from {'a checkpoint' if report.origin == 'checkpoint' else 'cold'}"
    domu = artifacts.wish.domu
    offered = "no order key" if ring.offer.order is None else f"order {ring.offer.order}"
    equal = report.written == report.read_back == report.seen_by_dom0
    grants = [len(t.mapped_by(DOM0)) for t in (report.before, report.attached, report.after)]
    own_kernel = ""
    if artifacts.domu_kernel != artifacts.kernel:
        own_kernel = f" · its Linux {report.domu_release}"
    return [
        f"host    QEMU {report.qemu} · {accel} · {clock} · {started} in {times['start_s']:.1f} s",
        f"xen     {report.xen} · dom0 Linux {report.dom0_release} ({artifacts.kernel.flavour}) · "
        f"domU {domu.kind.upper()} {domu.memory} MiB{own_kernel}",
        f"lun     {report.lun.size // lun.MIB} MiB · tcmu-runner, iSCSI session "
        f"{'up' if report.session else 'down'} · seen as {report.lun.device}",
        f"ring    {ring.pages} pages (order {ring.order}), {ring.requests} requests · "
        f"offered: {offered} · references {spans(ring.refs)}",
        *_queue_lines(ring, report.views),
        f"grants  mapped by dom0: {grants[0]} before, {grants[1]} while attached, "
        f"{grants[2]} after detach",
        f"data    {report.bytes_moved // lun.MIB} MiB written, read back in the domU and in "
        f"dom0, SHA-256 {'equal' if equal else 'DIFFERENT'}",
        f"drivers blkback {report.back.build_id[:12]} ({report.built['back'].made_of}) · "
        f"blkfront {report.front.build_id[:12]} ({report.built['front'].made_of})",
        *_patch_lines(report.built),
        *(f"package {line}" for line in replaced.described(report.packages)),
        *_tree_lines(artifacts),
    ]


def _patch_lines(built: Mapping[End, Driver]) -> Iterator[str]:
    """The patches that somebody asked for, with the ends that they change."""
    ends: dict[Patch, list[str]] = {}
    for end, driver in sorted(built.items(), reverse=True):
        for patch in driver.recipe.more if driver.recipe else ():
            if end in ends_of([patch]):
                ends.setdefault(patch, []).append(_NAMES[end])
    for patch, changed in ends.items():
        yield f"patch   {' and '.join(changed)}: {patch}, SHA-256 {patch.sha256[:12]}"
    for warning in dict.fromkeys(one for driver in built.values() for one in driver.warnings):
        yield f"warning {warning}"


def _tree_lines(artifacts: Artifacts) -> Iterator[str]:
    """What the trees are that the kernels were built of."""
    guests = {"dom0": artifacts.kernel, "domU": artifacts.domu_kernel}
    for kernel in dict.fromkeys(guests.values()):
        if kernel.tree is not None:
            names = " and ".join(name for name, one in guests.items() if one == kernel)
            made = configuration.notes_of(kernel.root).get("from", "")
            yield f"tree    {names}: {kernel.tree} · {made}"


def _tree(kernel: Kernel) -> dict[str, Any] | None:
    """The tree that a kernel was built of as JSON; null for a kernel that has a name."""
    tree = kernel.tree
    if tree is None:
        return None
    return {
        "path": str(tree.path),
        "release": tree.release,
        "commit": tree.commit,
        "described": tree.described,
        "dirty": list(tree.dirty),
        "digest": tree.digest,
        "kernel_digest": tree.kernel_digest,
        "configuration": configuration.notes_of(kernel.root),
    }


def _queue_lines(ring: Ring, views: Views) -> Iterator[str]:
    """What the drivers show of each queue after the transfer, or that they show nothing."""
    silent = " and ".join(name for end, name in _NAMES.items() if end not in views.ends)
    for number in range(len(ring.queues)):
        parts = [f"{ring.pages} pages, {ring.requests} requests"]
        parts += [
            f"{_NAMES[end]} {_counts(queue)}"
            for end, queues in views.ends.items()
            for queue in queues
            if queue.number == number
        ]
        if silent:
            source = "" if views.ends else f": the figures are from {SOURCES[ring.source]}"
            parts.append(f"no view of {silent} in debugfs{source}")
        yield f"queue {number} " + " · ".join(parts)


def _counts(queue: QueueView) -> str:
    counts = {"outstanding": queue.outstanding, "persistent grants": queue.persistent}
    if queue.deferred:
        counts["deferred"] = queue.deferred
    return ", ".join(f"{'?' if n is None else n} {name}" for name, n in counts.items())


def _shown(queues: tuple[QueueView, ...] | None) -> list[dict[str, int]] | None:
    """An end's queues as JSON, by the driver's own names; null where it shows none."""
    return None if queues is None else [{"queue": q.number, **q.numbers()} for q in queues]


def spans(numbers: tuple[int, ...]) -> str:
    """Numbers, consecutive ones as a range: 8–23, 40."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(r[0]) if len(r) == 1 else f"{r[0]}–{r[-1]}" for r in runs)
