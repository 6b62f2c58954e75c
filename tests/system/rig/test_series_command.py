"""`emu series`: ours holds, and each way in which a series can be broken is reported.

Boots nothing: it needs the packaged kernel, its headers and its source.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from emu import cli
from emu.errors import EXIT_HELD, EXIT_NOT_HELD
from emu.images import kbuild
from emu.images.cache import Cache
from emu.images.context import BuildContext
from emu.images.driver_source import driver_source
from emu.images.kernel_specs import own_series, spec
from emu.series import check as series
from emu.series.check import SeriesReport, SeriesWish
from emu.series.checkpatch import ALLOWED

KERNEL = "debian-6.1"
FRONT, BACK = "drivers/block/xen-blkfront.c", "drivers/block/xen-blkback/xenbus.c"
BEFORE = {FRONT: "\nMODULE_DESCRIPTION", BACK: "\nvoid xen_blkif_xenbus_fini"}
"""Lines near the end of both files."""

pytestmark = pytest.mark.timeout(900)  # a build takes 4 s alone, 10 s on a busy machine


class Author:
    """Writes patches against the kernel's source, as a developer would."""

    def __init__(self, source: Path, folder: Path) -> None:
        self.tree, self.patches = folder / "linux", folder / "patches"
        self.patches.mkdir()
        self._number = 0
        subprocess.run(["cp", "-r", "--no-preserve=mode", source, self.tree], check=True)
        self._git("init", "-q", "-b", "main")
        self._commit("base")

    def patch(self, name: str, old: str, new: str) -> Path:
        """One more patch: the first `old` of the file becomes `new`."""
        path = self.tree / name
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))
        self._commit(
            "xen/blk: change a line\n\nIt is to be another.\n\n"
            "Signed-off-by: A Developer <developer@localhost>"
        )
        self._number += 1
        number = f"--start-number={self._number}"
        self._git("format-patch", "-q", "-1", number, "-o", str(self.patches))
        return sorted(self.patches.glob("*.patch"))[-1]

    def add(self, name: str, text: str) -> Path:
        """One more patch, which adds these lines near the end of a file."""
        before = BEFORE[name]
        return self.patch(name, before, f"\n{text}\n{before}")

    def _commit(self, message: str) -> None:
        self._git("add", "--all")
        self._git("commit", "-q", "-m", message)

    def _git(self, *arguments: str) -> None:
        who = {
            f"GIT_{role}_{what}": value
            for role in ("AUTHOR", "COMMITTER")
            for what, value in (("NAME", "A Developer"), ("EMAIL", "developer@localhost"))
        }
        environ = {**os.environ, **who, "GIT_CONFIG_GLOBAL": os.devnull}
        subprocess.run(["git", *arguments], cwd=self.tree, env=environ, check=True)


@pytest.fixture
def author(context: BuildContext, tmp_path: Path) -> Author:
    source = driver_source(spec(KERNEL), context)
    return Author(source, tmp_path)


@pytest.fixture
def check(author: Author, context: BuildContext) -> Callable[[], SeriesReport]:
    """Checks the author's patches on one kernel."""
    return lambda: series.perform(SeriesWish(author.patches, (KERNEL,)), context)


def shown(author: Author, capsys: pytest.CaptureFixture[str]) -> str:
    """What the command prints about a series that does not hold."""
    capsys.readouterr()
    assert cli.main(["series", "--patches", str(author.patches), "--kernel", KERNEL]) == (
        EXIT_NOT_HELD
    )
    output = capsys.readouterr()
    assert "emu: the series does not hold" in output.err
    return output.out


def test_our_series_holds(cache: Cache, capsys: pytest.CaptureFixture[str]) -> None:
    patches = kbuild.series(own_series())
    assert cli.main(["series", "--kernel", KERNEL, "--json"]) == EXIT_HELD
    output = json.loads(capsys.readouterr().out)
    (kernel,) = output["kernels"]
    assert [patch["file"] for patch in output["patches"]] == [path.name for path in patches]
    assert all(step["held"] and step["build"]["bytes"] for step in kernel["patches"])
    assert len(kernel["patches"]) == len(patches)
    assert kernel["patches"][-1]["build"]["bytes"] != kernel["unpatched"]["bytes"]
    # What only 6.12's checkpatch remarks on is not seen here.
    assert {allowed["type"] for allowed in output["allowed_unused"]} <= {"ALLOC_WITH_SIZEOF"}
    # The second time nothing is built.
    cli.main(["series", "--kernel", KERNEL])
    lines = capsys.readouterr()
    assert "unpacking" not in lines.err
    assert sum(" KiB" in line for line in lines.out.splitlines()) == len(patches) + 1


def test_w_1_warning_is_reported_under_its_patch(
    author: Author, check: Callable[[], SeriesReport], capsys: pytest.CaptureFixture[str]
) -> None:
    author.add(FRONT, "int blkfront_spare(void)\n{\n\tint spare;\n\n\treturn 0;\n}")
    author.add(BACK, "static const int spare_back __maybe_unused;")
    first, second = check().kernels[0].steps
    assert sorted(one.text.split(" [")[0] for one in first.warnings) == [
        "no previous prototype for 'blkfront_spare'",
        "unused variable 'spare'",
    ]
    assert (first.held, second.held) == (False, True)  # reported once, where it came from
    output = shown(author, capsys)
    assert "2 WARNINGS" in output
    assert f"    {FRONT}: In function 'blkfront_spare':" in output


def test_checkpatch_remark_is_reported_unless_allowed(
    author: Author, check: Callable[[], SeriesReport], capsys: pytest.CaptureFixture[str]
) -> None:
    author.add(FRONT, "static int blkfront_spare __maybe_unused=1;")
    (patch,) = check().patches
    assert {one.type for one in patch.open} == {"SPACING"}
    output = shown(author, capsys)
    assert "checkpatch: ERROR" in output
    assert "+static int blkfront_spare __maybe_unused=1;" in output
    (author.patches / ALLOWED).write_text(f"SPACING {FRONT} required around that '='  # a test\n")
    report = check()
    assert report.held
    assert [one.type for one in report.patches[0].excused] == ["SPACING"]


def test_wrong_address_space_is_reported_by_sparse_alone(
    author: Author, check: Callable[[], SeriesReport], capsys: pytest.CaptureFixture[str]
) -> None:
    author.add(BACK, "static const int spare_back __maybe_unused;")
    author.add(
        FRONT,
        "static int __maybe_unused blkfront_peek(void __user *there)\n{\n"
        "\treturn *(int *)there;\n}",
    )
    (kernel,) = check().kernels
    assert all(step.held for step in kernel.steps)
    ((since, message),) = kernel.sparse
    assert (since, message.text) == (1, "cast removes address space '__user' of expression")
    output = shown(author, capsys)
    assert "1 NEW, 0 unpatched" in output
    assert f"2. xen/blk: change a line ({sorted(author.patches.iterdir())[1].name}), on" in output


def test_patch_may_have_a_variant_on_one_kernel(
    author: Author, check: Callable[[], SeriesReport]
) -> None:
    """The variant is what is applied, and both are read by checkpatch."""
    patch = author.add(BACK, "static const int spare_back __maybe_unused;")
    variants = author.patches / spec(KERNEL).version
    variants.mkdir()
    text = patch.read_text().replace("__maybe_unused;", "__maybe_unused=1;")
    (variants / patch.name).write_text(text)
    report = check()
    ((first, plain), (second, variant)) = report.patches[0].styles
    assert (first, second) == (patch, variants / patch.name)
    assert not plain.open
    assert {one.type for one in variant.open} == {"SPACING"}
    assert not report.held
    patch.write_text(patch.read_text().replace("void xen_blkif_xenbus_fini", "void elsewhere"))
    assert check().kernels[0].held


def test_patch_that_does_not_apply_ends_the_series(
    author: Author, check: Callable[[], SeriesReport], capsys: pytest.CaptureFixture[str]
) -> None:
    author.add(BACK, "static const int spare_back __maybe_unused;")
    lost = author.patch(FRONT, "\nMODULE_LICENSE", "\n/* A remark. */\nMODULE_LICENSE")
    lost.unlink()
    author.patch(FRONT, "/* A remark. */", "/* Another remark. */")
    author.add(BACK, "static const int spare_too __maybe_unused;")
    (kernel,) = check().kernels
    first, second, third = kernel.steps
    assert (first.held, second.held, third.held, third.tried) == (True, False, False, False)
    (fault,) = second.faults
    assert "does not apply: hunk 1 of" in fault.message
    assert any('MODULE_LICENSE("GPL");' in line for line in fault.lines)
    output = shown(author, capsys)
    assert "DOES NOT APPLY" in output
    assert "not tried" in output
    assert "nothing new up to patch 1" in output


def test_patch_that_needs_the_next_one_to_build_fails(
    author: Author, check: Callable[[], SeriesReport], capsys: pytest.CaptureFixture[str]
) -> None:
    used = "\tif (!xen_domain())\n\t\treturn -ENODEV;\n\n"
    author.patch(FRONT, used, f"{used}\tblkfront_later();\n\n")
    start = "\nstatic int __init xlblk_init(void)"
    author.patch(FRONT, start, f"\nstatic void blkfront_later(void)\n{{\n}}\n{start}")
    (kernel,) = check().kernels
    first, second = kernel.steps
    (fault,) = first.faults
    assert fault.what == "does not build"
    assert any("implicit declaration of function 'blkfront_later'" in row for row in fault.lines)
    assert second.held
    assert not kernel.held
    assert "DOES NOT BUILD" in shown(author, capsys)


def test_patch_that_is_no_mail_fails(author: Author, check: Callable[[], SeriesReport]) -> None:
    patch = author.add(BACK, "static const int spare_back __maybe_unused;")
    author.add(BACK, "static const int spare_too __maybe_unused;")
    patch.write_text(patch.read_text().partition("\n---\n")[2])
    (kernel,) = check().kernels
    first, second = kernel.steps
    assert [fault.what for fault in first.faults] == ["git am fails"]
    assert "has no From, Date, Subject" in first.faults[0].message
    assert first.build is not None
    assert second.held


@pytest.mark.long
def test_only_what_a_change_reaches_is_built_again(
    author: Author, check: Callable[[], SeriesReport], cache: Cache
) -> None:
    def built() -> int:
        return sum(entry.kind == "series-step" for entry in cache.entries())

    spare = f"spare_{secrets.token_hex(8)}"  # so that nothing of it is in the cache
    first = author.add(BACK, f"static const int {spare} __maybe_unused;")
    last = author.add(FRONT, f"static const int {spare} __maybe_unused;")
    check()
    before = built()
    first.write_text(first.read_text().replace("It is to be another.", "For a better reason."))
    check()
    assert built() == before  # the source is the same after each
    last.write_text(last.read_text().replace(spare, f"{spare}_more"))
    check()
    assert built() == before + 1
