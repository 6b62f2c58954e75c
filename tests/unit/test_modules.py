"""The drivers: which file is taken, how patches apply, how kbuild is run."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from small_modules import RELEASE, build_kernel, build_module, symvers
from small_patches import change

from emu import paths
from emu.errors import InputError
from emu.images import kbuild, modules
from emu.images.cache import Cache
from emu.images.context import BuildContext
from emu.images.kernels import Kernel
from emu.images.patched import GIVEN, MORE_PATCHES, ON, PatchedDrivers, from_environment
from emu.images.patching import apply_patch
from emu.progress import Progress

SOURCE = "".join(f"line {n}\n" for n in range(1, 31))


@pytest.fixture
def kernel(tmp_path: Path) -> Kernel:
    root = tmp_path / "kernel"
    build_kernel(root / "vmlinux", notes={18: 0})
    (root / "Module.symvers").write_text(symvers(printk=0x92997ED8))
    for name in modules.MODULE.values():
        build_module(
            root / f"lib/modules/{RELEASE}/kernel/{name}.ko",
            info=["parmtype=max_ring_page_order:int"],
        )
    return Kernel("debian-6.1", "debian", RELEASE, "Linux version …", root)


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


def test_stock_driver_is_the_kernels_own(kernel: Kernel, cache: Cache) -> None:
    driver = modules.get_driver(
        "back", "stock", kernel, BuildContext(cache), parameters=["max_ring_page_order"]
    )
    assert driver.path == kernel.modules / "kernel/xen-blkback.ko"
    assert (driver.end, driver.which) == ("back", "stock")
    assert re.fullmatch("[0-9a-f]{40}", driver.build_id)
    with pytest.raises(InputError, match="xen_blkback has no parameter rings"):
        modules.get_driver("back", "stock", kernel, BuildContext(cache), parameters=["rings"])


def test_given_module_is_checked(kernel: Kernel, cache: Cache, tmp_path: Path) -> None:
    path = build_module(tmp_path / "mine.ko", name="xen_blkfront")
    assert modules.get_driver("front", path, kernel, BuildContext(cache)).which == str(path)
    with pytest.raises(InputError, match="module xen_blkfront, the back end is xen-blkback"):
        modules.get_driver("back", path, kernel, BuildContext(cache))
    build_module(path, name="xen_blkfront", uses={"printk": 1})
    with pytest.raises(InputError, match="another version of printk"):
        modules.get_driver("front", path, kernel, BuildContext(cache))


def test_patched_drivers_are_what_the_environment_asks_for(
    kernel: Kernel, cache: Cache, tmp_path: Path
) -> None:
    ours = modules.patches_of(kernel, BuildContext(cache))
    assert ours
    for name in ("b/2.patch", "b/1.patch", "a.patch"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(change())
    environ = {MORE_PATCHES: f"{tmp_path}/a.patch:{tmp_path}/b"}
    asked = from_environment(environ)
    more = modules.patches_of(kernel, BuildContext(cache, patched=asked))
    assert more[: len(ours)] == ours
    assert [one.file for one in more[len(ours) :]] == ["a.patch", "1.patch", "2.patch"]
    on_stock = from_environment({**environ, ON: "stock"})
    assert modules.patches_of(kernel, BuildContext(cache, patched=on_stock)) == more[len(ours) :]
    with pytest.raises(InputError, match=f"{ON} is 'sand'"):
        from_environment({**environ, ON: "sand"})
    environ = {MORE_PATCHES: f"{tmp_path}/a.patch:{tmp_path}/c.patch"}
    context = BuildContext(cache, patched=from_environment(environ))
    with pytest.raises(InputError, match=r"there is no driver patch .*/c\.patch"):
        modules.patches_of(kernel, context)
    with pytest.raises(InputError, match=r"there is no driver patch .*/c\.patch"):
        modules.get_driver("back", "patched", kernel, context)
    path = build_module(tmp_path / "mine.ko", name="xen_blkfront")
    asked = from_environment({GIVEN["front"]: str(path)})
    driver = modules.get_driver("front", "patched", kernel, BuildContext(cache, patched=asked))
    assert (driver.which, driver.path) == ("patched", path)


def test_environment_is_read_only_at_the_edges(
    kernel: Kernel, cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(MORE_PATCHES, f"{tmp_path}/a.patch")
    monkeypatch.setenv(GIVEN["front"], f"{tmp_path}/front.ko")
    monkeypatch.setenv(GIVEN["back"], "")
    assert from_environment() == PatchedDrivers(
        (tmp_path / "a.patch",), front=tmp_path / "front.ko", back=None
    )
    context = BuildContext(cache)
    assert context.patched == PatchedDrivers()
    assert modules.patches_of(kernel, context)
    readers = {
        str(path.relative_to(paths.checkout() / "emu"))
        for path in (paths.checkout() / "emu").rglob("*.py")
        if "from_environment(" in path.read_text()
    }
    assert readers == {
        "commands/driver_options.py",
        "commands/options.py",
        "images/patched.py",
        "pytestplugin/fixtures.py",
        "pytestplugin/options.py",
    }


def patch_of(tmp_path: Path, name: str, before: str, after: str) -> Path:
    """A patch that diff(1) makes of two texts of one file."""
    for side, text in (("a", before), ("b", after)):
        path = tmp_path / side / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    done = subprocess.run(
        ["diff", "-u", f"a/{name}", f"b/{name}"], cwd=tmp_path, capture_output=True, text=True
    )
    patch = tmp_path / "0001-change.patch"
    patch.write_text(f"Subject: [PATCH] a change\n\n---\n{done.stdout}")
    return patch


def test_patch_applies_though_lines_have_moved(tmp_path: Path) -> None:
    patch = patch_of(tmp_path, "drivers/x.c", SOURCE, SOURCE.replace("line 20\n", "changed\n"))
    tree = tmp_path / "tree"
    (tree / "drivers").mkdir(parents=True)
    (tree / "drivers/x.c").write_text("moved\n" * 5 + SOURCE)
    apply_patch(patch, tree)
    assert (tree / "drivers/x.c").read_text().count("changed\n") == 1
    assert [path.name for path in tree.rglob("*") if path.is_file()] == ["x.c"]


def test_patch_that_does_not_apply_names_the_hunk_and_shows_the_lines(tmp_path: Path) -> None:
    changed = SOURCE.replace("line 3\n", "changed\n").replace("line 20\n", "changed\n")
    patch = patch_of(tmp_path, "drivers/x.c", SOURCE, changed)
    tree = tmp_path / "tree"
    (tree / "drivers").mkdir(parents=True)
    (tree / "drivers/x.c").write_text(SOURCE.replace("line 20\n", "line twenty\n"))
    with pytest.raises(InputError) as refused:
        apply_patch(patch, tree)
    assert "0001-change.patch does not apply: hunk 2 of drivers/x.c" in refused.value.message
    assert refused.value.lines == (
        "     17  line 17",
        "     18  line 18",
        "     19  line 19",
        "-        line 20",
        "+    20  line twenty",
        "     21  line 21",
        "     22  line 22",
        "     23  line 23",
    )
    assert [path.name for path in tree.rglob("*") if path.is_file()] == ["x.c"]
    (tree / "drivers/x.c").unlink()
    with pytest.raises(InputError, match=r"changes drivers/x\.c, which is not in the source"):
        apply_patch(patch, tree)


def test_patch_that_is_already_applied_is_refused(tmp_path: Path) -> None:
    changed = SOURCE.replace("line 3\n", "changed\n")
    patch = patch_of(tmp_path, "x.c", SOURCE, changed)
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "x.c").write_text(changed)
    with pytest.raises(InputError, match=r"0001-change\.patch is in this source already"):
        apply_patch(patch, tree)


def test_workplace_has_no_space_whatever_the_cache(tmp_path: Path) -> None:
    for root in (tmp_path / "plain", tmp_path / "with a space"):
        with kbuild.workplace(Cache(root), "test") as place:
            assert re.search(r"[\s:]", str(place)) is None
            assert list(place.iterdir()) == []
        assert not place.exists()


def test_compiler_is_the_one_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMU_CC", "gcc-no-such")
    with pytest.raises(InputError, match="EMU_CC names gcc-no-such, which is not there"):
        kbuild.find_toolchain()
    monkeypatch.setenv("EMU_CC", "gcc")
    found = kbuild.find_toolchain("CONFIG_GCC_VERSION=10201\n")
    assert found.cc == "gcc"
    assert "gcc" in found.version
    assert "ld" in found.version


CONFIG_OF_GCC_12 = "CONFIG_GCC_VERSION=120200\n"


@pytest.mark.parametrize(
    "version", ["gcc-14 (Debian 14.2.0-19) 14.2.0", "gcc (Ubuntu 13.3.0-6ubuntu2~24.04) 13.3.0"]
)
def test_another_compiler_than_the_kernels_is_fine(version: str) -> None:
    chain = kbuild.Toolchain("gcc", f"{version}; GNU ld (GNU Binutils for Debian) 2.44")
    said = kbuild.other_compiler(chain, CONFIG_OF_GCC_12)
    assert said is not None
    number = version.split()[-1]
    assert said.startswith(f"gcc {number}, where the kernel's was gcc 12.2.0: fine, ")


def test_the_kernels_own_compiler_needs_no_words() -> None:
    chain = kbuild.Toolchain("gcc-12", "gcc-12 (Debian 12.2.0-14+deb12u1) 12.2.0; GNU ld 2.40")
    assert kbuild.other_compiler(chain, CONFIG_OF_GCC_12) is None
    assert kbuild.other_compiler(chain, f"{CONFIG_OF_GCC_12}CONFIG_GCC_PLUGINS=y\n") is None


def test_a_kernel_with_gcc_plugins_wants_its_own_compiler() -> None:
    chain = kbuild.Toolchain("gcc", "gcc (Debian 14.2.0-19) 14.2.0; GNU ld 2.44")
    with pytest.raises(InputError, match=r"gcc 12\.2\.0 with plugins .* here is gcc 14") as refused:
        kbuild.other_compiler(chain, f"{CONFIG_OF_GCC_12}CONFIG_GCC_PLUGINS=y\n")
    assert refused.value.hint is not None
    assert "apt-get install gcc-12" in refused.value.hint


def test_missing_tools_are_named_with_the_command_that_installs_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(InputError, match="make, ld is missing") as refused:
        kbuild.find_toolchain()
    assert refused.value.hint == "apt-get install make binutils"


class Steps(Progress):
    def __init__(self) -> None:
        self.seen: list[tuple[str, float | None, float | None]] = []

    def tick(self, what: str, done: float | None = None, total: float | None = None) -> None:
        self.seen.append((what, done, total))


def run_make(tree: Path, makefile: str, progress: Progress) -> None:
    (tree / "Makefile").write_text(makefile)
    kbuild.make(
        tree, toolchain=kbuild.Toolchain("gcc", "any"), progress=progress, what="it", steps=2
    )


def test_make_reports_its_steps_and_ignores_the_users_flags(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAKEFLAGS", "-n")
    monkeypatch.setenv("KCFLAGS", "-O0")
    steps = Steps()
    run_make(
        tmp_path,
        "all:\n\t@echo '  CC [M]  $(CURDIR)/x.o'\n\t@echo '$(KCFLAGS)' > flags\n",
        steps,
    )
    assert steps.seen == [("CC [M]  x.o", 1, 2)]
    assert (tmp_path / "flags").read_text() == f"-ffile-prefix-map={tmp_path}=.\n"


def test_failed_build_shows_the_compilers_errors(tmp_path: Path) -> None:
    (tmp_path / "x.c").write_text("int x = nothing;\n")
    with pytest.raises(InputError, match="it cannot be built") as refused:
        run_make(tmp_path, "all:\n\t@$(CC) -c $(CURDIR)/x.c\n", Progress())
    assert refused.value.lines[0].startswith("x.c:1:9: error: ‘nothing’ undeclared") or (
        refused.value.lines[0].startswith("x.c:1:9: error: 'nothing' undeclared")
    )


def test_make_does_not_outlive_an_interruption(tmp_path: Path) -> None:
    class Interrupting(Progress):
        def tick(self, what: str, done: float | None = None, total: float | None = None) -> None:
            raise KeyboardInterrupt

    makefile = "all:\n\t@echo '  CC  x.o'\n\t@sleep 60; touch survived\n"
    with pytest.raises(KeyboardInterrupt):
        run_make(tmp_path, makefile, Interrupting())
    assert not (tmp_path / "survived").exists()
