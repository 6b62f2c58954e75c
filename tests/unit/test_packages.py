"""Packages: apt's output (recorded), and lock, fetch and renew against a small real archive."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from debian_archive import Mirror, quietly

from emu.errors import InputError, RigError
from emu.images import apt, mirrors, xens
from emu.images.apt import Archive
from emu.images.cache import Cache
from emu.images.context import BuildContext
from emu.images.fetch import fetch, renew
from emu.images.guests import package_sets
from emu.images.mirrors import Mirrors
from emu.images.packages import Lock, Wanted, digest_of_wanted, load_wanted, lock_digest
from emu.images.xens import Xen
from emu.progress import Progress

# -- recorded from apt 2.6.1 (Debian 12); the addresses are changed

SOLUTION = """\
NOTE: This is only a simulation!
The following NEW packages will be installed:
  libnl-3-200 libtcmu2 zlib1g
Inst zlib1g (1:1.2.13.dfsg-1 Debian:12.15/oldstable [amd64])
Inst libnl-3-200 (3.7.0-0.2+b1 Debian:12.15/oldstable [amd64]) []
Inst linux-base (4.12.1~bpo12+1 Debian Backports:oldstable-backports [all])
Conf zlib1g (1:1.2.13.dfsg-1 Debian:12.15/oldstable [amd64])
"""

SHOW = """\
Package: open-iscsi
Version: 2.1.8-1+deb12u1
Installed-Size: 1423
Maintainer: Debian iSCSI Maintainers <maintainers@lists.example>
Architecture: amd64
Depends: debconf (>= 0.5) | debconf-2.0, libc6 (>= 2.34), libkmod2 (>= 5~), udev
Description: iSCSI initiator tools
Description-md5: 067891012a9e049900724bddbc58bf8f
Pre-Depends: debconf | debconf-2.0
Recommends: busybox | busybox-static, finalrd (>= 3)
Filename: pool/updates/main/o/open-iscsi/open-iscsi_2.1.8-1+deb12u1_amd64.deb
Size: 315040
SHA256: 6563dfb5313f5dd33547e50939f54010e7cc4e993017e1b5223b295be82a9903

Package: debconf
Version: 1.5.82
Architecture: all
Provides: debconf-2.0
Size: 121212
SHA256: 74ab14194a3762b2fc717917dcfda429
"""

TARGETS = """\
http://mirror.example/other/ bookworm main Somebody Else
http://mirror.example/extra/ bookworm-pgdg main
http://mirror.example/debian/ bookworm-updates main Debian
http://mirror.example/debian/ bookworm non-free Debian
http://mirror.example/debian/ bookworm main Debian
http://mirror.example/debian-security/ bookworm-security main Debian
"""

MMDEBSTRAP = """\
deb [signed-by="/usr/share/keyrings/debian-archive-keyring.gpg"] http://mirror.example/debian bookworm main
deb http://mirror.example/debian bookworm-updates main
deb http://security.example/debian-security bookworm-security main
cat: '/tmp/mmdebstrap.HYC9JnWp3c/etc/apt/sources.list.d/*': No such file or directory
E: mmdebstrap failed to run
"""  # noqa: E501


def test_solution_is_parsed() -> None:
    assert apt.parse_solution(SOLUTION) == [
        ("zlib1g", "1:1.2.13.dfsg-1"),
        ("libnl-3-200", "3.7.0-0.2+b1"),
        ("linux-base", "4.12.1~bpo12+1"),
    ]


def test_records_are_parsed() -> None:
    iscsi, debconf = apt.parse_records(SHOW)
    assert (iscsi.name, iscsi.version, iscsi.arch, iscsi.size) == (
        "open-iscsi",
        "2.1.8-1+deb12u1",
        "amd64",
        315040,
    )
    assert iscsi.depends == (
        ("debconf", "debconf-2.0"),
        ("debconf", "debconf-2.0"),
        ("libc6",),
        ("libkmod2",),
        ("udev",),
    )
    assert (debconf.provides, debconf.depends) == (("debconf-2.0",), ())
    (other,) = apt.parse_records(
        f"{SHOW.split(chr(10) * 2)[1]}Depends: x:any, a [amd64] | b(>= 1)\n"
    )
    assert other.depends == (("x",), ("a", "b"))


def test_sources_of_this_machine_are_used() -> None:
    found = ("http://mirror.example/debian", "http://mirror.example/debian-security")
    assert mirrors.parse_indextargets(TARGETS, "bookworm") == found
    assert mirrors.parse_indextargets(TARGETS.replace("bookworm", "stable"), "trixie") == found
    assert mirrors.parse_indextargets("", "bookworm") == ("", "")
    assert mirrors.parse_indextargets(TARGETS, "trixie") == ("", "")


def test_sources_of_mmdebstrap_are_used() -> None:
    assert mirrors.parse_sources(MMDEBSTRAP) == (
        "http://mirror.example/debian",
        "http://security.example/debian-security",
    )
    assert mirrors.parse_sources("") == ("", "")


def test_environment_overrides_the_mirrors() -> None:
    environ = {"EMU_DEBIAN_MIRROR": "http://mirror.example/debian/"}
    assert mirrors.find_mirrors(environ) == Mirrors(
        "http://mirror.example/debian", "http://mirror.example/debian-security"
    )
    environ["EMU_DEBIAN_SECURITY_MIRROR"] = "http://security.example/"
    assert mirrors.find_mirrors(environ).security == "http://security.example"


# -- what is committed


def test_lock_matches_packages_toml() -> None:
    lock = Lock.load()
    assert lock.wants == digest_of_wanted(load_wanted()), "run `emu images lock`"
    for want in load_wanted():
        assert lock.packages(want.name)


@pytest.mark.parametrize("xen", xens.XENS.values(), ids=lambda xen: xen.release)
def test_guests_have_no_service_manager_or_interpreter(xen: Xen) -> None:
    names = {package.name for package in Lock.load().packages(*package_sets(xen))}
    assert not names & {"systemd", "udev", "dbus", "perl-base", "python3", "librbd1", "debconf"}
    assert {"busybox-static", "tcmu-runner", "open-iscsi", f"xen-utils-{xen.release}"} <= names


@pytest.mark.parametrize("xen", xens.XENS.values(), ids=lambda xen: xen.release)
def test_xen_is_taken_whole_from_one_suite(xen: Xen) -> None:
    packages = Lock.load().packages(xen.hypervisor, xen.dom0)
    assert {package.archive for package in packages} == {xen.suite}
    versions = {p.version for p in packages if p.name.startswith(("xen", "libxen"))}
    assert [version.startswith(f"{xen.release}.") for version in versions] == [True]
    assert next(p for p in packages if p.name == "tcmu-runner").version.startswith(xen.tcmu_runner)


def test_locked_package_has_one_version_per_set() -> None:
    lock = Lock.load()
    for want in load_wanted():
        names = [package.name for package in lock.packages(want.name)]
        assert len(names) == len(set(names))


def test_lock_reads_back_as_written(tmp_path: Path) -> None:
    lock = Lock.load()
    lock.save(tmp_path / "lock")
    assert Lock.load(tmp_path / "lock") == lock
    with (tmp_path / "lock").open("a") as out:
        out.write("bookworm half a line\n")
    with pytest.raises(InputError, match=rf"lock, line {len(lock.entries) + 4}: not a locked"):
        Lock.load(tmp_path / "lock")
    with pytest.raises(InputError, match="no set 'nothing'"):
        lock.packages("nothing")


def test_lock_digest_covers_the_packages_of_its_sets() -> None:
    lock = Lock.load()
    assert lock_digest(lock, ["dom0-4.17"]) != lock_digest(lock, ["domu"])
    changed = [
        replace(package, sha256="0" * 64) if package.name == "tcmu-runner" else package
        for package in lock.entries
    ]
    other = replace(lock, entries=tuple(changed))
    assert lock_digest(other, ["dom0-4.17"]) != lock_digest(lock, ["dom0-4.17"])
    assert lock_digest(other, ["domu"]) == lock_digest(lock, ["domu"])


# -- lock, fetch and renew, from a small archive with signature


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "a cache")


TEST = Archive("test", ("test",))
TOOL = Wanted("tools", TEST, ("tool",), {"help*": "not needed"}, ())
DEEP = Wanted("deeps", TEST, ("deep",), {}, ())
SETS = (TOOL, DEEP)


class Seen(Progress):
    def __init__(self) -> None:
        self.notes: list[str] = []
        self.ticks: list[tuple[str, float | None, float | None]] = []

    def note(self, line: str) -> None:
        self.notes.append(line)

    def tick(self, what: str, done: float | None = None, total: float | None = None) -> None:
        self.ticks.append((what, done, total))


def locked(mirror: Mirror, cache: Cache, sets: tuple[Wanted, ...] = SETS) -> Lock:
    return renew(sets, BuildContext(cache), mirrors=mirror.mirrors)


def fetched(mirror: Mirror, context: BuildContext) -> dict[str, Path]:
    found = fetch(["tools"], context, wanted=SETS, mirrors=mirror.mirrors)
    return {package.name: path for package, path in found.items()}


def test_renew_locks_only_what_is_needed(mirror: Mirror, cache: Cache) -> None:
    lock = locked(mirror, cache)
    assert [(p.name, p.version, p.sets) for p in lock.entries] == [
        ("deep", "1", ("deeps", "tools")),
        ("lib", "1", ("tools",)),
        ("provider", "1", ("tools",)),
        ("tool", "1:2-3", ("tools",)),
    ]
    assert locked(mirror, cache).render() == lock.render()
    assert lock.wants == digest_of_wanted(SETS)


def test_drop_without_effect_is_refused(mirror: Mirror, cache: Cache) -> None:
    with pytest.raises(InputError, match="set deeps drops heavy, but nothing it keeps needs that"):
        locked(mirror, cache, (replace(DEEP, drop={"heavy": "no reason"}),))


def test_missing_package_is_named(mirror: Mirror, cache: Cache) -> None:
    with pytest.raises(RigError, match="Unable to locate package nothing"):
        locked(mirror, cache, (replace(DEEP, packages=("nothing",)),))


def test_fetched_package_needs_no_network(mirror: Mirror, cache: Cache) -> None:
    lock = locked(mirror, cache)
    mirror.asked.clear()
    seen = Seen()
    found = fetched(mirror, BuildContext(cache, seen, lock))
    total = sum(package.size for package in lock.packages("tools"))
    assert ("packages (bytes)", total, total) in seen.ticks
    assert sorted(found) == ["deep", "lib", "provider", "tool"]
    assert found["tool"].name == "tool_1%3a2-3_amd64.deb"
    assert quietly("dpkg-deb", "--field", str(found["tool"]), "Version") == "1:2-3\n"
    assert any("/pool/tool_" in path for path in mirror.asked)
    mirror.asked.clear()
    assert fetched(mirror, BuildContext(cache, pinned=lock)) == found
    assert mirror.asked == []
    mirror.stop()
    assert fetched(mirror, BuildContext(cache, pinned=lock)) == found


SOURCES = Archive("sources", ("test",), source=True)
MADE = Wanted("made", SOURCES, ("program",), {}, ())


def test_source_package_yields_upstreams_tarball(mirror: Mirror, cache: Cache) -> None:
    mirror.add_source("program", "1:3.1-2", "all of it")
    mirror.publish()
    lock = locked(mirror, cache, (DEEP, MADE))
    (package,) = lock.packages("made")
    assert (package.name, package.version, package.arch, package.size) == (
        *("program", "1:3.1-2", "source", len("all of it")),
    )
    mirror.asked.clear()
    found = fetch(["made"], BuildContext(cache, pinned=lock), wanted=[MADE], mirrors=mirror.mirrors)
    assert found[package].read_text() == "all of it"
    assert [asked for asked in mirror.asked if "/source/program/" in asked] == [
        "/source/program/program_3.1.orig.tar.gz"
    ]


def test_packaging_of_a_source_package_is_fetched_alone(mirror: Mirror, cache: Cache) -> None:
    packaging = Archive("packaging", ("test",), source=True, packaging=True)
    wanted = (MADE, Wanted("packaged", packaging, ("program",), {}, ()))
    mirror.add_source("program", "1:3.1-2", "all of it")
    mirror.publish()
    lock = locked(mirror, cache, wanted)
    (package,) = lock.packages("packaged")
    assert (package.version, package.arch, package.size) == ("1:3.1-2", "packaging", 9)
    assert lock_digest(lock, ["packaged"]) != lock_digest(lock, ["made"])
    mirror.asked.clear()
    found = fetch(
        ["made", "packaged"],
        BuildContext(cache, pinned=lock),
        wanted=wanted,
        mirrors=mirror.mirrors,
    )
    assert {one.arch: path.read_text() for one, path in found.items()} == {
        "source": "all of it",
        "packaging": "packaging",
    }
    assert sorted(asked for asked in mirror.asked if "/source/program/" in asked) == [
        "/source/program/program_3.1-2.debian.tar.xz",
        "/source/program/program_3.1.orig.tar.gz",
    ]


def test_source_package_with_another_tarball_or_version_is_refused(
    mirror: Mirror, cache: Cache
) -> None:
    mirror.add_source("program", "3.1-2", "all of it")
    mirror.publish()
    lock = locked(mirror, cache, (MADE,))
    mirror.add_source("program", "3.1-2", "something else")
    mirror.publish()
    with pytest.raises(InputError, match="is not the locked one"):
        fetch(["made"], BuildContext(cache, pinned=lock), wanted=[MADE], mirrors=mirror.mirrors)
    mirror.add_source("program", "3.2-1", "all of it")
    mirror.publish()
    with pytest.raises(InputError, match=r"no longer has program 3\.1-2: it has 3\.2-1"):
        fetch(["made"], BuildContext(cache, pinned=lock), wanted=[MADE], mirrors=mirror.mirrors)


def test_altered_package_is_fetched_again(mirror: Mirror, cache: Cache) -> None:
    lock = locked(mirror, cache)
    path = fetched(mirror, BuildContext(cache, pinned=lock))["lib"]
    right = path.read_bytes()
    path.write_bytes(right[:-1] + b"\0" if right[-1:] != b"\0" else right[:-1] + b"\1")
    mirror.asked.clear()
    seen = Seen()
    fetched(mirror, BuildContext(cache, seen, lock))
    assert path.read_bytes() == right
    assert seen.notes == [f"cache: {path.name} does not match the lock: fetching again"]
    assert [asked for asked in mirror.asked if "/pool/" in asked] == ["/pool/lib_1_amd64.deb"]


def test_version_that_is_gone_is_named(mirror: Mirror, cache: Cache) -> None:
    lock = locked(mirror, cache)
    mirror.add("lib", "2", Pre_Depends="deep")
    mirror.publish()
    with pytest.raises(InputError) as caught:
        fetched(mirror, BuildContext(cache, pinned=lock, insist=True))
    assert str(caught.value) == (
        "the mirror no longer has lib 1: it has 2\n  `emu images lock` locks what it has now; "
        "without --locked a run takes what is in its place"
    )
    assert not any("/pool/" in path for path in mirror.asked)
    assert "lib 2 " in locked(mirror, cache).render()
    (mirror.root / "pool/lib_2_amd64.deb").unlink()
    mirror.publish()
    with pytest.raises(InputError, match="no longer has lib 1: it has none of that name"):
        fetched(mirror, BuildContext(cache, pinned=lock))


def test_package_with_another_hash_is_refused(mirror: Mirror, cache: Cache) -> None:
    lock = locked(mirror, cache)
    mirror.add("lib", "1", content="something else", Pre_Depends="deep")
    mirror.publish()
    with pytest.raises(InputError, match="lib 1 from the mirror is not the locked one"):
        fetched(mirror, BuildContext(cache, pinned=lock))
    assert not list(cache.store("debs").iterdir())


def test_package_altered_in_transit_is_refused(mirror: Mirror, cache: Cache) -> None:
    lock = locked(mirror, cache)
    deb = mirror.root / "pool/lib_1_amd64.deb"
    deb.write_bytes(deb.read_bytes()[:-1] + b"!")
    with pytest.raises(RigError, match="apt failed") as caught:
        fetched(mirror, BuildContext(cache, pinned=lock))
    assert any("Hash Sum mismatch" in line for line in caught.value.lines)
    assert not list(cache.store("debs").iterdir())
    assert not list((cache.root / "tmp").iterdir())


def test_archive_without_a_valid_signature_is_refused(mirror: Mirror, cache: Cache) -> None:
    signed = mirror.root / "dists/test/InRelease"
    signed.write_text(signed.read_text().replace("Codename: test", "Codename: Test"))
    with pytest.raises(RigError, match="apt failed") as caught:
        locked(mirror, cache)
    assert any("signature" in line for line in caught.value.lines)
    signed.unlink()
    with pytest.raises(RigError, match="is not signed"):
        locked(mirror, cache)


def test_missing_network_is_reported_in_seconds(mirror: Mirror, cache: Cache) -> None:
    lock = locked(mirror, cache)
    mirror.stop()
    began = time.monotonic()
    with pytest.raises(RigError, match="getting the package lists of test: apt failed") as caught:
        fetched(mirror, BuildContext(Cache(cache.root.parent / "empty"), pinned=lock))
    assert time.monotonic() - began < 10
    assert any("onnect" in line for line in caught.value.lines)
    assert "EMU_DEBIAN_MIRROR" in str(caught.value)


UPDATE = """
import sys
from pathlib import Path
from emu.images import apt, mirrors
from emu.progress import Progress
root, keyring, url = sys.argv[1:]
apt.KEYRING = Path(keyring)
archive = apt.Archive("test", ("test",))
apt.Apt(Path(root), archive, mirrors.Mirrors(url, url)).update(Progress())
"""


def test_killed_fetch_does_not_block_the_next(mirror: Mirror, cache: Cache) -> None:
    root = str(cache.store("apt") / "test")
    mirror.go.clear()
    command = [sys.executable, "-c", UPDATE, root, str(apt.KEYRING), mirror.mirrors.main]
    with subprocess.Popen(command) as process:
        deadline = time.monotonic() + 20
        while not mirror.asked and time.monotonic() < deadline:
            time.sleep(0.01)
        process.kill()
    mirror.go.set()
    assert locked(mirror, cache).packages("tools")


def test_stalled_download_is_given_up(
    mirror: Mirror, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apt, "STALLED", 0.2)
    mirror.go.clear()
    began = time.monotonic()
    with pytest.raises(RigError, match="package lists of test: apt has got nothing for"):
        locked(mirror, cache)
    assert time.monotonic() - began < 8, "that was apt's own time-out"
    mirror.go.set()


def test_missing_keyring_is_refused(
    mirror: Mirror, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apt, "KEYRING", Path("/nonexistent/keyring.gpg"))
    with pytest.raises(InputError, match="apt-get install debian-archive-keyring"):
        locked(mirror, cache)


def test_missing_apt_is_reported(
    mirror: Mirror, cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="apt-config is not installed"):
        locked(mirror, cache)
