"""Where a patch does not fit, what stands there, and how a recipe says what it is."""

from __future__ import annotations

import difflib
from pathlib import Path

import pytest

from emu.errors import InputError
from emu.images import build_errors
from emu.images.build_errors import owners_of
from emu.images.diffs import place_of, read_diffs
from emu.images.driver_recipe import Recipe, Version
from emu.images.driver_source import FRONT, TreeSource
from emu.images.git_state import GitState
from emu.images.kbuild import BuildFailed
from emu.images.kernels import Kernel
from emu.images.patch_files import Patch
from emu.images.patched import PatchedDrivers, from_environment
from emu.images.patching import PatchRefused, apply, fits

LINES = [f"\tline({n}, a, b);\n" for n in range(1, 41)]


def changed(*edits: tuple[int, str], lines: list[str] = LINES) -> list[str]:
    """The lines with some replaced, by number from 1."""
    made = list(lines)
    for number, text in edits:
        made[number - 1] = text
    return made


def patch(before: list[str], after: list[str], name: str = "x.c", file: str = "1.patch") -> Patch:
    text = "".join(difflib.unified_diff(before, after, f"a/{name}", f"b/{name}"))
    return Patch(file, "a change", "0" * 64, read_diffs(text, file))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "x.c").write_text("".join(LINES))
    return tmp_path


def refused(one: Patch, tree: Path) -> PatchRefused:
    before = {path.name: path.read_bytes() for path in tree.iterdir()}
    with pytest.raises(PatchRefused) as error:
        apply(one, tree)
    assert {path.name: path.read_bytes() for path in tree.iterdir()} == before
    return error.value


def test_misfit_is_shown_where_the_context_fits_best(tree: Path) -> None:
    """Twelve lines were put before it meanwhile, which an earlier hunk may have shown already."""
    meanwhile = changed((20, "\tline(20, a, c);\n"), (30, "\tother();\n"))
    (tree / "x.c").write_text("".join(["/* new */\n"] * 12 + meanwhile))
    alone = refused(patch(LINES, changed((21, "twenty-one\n"))), tree)
    assert "hunk 1 of x.c does not fit at line 18; most like it is line 30" in alone.message
    one = patch(LINES, changed((3, "three\n"), (21, "twenty-one\n"), (38, "late\n")))
    error = refused(one, tree)
    assert error.lines == alone.lines
    assert error.message == (
        "1.patch (a change) does not apply: hunk 2 of x.c does not fit at line 30"
    )
    assert [row.expandtabs() for row in error.lines] == [
        f"{mark}{number:>6}         line({text});"
        for mark, number, text in (
            (" ", "30", "18, a, b"),
            (" ", "31", "19, a, b"),
            ("-", "", "20, a, b"),
            ("+", "32", "20, a, c"),
            (" ", "33", "21, a, b"),
            (" ", "34", "22, a, b"),
            (" ", "35", "23, a, b"),
        )
    ]


def test_several_misfits_are_counted(tree: Path) -> None:
    (tree / "x.c").write_text("".join(changed((20, "\tother();\n"), (30, "\tother();\n"))))
    one = patch(LINES, changed((3, "three\n"), (20, "twenty\n"), (30, "thirty\n")))
    assert "hunk 2 of x.c does not fit at line 17 (2 of 3 hunks do" in refused(one, tree).message


def test_white_space_alone_is_said(tree: Path) -> None:
    blanks = [line.replace("\t", "        ") for line in LINES]
    one = patch(blanks, changed((20, "        twenty();\n"), lines=blanks))
    assert "only white space differs" in (refused(one, tree).hint or "")


def test_patch_that_is_there_already(tree: Path) -> None:
    one = patch(LINES, changed((3, "three\n"), (20, "twenty\n")))
    apply(one, tree)
    assert refused(one, tree).message == "1.patch (a change) is in this source already"
    (tree / "x.c").write_text("".join(changed((3, "three\n"))))
    message = refused(one, tree).message
    assert "hunk 1 of x.c (line 1) is in the source already" in message


def test_nothing_like_it(tree: Path) -> None:
    other = [f"something_else_{n}\n" for n in range(90)]
    error = refused(patch(other, changed((80, "new\n"), lines=other)), tree)
    assert "does not fit at line 77: the file has 40 lines" in error.message


def test_hunk_without_context_behind_it(tree: Path) -> None:
    text = "--- a/x.c\n+++ b/x.c\n@@ -1,2 +1,3 @@\n" + "".join(f" {one}" for one in LINES[:2])
    one = Patch("1.patch", "", "", read_diffs(f"{text}+new\n", "1.patch"))
    assert "2 lines of context before its changes and 0 behind" in refused(one, tree).message


def test_file_that_is_made_or_missing(tree: Path) -> None:
    new = Patch("1.patch", "", "", read_diffs("--- /dev/null\n+++ b/y.c\n@@ -0,0 +1 @@\n+y\n", "1"))
    apply(new, tree)
    assert (tree / "y.c").read_text() == "y\n"
    (tree / "y.c").write_text("another\n")
    assert "makes y.c, which is in the source already" in refused(new, tree).message
    missing = patch(LINES, changed((3, "x\n")), name="z.c")
    assert "changes z.c, which is not in the source" in refused(missing, tree).message


def test_fits_stops_at_the_first_that_does_not(tree: Path) -> None:
    first, second = patch(LINES, changed((3, "x\n"))), patch(LINES, changed((4, "y\n")))
    assert fits([first], tree)
    assert not fits([second], tree)


def test_place_is_the_nearest() -> None:
    rows = ["a", "b", "x", "a", "b", "x", "a", "b"]
    assert [place_of(["a", "b"], rows, near) for near in (0, 2, 7)] == [0, 3, 6]
    assert place_of(["b", "a"], rows, 3) is None


def test_owner_of_a_line_is_the_patch_that_wrote_it_last() -> None:
    first, second = patch(LINES, changed((3, "x\n"))), patch(LINES, changed((4, "y\n")))
    contents = [
        LINES,
        changed((3, "x\n"), (4, "x\n")),
        ["new\n", *changed((3, "x\n"), (4, "y\n"))],
    ]
    versions = [
        Version(one, {"x.c": "".join(lines).encode()})
        for one, lines in zip([None, first, second], contents, strict=True)
    ]
    assert owners_of("x.c", versions)[:6] == [second, None, None, first, second, None]


TREE = TreeSource(
    "/linux", "7.3.4", "digest", Path("/linux"), GitState("0123456789abcdef", True), ()
)
OUTPUT = """\
  CC [M]  xen-blkfront.o
FRONT: In function 'blkfront_probe':
FRONT:2100:16: error: implicit declaration of function 'kzalloc_obj'; \
did you mean 'kzalloc'? [-Werror=implicit-function-declaration]
FRONT:2200:9: error: implicit declaration of function 'kzalloc_obj'; \
did you mean 'kzalloc'? [-Werror=implicit-function-declaration]
FRONT:2200:21: error: expected expression before 'struct'
FRONT:2300:14: error: 'struct gendisk' has no member named 'part0_new'
FRONT:2400:19: error: initialization of 'int (*)(struct xenbus_device \
*)' from incompatible pointer type 'void (*)(struct xenbus_device *)' [-Werror=incompatible-pointer]
FRONT:2400:19: note: (near initialization for 'blkfront_driver.remove')
ERROR: modpost: "new_export" [/build/xen-blkfront.ko] undefined!
""".replace("FRONT", f"source/{FRONT}").splitlines()


def explained(recipe: Recipe, release: str) -> InputError:
    failed = BuildFailed("the drivers cannot be built")
    failed.output = tuple(OUTPUT)
    kernel = Kernel("debian-6.1", "debian", release, "", Path("/nowhere"))
    return build_errors.explained(failed, recipe, kernel, [])


def test_interfaces_that_moved_are_said_in_terms_of_the_kernel() -> None:
    error = explained(Recipe(TREE, "stock", (), ()), "6.1.0-56-amd64")
    assert error.lines == (
        f"{FRONT}:2100: this kernel has no kzalloc_obj() (2 places)",
        f"{FRONT}:2300: this kernel has no part0_new in struct gendisk",
        f"{FRONT}:2400: this kernel has another type of function for blkfront_driver.remove",
        "this kernel does not export new_export()",
    )
    assert error.message.endswith("do not build for Linux 6.1.0-56-amd64: 4 errors")
    assert "the tree is Linux 7.3.4, the kernel 6.1.0-56-amd64" in (error.hint or "")
    same = explained(Recipe(TREE, "stock", (), ()), "7.3.4+deb13-amd64")
    assert "implicit declaration of function 'kzalloc_obj'" in same.lines[0]


def test_recipe_in_words_and_as_json() -> None:
    one = patch(LINES, changed((3, "x\n")), name=FRONT)
    source = TREE
    words = "tree /linux (0123456789ab, with changes)"
    assert str(Recipe(source, "stock", (), ())) == words
    assert str(Recipe(source, "series", (one,), (one, one))) == f"{words} + series + 2 patches"
    recipe = Recipe(source, "stock", (one,), (one,))
    assert recipe.patches == (one,)
    assert recipe.of("front") == recipe
    assert recipe.of("back").more == ()
    made = recipe.as_json()
    assert made["patches"] == [{"file": "1.patch", "subject": "a change", "sha256": "0" * 64}]
    assert made["tree"] == {"commit": "0123456789abcdef", "dirty": True, "sha256": "digest"}


def test_environment_carries_all_that_is_asked_for() -> None:
    asked = PatchedDrivers((Path("/a"), Path("/b c")), Path("/f.ko"), None, "stock", Path("/tree"))
    assert from_environment(asked.environ()) == asked
    assert (asked.base, PatchedDrivers(tree=Path("/tree")).base) == ("stock", "stock")
    assert (PatchedDrivers().base, PatchedDrivers((Path("/a"),)).base) == ("series", "series")
    with pytest.raises(InputError, match="drivers on stock without patches"):
        PatchedDrivers(on="stock")
