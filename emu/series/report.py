"""The report of a series: cells of a table, faults, JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from emu.images.compiler_messages import messages_as_json
from emu.images.modules import ENDS, MODULE
from emu.series.check import Build, KernelReport, Patch, SeriesReport, Step
from emu.series.checkpatch import Remark, Style

_SHOWN = 12
"""Lines of one message that are shown."""


def style_cell(patch: Patch) -> str:
    """checkpatch's result for a patch, in a column."""
    if patch.open:
        return f"{len(patch.open)} REMARKS"
    return f"clean, {len(patch.excused)} allowed" if patch.excused else "clean"


def step_cell(step: Step) -> str:
    """One patch on one kernel, in a column."""
    if not step.tried:
        return "not tried"
    parts = [fault.what.upper() for fault in step.faults]
    if step.warnings:
        parts.append(f"{len(step.warnings)} WARNINGS")
    if step.build is not None:
        parts.append(_sizes(step.build))
    return ", ".join(parts)


def base_cell(build: Build) -> str:
    """The unpatched source on one kernel, in a column."""
    warnings = len(build.of("build"))
    return f"{_sizes(build)}{f', {warnings} warnings' if warnings else ''}"


def sparse_cell(report: KernelReport) -> str:
    """sparse's result after the last patch, in a column."""
    old = len(report.base.of("sparse"))
    new = f"{len(report.sparse)} NEW" if report.sparse else "nothing new"
    built = [number for number, step in enumerate(report.steps, 1) if step.build is not None]
    last = built[-1] if built else 0
    upto = "" if last == len(report.steps) else f" up to patch {last}"
    return f"{new}{upto}, {old} unpatched"


def faults(report: SeriesReport) -> Iterator[str]:
    """All faults, for people: a line that names each, then its output."""
    for number, patch in enumerate(report.patches, 1):
        what = f"{number}. {patch.subject} ({patch.path.name})"
        for path, style in patch.styles:
            for remark in style.open:
                variant = "" if path == patch.path else f" in {path.parent.name}/"
                yield f"{what}: checkpatch: {remark.level}{variant}"
                yield from _indented(remark.lines)
        for kernel in report.kernels:
            step = kernel.steps[number - 1]
            where = f"{what}, on {kernel.kernel.name}"
            for fault in step.faults:
                yield f"{where}: {fault.message}"
                yield from _indented(fault.lines)
            for message in step.warnings:
                yield f"{where}: a warning (W=1)"
                yield from _indented(message.lines)
            for since, message in kernel.sparse:
                if since == number - 1:
                    yield f"{where}: sparse"
                    yield from _indented(message.lines)


def base_messages(report: SeriesReport) -> Iterator[str]:
    """The compiler's messages about the unpatched source, for people."""
    for kernel in report.kernels:
        for message in kernel.base.messages:
            yield f"the unpatched source, on {kernel.kernel.name}: {message.tool}"
            yield from _indented(message.lines)


def as_json(report: SeriesReport) -> dict[str, Any]:
    """For scripts."""
    return {
        "held": report.held,
        "checkpatch": report.checkpatch_of,
        "sparse": report.sparse_version,
        "patches": [_patch(patch) for patch in report.patches],
        "kernels": [_kernel(kernel) for kernel in report.kernels],
        "allowed_unused": [vars(one) for one in report.unused],
    }


def _patch(patch: Patch) -> dict[str, Any]:
    return {
        "file": patch.path.name,
        "subject": patch.subject,
        "checkpatch": [_style(path, style) for path, style in patch.styles],
    }


def _style(path: Path, style: Style) -> dict[str, Any]:
    return {
        "file": str(path),
        "total": style.total,
        "open": [_remark(remark) for remark in style.open],
        "allowed": [_remark(remark) for remark in style.excused],
    }


def _remark(remark: Remark) -> dict[str, Any]:
    return {**vars(remark), "lines": list(remark.lines)}


def _kernel(report: KernelReport) -> dict[str, Any]:
    return {
        "name": report.kernel.name,
        "release": report.kernel.release,
        "toolchain": report.toolchain,
        "held": report.held,
        "unpatched": _build(report.base),
        "patches": [_step(step) for step in report.steps],
        "sparse_new": [
            {"patch": since + 1, **messages_as_json([message])[0]}
            for since, message in report.sparse
        ],
    }


def _step(step: Step) -> dict[str, Any]:
    return {
        "tried": step.tried,
        "held": step.held,
        "faults": [{**vars(fault), "lines": list(fault.lines)} for fault in step.faults],
        "warnings": messages_as_json(step.warnings),
        "build": None if step.build is None else _build(step.build),
    }


def _build(build: Build) -> dict[str, Any]:
    return {
        "bytes": {MODULE[end]: build.sizes[end] for end in ENDS},
        "warnings": len(build.of("build")),
        "sparse": len(build.of("sparse")),
    }


def _sizes(build: Build) -> str:
    return " + ".join(f"{build.sizes[end] / 1024:.1f}" for end in ENDS) + " KiB"


def _indented(lines: Sequence[str]) -> Iterator[str]:
    for line in lines[:_SHOWN]:
        yield f"    {line}"
    if len(lines) > _SHOWN:
        yield f"    … {len(lines) - _SHOWN} lines more"
