"""Locked packages that the archive has replaced: what is taken instead, remembered and said."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from debian_archive import Mirror

from emu.errors import InputError, RigError
from emu.images import replaced
from emu.images.apt import Archive
from emu.images.cache import Cache
from emu.images.context import BuildContext
from emu.images.fetch import fetch, renew
from emu.images.packages import Lock, Package, Wanted, lock_digest
from emu.images.replaced import PackagesReplaced, settled
from emu.progress import Progress

TEST = Archive("test", ("test",))
TOOL = Wanted("tools", TEST, ("tool",), {"help*": "not needed"}, ())
DEEP = Wanted("deeps", TEST, ("deep",), {}, ())
DOC = Wanted("docs", TEST, ("doc",), {}, ())
KERNEL = (
    Wanted("kernel", TEST, ("linux-image-amd64",), {}, ()),
    Wanted("headers", TEST, ("linux-headers-amd64",), {}, ()),
    Wanted("source", TEST, ("linux-source-6.1",), {}, ()),
)
SETS = (TOOL, DEEP, DOC)
BY_THEMSELVES = ("deep", "doc", "heavy", "helper", "lib", "other", "provider", "tool")


class Notes(Progress):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, line: str) -> None:
        self.lines.append(line)


class Run:
    """A run of its own, with a context of its own: it fetches sets, and what it says is kept."""

    def __init__(
        self,
        mirror: Mirror,
        cache: Cache,
        lock: Lock,
        wanted: Sequence[Wanted] = SETS,
        insist: bool = False,
    ) -> None:
        self.mirror, self.wanted, self.notes = mirror, wanted, Notes()
        self.context = BuildContext(cache, self.notes, lock, insist=insist)
        self.tried = 0
        mirror.asked.clear()

    @property
    def said(self) -> list[str]:
        return self.notes.lines

    def fetch(self, *sets: str) -> dict[str, str]:
        """The versions of what was fetched, by name."""

        @settled
        def build() -> Iterable[Package]:
            self.tried += 1
            found = fetch(sets, self.context, wanted=self.wanted, mirrors=self.mirror.mirrors)
            assert all(path.stat().st_size == package.size for package, path in found.items())
            return found

        return {package.name: package.version for package in build()}

    def digest(self, *sets: str) -> str:
        return lock_digest(self.context.lock, sets)


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


def locked(mirror: Mirror, cache: Cache, wanted: Sequence[Wanted] = SETS) -> Lock:
    return renew(wanted, BuildContext(cache), mirrors=mirror.mirrors)


def add_kernel(
    mirror: Mirror, version: str, release: str, *, line: str = "6.1", beside: bool = False
) -> None:
    """A kernel as Debian has it: image, headers, their common part, programs, source."""

    def add(name: str, depends: str = "", beside: bool = beside) -> None:
        more = {"Depends": depends} if depends else {}
        mirror.add(name, version, beside=beside, Source="linux", **more)

    add(f"linux-image-{release}-amd64")
    add(
        f"linux-headers-{release}-amd64",
        f"linux-headers-{release}-common (= {version}), linux-kbuild-{line} (>= {version})",
    )
    add(f"linux-headers-{release}-common")
    add(f"linux-kbuild-{line}")
    add(f"linux-source-{line}")
    add("linux-image-amd64", f"linux-image-{release}-amd64 (= {version})")
    add("linux-headers-amd64", f"linux-headers-{release}-amd64 (= {version})")


def remove_kernel(mirror: Mirror, release: str) -> None:
    for name in ("image", "headers"):
        mirror.remove(f"linux-{name}-{release}-amd64")
    mirror.remove(f"linux-headers-{release}-common")


# -- libraries and programs


def test_newest_version_takes_the_place_of_one_that_is_gone(mirror: Mirror, cache: Cache) -> None:
    lock = locked(mirror, cache)
    mirror.add("lib", "2", Pre_Depends="deep")
    mirror.add("doc", "7")
    mirror.publish()
    run = Run(mirror, cache, lock)
    before = run.digest("tools")
    assert run.fetch("tools") == {"deep": "1", "lib": "2", "provider": "1", "tool": "1:2-3"}
    assert run.said == [
        "the archive has replaced locked packages: taking lib 2 instead of lib 1 "
        "(--locked insists, `emu images lock` renews the lock)"
    ]
    assert run.tried == 2, "what is made of it begins again, with other keys"
    # Keys are made of what is used, and are those of the lock once it is renewed.
    fresh = locked(mirror, cache)
    assert before != run.digest("tools") == lock_digest(fresh, ["tools"])
    # Nobody asked for what else has changed.
    assert run.digest("docs") == lock_digest(lock, ["docs"]) != lock_digest(fresh, ["docs"])


def test_choice_is_remembered_and_said_again(mirror: Mirror, cache: Cache) -> None:
    lock = locked(mirror, cache)
    mirror.add("lib", "2", Pre_Depends="deep")
    mirror.publish()
    first = Run(mirror, cache, lock)
    first.fetch("tools")
    mirror.add("lib", "3", Pre_Depends="deep")
    mirror.publish()
    again = Run(mirror, cache, lock)
    assert again.fetch("tools")["lib"] == "2"
    assert (again.said, again.tried, mirror.asked) == (first.said, 1, [])
    mirror.stop()
    last = Run(mirror, cache, lock)
    assert last.digest("deeps") == lock_digest(lock, ["deeps"])
    assert last.said == [], "a run that has nothing to do with it does not mention it"
    assert last.digest("tools") == first.digest("tools")
    assert last.said == first.said
    # It holds for what is built, too, when the packages themselves have been pruned.
    for path in cache.store("debs").iterdir():
        path.unlink()
    assert Run(mirror, cache, lock).digest("tools") == first.digest("tools")


def test_choice_ends_when_the_lock_changes(mirror: Mirror, cache: Cache) -> None:
    lock = locked(mirror, cache)
    mirror.add("lib", "2", Pre_Depends="deep")
    mirror.publish()
    Run(mirror, cache, lock).fetch("tools")
    mirror.add("lib", "3", Pre_Depends="deep")
    mirror.publish()
    run = Run(mirror, cache, locked(mirror, cache))
    assert run.fetch("tools")["lib"] == "3"
    assert run.said == []
    assert Run(mirror, cache, lock).fetch("tools")["lib"] == "2", "another checkout's"


def test_choice_that_is_gone_in_turn_is_made_again(mirror: Mirror, cache: Cache) -> None:
    lock = locked(mirror, cache)
    for version in ("2", "3"):
        mirror.add("lib", version, Pre_Depends="deep")
        mirror.publish()
        for path in cache.store("debs").iterdir():
            path.unlink()
        run = Run(mirror, cache, lock)
        assert run.fetch("tools")["lib"] == version
        assert f"taking lib {version} instead of lib 1" in run.said[-1]


def test_new_dependency_comes_along(mirror: Mirror, cache: Cache) -> None:
    lock = locked(mirror, cache)
    mirror.add("lib", "2", Pre_Depends="deep", Depends="heavy, helper")
    mirror.publish()
    run = Run(mirror, cache, lock)
    assert run.fetch("tools") == {
        **{"deep": "1", "heavy": "1", "lib": "2", "provider": "1", "tool": "1:2-3"}
    }, "but not what the set drops"
    others = {p.name: p.instead_of for p in run.context.lock.packages("tools") if p.instead_of}
    assert others == {"lib": "lib 1", "heavy": "nothing"}


def test_packages_of_one_source_move_together(mirror: Mirror, cache: Cache) -> None:
    mirror.add("deep", "1", Source="both")
    mirror.add("lib", "1", Source="both", Pre_Depends="deep")
    mirror.publish()
    lock = locked(mirror, cache)
    Run(mirror, cache, lock).fetch("deeps")
    mirror.add("deep", "2", Source="both (2)")
    mirror.add("lib", "2", Source="both (2)", Pre_Depends="deep")
    mirror.publish()
    run = Run(mirror, cache, lock)
    assert run.fetch("tools")["deep"] == "2", "though the other one is in the cache"
    assert run.fetch("deeps") == {"deep": "2"}
    assert len(run.said) == 1


def test_locked_package_that_does_not_work_with_it_moves_too(mirror: Mirror, cache: Cache) -> None:
    lock = locked(mirror, cache)
    mirror.add("deep", "2", beside=True)
    mirror.add("lib", "2", Pre_Depends="deep (>= 2)")
    mirror.publish()
    assert Run(mirror, cache, lock).fetch("tools")["deep"] == "2"


def test_package_in_the_cache_is_used_whatever_the_archive_has(
    mirror: Mirror, cache: Cache
) -> None:
    lock = locked(mirror, cache)
    Run(mirror, cache, lock).fetch("tools")
    mirror.add("lib", "2", Pre_Depends="deep")
    mirror.publish()
    run = Run(mirror, cache, lock)
    assert run.fetch("tools")["lib"] == "1"
    assert (run.said, mirror.asked) == ([], [])
    mirror.add("tool", "1:3-1", Depends="lib (>= 1), virtual")
    mirror.publish()
    (tool,) = cache.store("debs").glob("tool_*")
    tool.unlink()
    run = Run(mirror, cache, lock)
    assert run.fetch("tools") == {"deep": "1", "lib": "1", "provider": "1", "tool": "1:3-1"}


def test_library_of_another_name_takes_its_users_along(mirror: Mirror, cache: Cache) -> None:
    lock = locked(mirror, cache)
    Run(mirror, cache, lock).fetch("tools")
    mirror.remove("lib")
    mirror.add("newlib")
    mirror.add("tool", "1:3-1", Depends="newlib, virtual")
    mirror.publish()
    (lib,) = cache.store("debs").glob("lib_*")
    lib.unlink()
    assert Run(mirror, cache, lock).fetch("tools") == {
        **{"deep": "1", "newlib": "1", "provider": "1", "tool": "1:3-1"}
    }, "though the tool that needs the old one is in the cache"


def test_kernel_stays_where_a_library_has_to_move(mirror: Mirror, cache: Cache) -> None:
    needs = "deep, lib"
    mirror.add("linux-headers-6.1.0-56-amd64", "6.1.192-2", Source="linux", Depends=needs)
    mirror.add("linux-headers-amd64", "6.1.192-2", Depends="linux-headers-6.1.0-56-amd64")
    mirror.publish()
    lock = locked(mirror, cache, KERNEL[1:2])
    mirror.add("deep", "2", beside=True)
    mirror.add("lib", "2", Depends="deep (>= 2)")
    mirror.add("linux-headers-7.1.0-1-amd64", "7.1.1-1", Source="linux", Depends=needs)
    mirror.add("linux-headers-amd64", "7.1.1-1", Depends="linux-headers-7.1.0-1-amd64", beside=True)
    mirror.publish()
    assert Run(mirror, cache, lock, KERNEL[1:2]).fetch("headers") == {
        **{"deep": "2", "lib": "2"},
        **{f"linux-headers-{one}amd64": "6.1.192-2" for one in ("", "6.1.0-56-")},
    }


def test_package_that_nothing_replaces_is_an_error(mirror: Mirror, cache: Cache) -> None:
    lock = locked(mirror, cache)
    mirror.remove("lib")
    mirror.publish()
    with pytest.raises(InputError) as caught:
        Run(mirror, cache, lock).fetch("tools")
    first, *more, hint = str(caught.value).splitlines()
    assert first == "the mirror no longer has lib 1: it has none of that name"
    assert any("E: " in line for line in more), "what apt says"
    assert hint == "  `emu images lock` locks what it has now"
    mirror.remove("doc")
    mirror.publish()
    with pytest.raises(InputError, match="no longer has doc 1: it has none of that name"):
        Run(mirror, cache, lock).fetch("docs")


def test_other_content_of_the_same_version_stays_an_error(mirror: Mirror, cache: Cache) -> None:
    lock = locked(mirror, cache)
    mirror.add("lib", "1", content="something else", Pre_Depends="deep")
    mirror.add("tool", "1:9", Depends="lib, virtual")
    mirror.publish()
    with pytest.raises(InputError, match="lib 1 from the mirror is not the locked one"):
        Run(mirror, cache, lock).fetch("tools")
    assert replaced.remembered(cache) == {}


# -- insisting


def test_locked_insists(mirror: Mirror, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = locked(mirror, cache)
    mirror.add("lib", "2", Pre_Depends="deep")
    mirror.publish()
    for _ in ("before the choice", "after it"):
        with pytest.raises(InputError) as caught:
            Run(mirror, cache, lock, insist=True).fetch("tools")
        assert str(caught.value) == (
            "the mirror no longer has lib 1: it has 2\n  `emu images lock` locks what it has now; "
            "without --locked a run takes what is in its place"
        )
        assert not any("/pool/" in path for path in mirror.asked)
        Run(mirror, cache, lock).fetch("tools")
    monkeypatch.setenv(replaced.INSIST, "1")
    assert BuildContext(cache, pinned=lock).lock == BuildContext(cache, pinned=lock).lock
    assert lock_digest(BuildContext(cache, pinned=lock).lock, ["tools"]) == lock_digest(
        lock, ["tools"]
    )


def test_locked_package_that_could_be_had_ends_the_choice(mirror: Mirror, cache: Cache) -> None:
    lock = locked(mirror, cache)
    deb = mirror.root / "pool/lib_1_amd64.deb"
    content = deb.read_bytes()
    mirror.add("lib", "2", Pre_Depends="deep")
    mirror.publish()
    assert Run(mirror, cache, lock).fetch("tools")["lib"] == "2"
    deb.write_bytes(content)
    mirror.publish()
    assert Run(mirror, cache, lock, insist=True).fetch("tools")["lib"] == "1"
    assert Run(mirror, cache, lock).fetch("tools")["lib"] == "1"


# -- no network


def test_without_network_and_package_both_are_named(mirror: Mirror, cache: Cache) -> None:
    lock = locked(mirror, cache)
    mirror.stop()
    with pytest.raises(RigError) as caught:
        Run(mirror, cache, lock).fetch("tools")
    message, *_, hint = str(caught.value).splitlines()
    assert message == (
        "deep 1 and 3 more are not in the cache, and can't be fetched: getting the package lists "
        "of test: apt failed"
    )
    assert "EMU_DEBIAN_MIRROR" in hint


# -- kernels


def test_all_of_a_kernel_moves_with_its_image(mirror: Mirror, cache: Cache) -> None:
    add_kernel(mirror, "6.1.192-2", "6.1.0-56")
    mirror.publish()
    lock = locked(mirror, cache, KERNEL)
    Run(mirror, cache, lock, KERNEL).fetch("headers")
    # As in a suite of security updates: the old image is still there, its headers are not.
    add_kernel(mirror, "6.1.195-1", "6.1.0-57", beside=True)
    for name in ("linux-source-6.1", "linux-kbuild-6.1"):
        mirror.add(name, "6.1.195-1", Source="linux")
    mirror.publish()
    run = Run(mirror, cache, lock, KERNEL)
    assert run.fetch("source") == {"linux-source-6.1": "6.1.195-1"}
    assert run.fetch("kernel", "headers") == {
        "linux-headers-6.1.0-57-amd64": "6.1.195-1",
        "linux-headers-6.1.0-57-common": "6.1.195-1",
        "linux-headers-amd64": "6.1.195-1",
        "linux-image-6.1.0-57-amd64": "6.1.195-1",
        "linux-image-amd64": "6.1.195-1",
        "linux-kbuild-6.1": "6.1.195-1",
    }
    again = Run(mirror, cache, lock, KERNEL)
    again.fetch("kernel", "headers")
    again.fetch("source")
    assert again.said == [
        "the archive has replaced locked packages: taking linux-image-6.1.0-57-amd64 6.1.195-1 "
        "instead of linux-image-6.1.0-56-amd64 6.1.192-2 (and 5 more) "
        "(--locked insists, `emu images lock` renews the lock)"
    ]


def test_kernel_stays_within_its_series(mirror: Mirror, cache: Cache) -> None:
    add_kernel(mirror, "6.1.192-2", "6.1.0-56")
    mirror.publish()
    lock = locked(mirror, cache, KERNEL)
    remove_kernel(mirror, "6.1.0-56")
    add_kernel(mirror, "6.1.195-1", "6.1.0-57")
    add_kernel(mirror, "6.2.1-1", "6.2.0-1", line="6.2", beside=True)
    for name in ("image", "headers"):  # now those of another series
        mirror.remove(f"linux-{name}-amd64")
        mirror.add(f"linux-{name}-amd64", "6.2.1-1", Depends=f"linux-{name}-6.2.0-1-amd64")
    mirror.publish()
    run = Run(mirror, cache, lock, KERNEL)
    assert run.fetch("kernel", "headers", "source") == {
        "linux-headers-6.1.0-57-amd64": "6.1.195-1",
        "linux-headers-6.1.0-57-common": "6.1.195-1",
        "linux-image-6.1.0-57-amd64": "6.1.195-1",
        "linux-kbuild-6.1": "6.1.195-1",
        "linux-source-6.1": "6.1.195-1",
    }
    # Whose driver is not built needs no source, which bears the series in its name.
    image = replace(lock, entries=lock.packages("kernel"))
    assert Run(mirror, Cache(cache.root.parent / "other"), image, KERNEL[:1]).fetch("kernel") == {
        "linux-image-6.1.0-57-amd64": "6.1.195-1"
    }


def test_kernel_is_the_one_that_a_new_lock_would_have(mirror: Mirror, cache: Cache) -> None:
    add_kernel(mirror, "6.1.192-2", "6.1.0-56")
    mirror.publish()
    lock = locked(mirror, cache, KERNEL)
    remove_kernel(mirror, "6.1.0-56")
    add_kernel(mirror, "6.1.195-1", "6.1.0-57")
    add_kernel(mirror, "6.1.199-1", "6.1.0-58", beside=True)
    for name in ("image", "headers"):  # as where it comes from another suite
        mirror.remove(f"linux-{name}-amd64")
        mirror.add(f"linux-{name}-amd64", "6.1.195-1", Depends=f"linux-{name}-6.1.0-57-amd64")
    for name in ("kbuild", "source"):
        mirror.remove(f"linux-{name}-6.1")
        mirror.add(f"linux-{name}-6.1", "6.1.195-1")
    mirror.publish()
    found = Run(mirror, cache, lock, KERNEL[:2]).fetch("kernel", "headers")
    assert set(found.values()) == {"6.1.195-1"}
    only = replace(lock, entries=lock.packages("kernel"))
    other = Cache(cache.root.parent / "other")
    assert set(Run(mirror, other, only, KERNEL[:1]).fetch("kernel").values()) == {"6.1.195-1"}


@pytest.mark.parametrize("there", ["nothing", "an image"])
def test_series_that_is_gone_is_an_error(mirror: Mirror, cache: Cache, there: str) -> None:
    add_kernel(mirror, "6.1.192-2", "6.1.0-56")
    mirror.publish()
    lock = locked(mirror, cache, KERNEL)
    remove_kernel(mirror, "6.1.0-56")
    for name in ("linux-kbuild-6.1", "linux-source-6.1"):
        mirror.remove(name)
    add_kernel(mirror, "6.2.1-1", "6.2.0-1", line="6.2")
    if there == "an image":
        mirror.add("linux-image-6.1.0-57-amd64", "6.1.195-1")
    mirror.publish()
    with pytest.raises(InputError) as caught:
        Run(mirror, cache, lock, KERNEL).fetch("kernel")
    assert str(caught.value) == (
        "the mirror no longer has linux-image-6.1.0-56-amd64 6.1.192-2: it has none of that name, "
        "and no whole Linux 6.1.x with headers and source\n"
        "  name another kernel; or change packages.toml, and `emu images lock`"
    )


def test_kernel_named_by_its_version_is_not_replaced(mirror: Mirror, cache: Cache) -> None:
    add_kernel(mirror, "6.1.192-2", "6.1.0-56")
    mirror.add("linux-image-6.1.0-56-amd64", "6.1.192-2", Depends="deep")
    mirror.publish()
    lock = locked(mirror, cache, KERNEL)
    here = [p for p in lock.packages("kernel") if p.name != "linux-image-amd64"]
    lock = replace(lock, entries=tuple(replace(p, sets=("image-6.1.0-56",)) for p in here))
    mirror.add("deep", "2")
    mirror.publish()
    run = Run(mirror, cache, lock, [DEEP])
    assert run.fetch("image-6.1.0-56") == {"deep": "2", "linux-image-6.1.0-56-amd64": "6.1.192-2"}
    remove_kernel(mirror, "6.1.0-56")
    add_kernel(mirror, "6.1.195-1", "6.1.0-57")
    mirror.publish()
    (image,) = cache.store("debs").glob("linux-image*")
    image.unlink()
    with pytest.raises(
        InputError, match=r"no longer has linux-image-6\.1\.0-56-amd64 6\.1\.192-2: it"
    ):
        Run(mirror, cache, lock, [DEEP]).fetch("image-6.1.0-56")


# -- source packages


def test_source_and_packaging_move_together_within_a_release(mirror: Mirror, cache: Cache) -> None:
    source = Archive("source", ("test",), source=True)
    wanted = (
        Wanted("made", source, ("program",), {}, ()),
        Wanted("packaged", replace(source, name="packaging", packaging=True), ("program",), {}, ()),
    )
    mirror.add_source("program", "1:3.1-2", "all of it")
    mirror.publish()
    lock = locked(mirror, cache, wanted)
    Run(mirror, cache, lock, wanted).fetch("made")
    mirror.add_source("program", "1:3.1-3", "all of it")
    mirror.publish()
    run = Run(mirror, cache, lock, wanted)
    assert run.fetch("packaged") == {"program": "1:3.1-3"}
    assert run.fetch("made") == {"program": "1:3.1-3"}
    mirror.add_source("program", "1:3.2-1", "more")
    mirror.publish()
    other = Cache(cache.root.parent / "other")
    with pytest.raises(
        InputError, match=r"no longer has program 1:3\.1-2: it has 1:3\.2-1, and no"
    ):
        Run(mirror, other, lock, wanted).fetch("made")


# -- what is remembered


def test_builds_within_each_other_begin_again_together() -> None:
    began: list[str] = []

    @settled
    def inner() -> str:
        began.append("inner")
        if len(began) < 6:
            raise PackagesReplaced("something")
        return "made"

    @settled
    def outer() -> str:
        began.append("outer")
        return inner()

    assert outer() == "made"
    assert began == ["outer", "inner"] * 3
    began.clear()
    assert inner() == "made"
    assert began == ["inner"] * 6


def test_builds_do_not_begin_again_for_ever() -> None:
    @settled
    def build() -> None:
        raise PackagesReplaced("something")

    with pytest.raises(PackagesReplaced):
        build()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"x": [[1]]}', '{"x": 3}'])
def test_unreadable_memory_is_none(cache: Cache, text: str) -> None:
    (cache.store("replaced") / "packages.json").write_text(text)
    assert replaced.remembered(cache) == {}


def test_line_names_a_few(cache: Cache) -> None:
    def package(name: str, version: str, before: str = "") -> Package:
        return Package("test", name, version, "amd64", "0" * 64, 1, (), before)

    lines = replaced.described(
        [package(f"lib{n}", f"{n}.2", f"lib{n} {n}.1") for n in range(5)]
        + [package("same", "1"), package("lib0-more", "0.2", "lib0-more 0.1")]
    )
    assert lines[0] == "lib0 0.2 instead of lib0 0.1 (and 1 more)"
    assert lines[4] == "lib4 4.2 instead of lib4 4.1"
    assert "; lib2 2.2 instead of lib2 2.1; and 2 more (" in replaced.note(lines)
