"""Driver patches and trees of one's own: from what people have to drivers in running guests.

Four tests start guests; the others need a kernel's headers and the source of its drivers.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path

import pytest
from emu_command import Warm, run_emu
from small_patches import edited, mail

from emu import cli
from emu.errors import EXIT_HELD, EXIT_INPUT, InputError
from emu.images import kbuild, modules
from emu.images.cache import Cache
from emu.images.context import BuildContext
from emu.images.driver_patches import driver_patch, driver_patches
from emu.images.driver_recipe import Recipe, apply_all, recipe_for
from emu.images.driver_source import BACK, FRONT, HEADER, driver_source, package_source
from emu.images.kernel_specs import own_series, spec
from emu.images.kernels import Kernel, get_kernel
from emu.images.patch_files import STDIN
from emu.images.patched import PatchedDrivers
from emu.progress import Progress

KERNEL = "debian-6.1"
MARKER = "emu_marker"
ANCHOR = {FRONT: 'MODULE_DESCRIPTION("Xen', f"{BACK}blkback.c": 'MODULE_LICENSE("Dual'}
"""Lines near the end of a file, which the series does not change."""

pytestmark = pytest.mark.timeout(300)  # a build takes 5 s alone, 30 s on a busy machine


def marked(source: Path, name: str = FRONT, value: str = "1") -> str:
    """A diff that gives a driver a parameter, which a guest shows."""
    parameter = f"static int {MARKER} = {value};\nmodule_param({MARKER}, int, 0444);\n\n"
    anchor = ANCHOR[name]
    return edited(source, name, anchor, parameter + anchor)


@pytest.fixture
def source(context: BuildContext) -> Path:
    return driver_source(spec(KERNEL), context)


@pytest.fixture
def kernel(context: BuildContext) -> Kernel:
    return get_kernel(KERNEL, context)


def asking(context: BuildContext, *patches: Path, **more: object) -> BuildContext:
    """The context of somebody who asks for these drivers."""
    asked = PatchedDrivers(patches, **more)  # type: ignore[arg-type]
    return BuildContext(context.cache, context.progress, patched=asked)


def unused(name: str) -> str:
    """A function that the compiler warns of."""
    return f"static int {name}(void)\n{{\n\treturn 0;\n}}\n\n"


class Notes(Progress):
    """Keeps what is noted."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, line: str) -> None:
        self.lines.append(line)


def test_warnings_that_a_patch_adds_are_told_each_time(
    tree: Path, kernel: Kernel, context: BuildContext, tmp_path: Path
) -> None:
    """Not those that the drivers have without it; of the end that it changes."""
    change_tree(tree, FRONT, ANCHOR[FRONT], unused("theirs") + ANCHOR[FRONT])
    added = edited(tree, FRONT, ANCHOR[FRONT], unused("mine") + ANCHOR[FRONT])
    (tmp_path / "careless.patch").write_text(f"A function.\n\n{added}")
    asked = asking(context, tmp_path / "careless.patch", tree=tree)
    line = next(
        number
        for number, text in enumerate((tree / FRONT).read_text().splitlines(), 1)
        if text.startswith(ANCHOR[FRONT])
    )
    for _ in ("built", "found in the cache"):
        said = Notes()
        told = BuildContext(context.cache, said, patched=asked.patched)
        for _twice in range(2):
            (warning,) = modules.get_driver("front", "patched", kernel, told).warnings
        assert (warning.file, warning.line) == (FRONT, line)
        assert "'mine' defined but not used" in warning.text
        assert warning.patch.startswith("careless.patch")
        assert said.lines == [f"the compiler warns of {warning}"]
        assert modules.get_driver("back", "patched", kernel, told).warnings == ()


def test_patches_from_standard_input_run_on_the_series(everything: Cache, source: Path) -> None:
    text = mail("[PATCH 1/1] xen-blkfront: a parameter", marked(source))
    done = subprocess.run(
        [sys.executable, "-m", "emu.cli", "run", "--json", "--data=1", "--driver-patches", "-"],
        input=text, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == EXIT_HELD, done.stderr
    drivers = json.loads(done.stdout)["drivers"]
    front, back = drivers["front"], drivers["back"]
    assert front["parameters"][MARKER] == "1"  # as the guest shows it
    assert (front["made_of"], back["made_of"]) == ("series + 1 patch", "series")
    (patch,) = front["patches"]
    assert (patch["file"], patch["subject"]) == (STDIN, "xen-blkfront: a parameter")
    assert len(patch["sha256"]) == 64
    assert back["patches"] == []


def test_patch_on_stock_leaves_the_other_end_alone(
    everything: Cache, source: Path, kernel: Kernel, context: BuildContext, tmp_path: Path
) -> None:
    name = f"{BACK}blkback.c"
    careless = edited(source, name, ANCHOR[name], unused("mine") + ANCHOR[name])
    (tmp_path / "mark.patch").write_text(f"A function.\n\n{careless}")
    done = run_emu(
        "run", "--data=1", "--driver-patches", str(tmp_path / "mark.patch"), "--on", "stock"
    )
    assert done.returncode == EXIT_HELD, done.stderr
    (warning,) = [row for row in done.stdout.splitlines() if row.startswith("warning ")]
    assert f"warning {name}:" in warning
    assert "'mine' defined but not used" in warning
    assert f"the compiler warns of {warning.removeprefix('warning ')}" in done.stderr
    stock = modules.get_driver("front", "stock", kernel, context)
    line = next(one for one in done.stdout.splitlines() if one.startswith("drivers "))
    assert f"blkfront {stock.build_id[:12]} (stock)" in line
    assert "(stock + 1 patch) · " in line
    assert "patch   blkback: mark.patch (A function.), SHA-256 " in done.stdout


TEST = """
from emu.pytestplugin.short_names import *

def test_it(host, lun):
    assert host.create(disk=lun, ring_pages=1).ring(lun).pages == 1
"""


def test_report_of_tests_has_the_patches(everything: Cache, source: Path, tmp_path: Path) -> None:
    """Also of a worker of `pytest -n`, which gets them in the environment."""
    careless = edited(source, FRONT, ANCHOR[FRONT], unused("mine") + ANCHOR[FRONT])
    (tmp_path / "mark.patch").write_text(f"A function.\n\n{careless}")
    (tmp_path / "test_it.py").write_text(TEST)
    report = tmp_path / "report.xml"
    options = ["--driver-patches=mark.patch", "--on=stock", "-n1", f"--junitxml={report}"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options],
        cwd=tmp_path, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    found = {one.get("name"): one.get("value") or "" for one in ElementTree.parse(report).iter()}
    digest = hashlib.sha256((tmp_path / "mark.patch").read_bytes()).hexdigest()
    assert found["front-driver"].endswith(
        f": stock + 1 patch; mark.patch (A function.), SHA-256 {digest}"
    )
    assert found["back-driver"].endswith(": stock")
    warning = found["compiler-warning"]
    assert warning.startswith(f"{FRONT}:")
    assert "'mine' defined but not used" in warning
    rows = done.stdout.splitlines()
    assert rows.count(f"the compiler warns of {warning}") == 1, "not said at once"
    assert rows.count(f"the compiler warns of {warning} (1 test ran with it)") == 1


def test_patch_that_does_not_apply_shows_what_stands_there(
    warm: Warm, source: Path, tmp_path: Path
) -> None:
    line = 'MODULE_ALIAS("xen:vbd");'
    wrong = edited(source, FRONT, line, f"{line} /* changed */").replace(
        'MODULE_ALIAS("xenblk");', 'MODULE_ALIAS("another");'
    )
    (tmp_path / "wrong.patch").write_text(wrong)
    home = warm.home(without=("checkpoint",))
    drivers = home / "emu-xen-block/drivers"
    before = {path.name for path in drivers.iterdir()}
    command = warm.run(home, "--driver-patches", str(tmp_path / "wrong.patch"))
    output = command.fail(EXIT_INPUT, timeout=60)
    assert f"wrong.patch does not apply: hunk 1 of {FRONT} does not fit at line " in output
    rows = [row.strip() for row in output.splitlines()]
    assert '-        MODULE_ALIAS("another");' in rows
    assert any(row.startswith("+") and row.endswith('MODULE_ALIAS("xenblk");') for row in rows)
    assert "booting" not in command.stderr
    assert {path.name for path in drivers.iterdir()} == before


def test_refused_patch_says_where_it_belongs(
    kernel: Kernel, context: BuildContext, source: Path, tmp_path: Path
) -> None:
    ours = kbuild.series(own_series(), kernel.name.rpartition("-")[2])
    with pytest.raises(InputError, match="in the series already: patch 5 of") as refused:
        modules.get_driver("front", "patched", kernel, asking(context, ours[4]))
    assert "--on stock" in (refused.value.hint or "")
    # The context of the first is what the second leaves: each fits on one base alone.
    later = tmp_path / "later.patch"
    with context.cache.scratch("test") as place:
        recipe = recipe_for(kernel, asking(context))
        recipe.copy(place, context)
        apply_all(recipe, place, context)
        later.write_text(edited(place, FRONT, "max_ring_pages,", "max_ring_pages ,"))
    with pytest.raises(InputError, match="does not apply") as refused:
        modules.get_driver("front", "patched", kernel, asking(context, later, on="stock"))
    assert "it applies after our series: --on series" in (refused.value.hint or "")
    text = "module_param_named(max_ring_page_order"
    early = tmp_path / "early.patch"
    early.write_text(edited(source, FRONT, text, f"/* order */\n{text}"))
    with pytest.raises(InputError, match="does not apply") as refused:
        modules.get_driver("front", "patched", kernel, asking(context, early))
    assert "it applies on the unpatched drivers: --on stock" in (refused.value.hint or "")


@pytest.mark.parametrize(
    "name",
    [
        KERNEL,
        pytest.param("debian-6.12", marks=pytest.mark.long),
        pytest.param("debian-7.3", marks=pytest.mark.long),
    ],
)
def test_series_as_a_mailbox_on_stock_is_the_series(
    name: str, context: BuildContext, tmp_path: Path
) -> None:
    """Also with its mails in another order, as archives have them."""
    wanted = spec(name)
    files = kbuild.series(own_series(), wanted.version)
    mails = [
        path.read_text().replace("[PATCH]", f"[PATCH v2 {n}/{len(files)}]", 1).rstrip("\n") + "\n\n"
        for n, path in enumerate(files, 1)
    ]
    (tmp_path / "t.mbox").write_text("".join(sorted(mails, reverse=True)))
    by_mail = PatchedDrivers((tmp_path / "t.mbox",), on="stock")
    ours = sources(wanted.name, PatchedDrivers(), context, tmp_path / "ours")
    assert sources(wanted.name, by_mail, context, tmp_path / "by-mail") == ours


def sources(
    name: str, asked: PatchedDrivers, context: BuildContext, into: Path
) -> dict[str, bytes]:
    """The patched source of a kernel's drivers, without building anything."""
    wanted = spec(name)
    source = package_source(wanted, context)
    series = tuple(map(driver_patch, kbuild.series(own_series(), wanted.version)))
    more = driver_patches(asked, wanted.version, lambda line: None)
    recipe = Recipe(source, asked.base, series, more)
    recipe.copy(into, context)
    apply_all(recipe, into, context)
    return {str(p.relative_to(into)): p.read_bytes() for p in into.rglob("*") if p.is_file()}


def test_error_of_the_compiler_names_the_patch(
    kernel: Kernel, context: BuildContext, source: Path, tmp_path: Path
) -> None:
    (tmp_path / "1.patch").write_text(marked(source, value="1"))
    (tmp_path / "2.patch").write_text(marked(source, f"{BACK}blkback.c", value="not_there"))
    asked = asking(context, tmp_path / "1.patch", tmp_path / "2.patch", on="stock")
    with pytest.raises(InputError, match=r"the drivers \(stock \+ 2 patches\) do not") as refused:
        modules.get_driver("back", "patched", kernel, asked)
    assert any(
        line.startswith(f"{BACK}blkback.c:") and "'not_there'" in line and "[line of 2.pa" in line
        for line in refused.value.lines
    )


def test_header_of_the_protocol_is_taken_from_the_patch(
    kernel: Kernel, context: BuildContext, source: Path, tmp_path: Path
) -> None:
    with context.cache.scratch("test") as place:
        package_source(spec(KERNEL), context, kernel.devel).copy(place, context, header=True)
        anchor = "typedef uint16_t blkif_vdev_t;"
        number = edited(place, HEADER, anchor, f"#define BLKIF_NUMBER 42\n\n{anchor}")
    used = [marked(source, name, value="BLKIF_NUMBER") for name in ANCHOR]
    (tmp_path / "1.patch").write_text("".join([number, *used]))
    for end in modules.ENDS:
        driver = modules.get_driver(
            end, "patched", kernel, asking(context, tmp_path / "1.patch", on="stock")
        )
        assert MARKER in driver.info.parameters


@pytest.fixture
def tree(source: Path, tmp_path: Path) -> Path:
    """A kernel tree with the drivers of 6.1, which says that it is a later Linux."""
    top = tmp_path / "linux"
    subprocess.run(["cp", "-r", "--no-preserve=mode", source, top], check=True)
    (top / "Makefile").write_text(
        "VERSION = 9\nPATCHLEVEL = 9\nSUBLEVEL = 0\nEXTRAVERSION = -rc1\n"
    )
    return top


def change_tree(tree: Path, name: str, old: str, new: str) -> None:
    path = tree / name
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))


def test_drivers_of_a_tree_run(everything: Cache, tree: Path) -> None:
    """From a changed file to both drivers in the guests: 15 s on 2 idle cores."""
    value = str(time.time_ns() % 10**9)
    parameter = f"static int {MARKER} = {value};\nmodule_param({MARKER}, int, 0444);\n\n"
    change_tree(tree, FRONT, ANCHOR[FRONT], parameter + ANCHOR[FRONT])
    done = run_emu("run", "--json", "--data=1", "--tree-drivers", str(tree))
    assert done.returncode == EXIT_HELD, done.stderr
    report = json.loads(done.stdout)
    front = report["drivers"]["front"]
    assert front["parameters"][MARKER] == value
    assert (front["base"], front["linux"]) == ("stock", "9.9.0-rc1")
    assert front["made_of"] == f"tree {tree} (Linux 9.9.0-rc1)"
    times = report["timing"]
    print({name: times[name] for name in ("prepare_s", "start_s", "drivers_s")})


def test_interface_that_moved_is_named(tree: Path, context: BuildContext, kernel: Kernel) -> None:
    change_tree(tree, FRONT, "kzalloc(sizeof(*info), GFP_KERNEL)", "kzalloc_obj(*info)")
    change_tree(tree, FRONT, "xenbus_transaction_start(&xbt)", "xenbus_transaction_start(&xbt, 1)")
    with pytest.raises(InputError, match=r"do not build for Linux 6\.1\.0-") as refused:
        modules.get_driver("front", "patched", kernel, asking(context, tree=tree))
    said = [line.partition(": ") for line in refused.value.lines]
    assert [(place.partition(":")[0], text) for place, _, text in said] == [
        (FRONT, "this kernel has xenbus_transaction_start() with other arguments"),
        (FRONT, "this kernel has no kzalloc_obj()"),
    ]
    assert "the tree is Linux 9.9.0-rc1, the kernel 6.1.0-" in (refused.value.hint or "")


def refused(*options: str) -> str:
    """The error of an `emu run` that ends before it prepares anything."""
    command = [sys.executable, "-m", "emu.cli", "run", *options]
    done = subprocess.run(command, input="", capture_output=True, text=True, timeout=60)
    assert done.returncode == EXIT_INPUT, done.stderr
    assert "preparing" not in done.stderr
    return done.stderr


def test_bad_input_is_refused_at_once(tmp_path: Path) -> None:
    patch = tmp_path / "1.patch"
    patch.write_text(f"--- a/{FRONT}\n+++ b/{FRONT}\n@@ -1 +1 @@\n-a\n+b\n")
    cases: Sequence[tuple[Sequence[str], str]] = (
        (["--driver-patches", "gone.patch"], "there is no driver patch gone.patch"),
        (["--driver-patches", str(tmp_path / "1.patch"), "--front", "stock"], "nothing would use"),
        (["--on", "stock"], "drivers on stock without patches"),
        (["--tree-drivers", str(tmp_path)], f"{tmp_path} is no kernel tree"),
        (["--driver-patches", "-"], "standard input is empty: it holds no patch"),
    )
    for options, message in cases:
        assert message in refused(*options)


def test_images_are_built_with_them(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "1.patch").write_text(marked(source))
    words = ["images", "build", "--driver-patches", str(tmp_path / "1.patch")]
    assert cli.main(words) == EXIT_HELD
    output = capsys.readouterr().out
    assert "(series + 1 patch, build id" in output
    assert "(series, build id" in output
