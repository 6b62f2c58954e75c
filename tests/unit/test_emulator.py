"""Which QEMU runs, what it is tried for, and how a patched one is built: with small stand-ins."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from emu import cli, paths
from emu.emulator import build as qemubuild
from emu.emulator import choice as emulator
from emu.emulator import faults
from emu.emulator.build import PATCHED, PROGRAM, Patched
from emu.emulator.faults import FAULTS, LOST_INTERRUPT, Fault, cpu_model
from emu.errors import EXIT_INPUT, InputError, RigError
from emu.hosttools import HostPackage
from emu.images import kbuild
from emu.images.cache import Cache
from emu.images.context import BuildContext
from emu.images.packages import Lock
from emu.lab import qemus
from emu.machine.spec import TCG_CPU
from emu.progress import Progress
from emu.stack.stack import cpu_for
from emu.stack.wish import Wish
from emu.xen.config import DomuConfig

needs_qemu = pytest.mark.skipif(shutil.which(PROGRAM) is None, reason=f"{PROGRAM} is missing")
OURS = PATCHED["patched"]
OF_7_2 = tuple(
    fault for fault in FAULTS if any(path.name.startswith(fault.patch) for path in OURS.series)
)
"""What Debian 12's QEMU gets wrong."""


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


class Recorder(Progress):
    """Keeps what was reported."""

    def __init__(self) -> None:
        self.ticks: list[tuple[str, float | None, float | None]] = []
        self.notes: list[str] = []

    def tick(self, what: str, done: float | None = None, total: float | None = None) -> None:
        self.ticks.append((what, done, total))

    def note(self, line: str) -> None:
        self.notes.append(line)


# Names and paths.


def test_qemu_may_be_given_by_path(cache: Cache, tmp_path: Path) -> None:
    program = tmp_path / "my qemu"
    program.write_text("#!/bin/sh\n")
    with pytest.raises(InputError, match="is no program"):
        emulator.program(str(program), BuildContext(cache))
    program.chmod(0o755)
    assert emulator.program(str(program), BuildContext(cache)) == str(program)
    with pytest.raises(InputError, match="/nowhere is not there") as missing:
        emulator.program("/nowhere", BuildContext(cache))
    assert missing.value.hint == "make setup, or one of system, patched, patched-10.2"


def test_patched_qemu_is_built_by_program_and_not_by_found(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted: list[Patched] = []

    def build(one: Patched, context: BuildContext) -> Path:
        wanted.append(one)
        return Path("/made/qemu")

    monkeypatch.setattr(qemubuild, "build", build)
    with pytest.raises(InputError, match=r"patched-10\.2 is not built yet") as missing:
        emulator.found("patched-10.2", cache)
    assert missing.value.hint == "make qemu ARGS=patched-10.2"
    assert not wanted
    assert emulator.program("patched-10.2", BuildContext(cache)) == "/made/qemu"
    assert wanted == [PATCHED["patched-10.2"]]


def test_environment_names_the_default_qemu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(emulator.GIVEN, raising=False)
    assert Wish().qemu == "system"
    monkeypatch.setenv(emulator.GIVEN, "patched")
    assert Wish().qemu == "patched"
    assert Wish(qemu="system").qemu == "system"


def test_missing_qemu_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv(emulator.GIVEN, "/nowhere/else")
    assert cli.main(["run"]) == EXIT_INPUT
    assert "/nowhere/else is not there" in capsys.readouterr().err


def test_pytest_option_reaches_workers_and_commands(tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "test_it.py").write_text(
        "from emu.stack.wish import Wish\ndef test_it(): assert Wish().qemu == 'patched'\n"
    )
    command = [sys.executable, "-m", "pytest", "-n1", "-p", "no:cacheprovider", "--qemu=patched"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


# Faults, and what they leave of the CPU.


def test_cpu_model_leaves_out_faulty_features() -> None:
    assert cpu_model(()) == "max"
    assert cpu_model(OF_7_2) == TCG_CPU
    assert cpu_model(FAULTS) == f"{TCG_CPU},-x2apic"
    assert cpu_model(one for one in FAULTS if one.name == "rdtscp") == "max,-rdtscp"
    assert cpu_model(one for one in FAULTS if one.name == "guest-mode") == "max"


def test_pvh_domu_is_refused_on_a_qemu_that_starts_none() -> None:
    pv, pvh = Wish(), Wish(domu=DomuConfig(kind="pvh"))
    assert cpu_for(pv, "a-qemu", FAULTS) == cpu_model(FAULTS)
    assert cpu_for(pvh, "a-qemu", OF_7_2) == TCG_CPU
    with pytest.raises(InputError, match="a-qemu is none for a PVH domU"):
        cpu_for(pvh, "a-qemu", FAULTS)


def test_faults_have_a_guest_and_a_patch() -> None:
    guests = paths.qemu_patches() / "tests"
    of_the_cpu = [
        path.name[:4]
        for path in kbuild.series(paths.qemu_patches())
        if "-target-i386-" in path.name and "-record-" not in path.name
    ]
    assert of_the_cpu == [*(fault.patch for fault in FAULTS), "0016"]
    for name in (*(fault.name for fault in FAULTS), LOST_INTERRUPT):
        text = (guests / f"{name}.c").read_text()
        assert len(text.splitlines()) < 100
        assert re.search(r"(APM[ *\n]+volume 2|SDM volume 3),[ *\n]+section", text)


@needs_qemu
def test_qemu_is_tried_once(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def right(fault: Fault, qemu: str, guests: Path, runs: Path) -> bool:
        assert (guests / fault.name).read_bytes()[4] == 1  # 32 bits: QEMU takes no other kernel
        assert runs.is_relative_to(cache.root)
        asked.append(fault.name)
        return fault.name != "xsetbv"

    monkeypatch.setattr(faults, "right", right)
    assert faults.known(PROGRAM, cache) is None
    found = faults.find(PROGRAM, BuildContext(cache))
    assert [fault.name for fault in found] == ["xsetbv"]
    assert asked == [fault.name for fault in FAULTS]
    assert faults.find(PROGRAM, BuildContext(cache)) == found == faults.known(PROGRAM, cache)
    assert len(asked) == len(FAULTS)


@needs_qemu
def test_other_program_is_tried_again(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faults, "right", lambda *_: True)
    faults.find(PROGRAM, BuildContext(cache))
    other = tmp_path / "qemu"
    shutil.copyfile(str(shutil.which(PROGRAM)), other)
    other.chmod(0o755)
    assert faults.known(str(other), cache) == ()  # the same program, elsewhere
    with other.open("ab") as program:
        program.write(b"\0")
    assert faults.known(str(other), cache) is None


@needs_qemu
def test_guest_without_an_answer_is_an_error_and_not_cached(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    guests = tmp_path / "guests"
    guests.mkdir()
    shutil.copyfile(faults.build(BuildContext(cache)) / "guest-mode", guests / "smap")
    monkeypatch.setattr(faults, "TIMEOUT", 0.5)
    monkeypatch.setattr(faults, "build", lambda *_: guests)
    with pytest.raises(RigError, match="the guest's answer"):
        faults.find(PROGRAM, BuildContext(cache))
    assert faults.known(PROGRAM, cache) is None


@needs_qemu
def test_installed_qemu_is_tried(cache: Cache) -> None:
    found = qemus.examine(BuildContext(cache))[0]
    assert found.name == "system"
    assert found.cpu.startswith("max")
    if "7.2" in found.version:
        assert found.faults == OF_7_2
        assert found.cpu == TCG_CPU


# Building.


def test_series_of_a_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "qemu_patches", lambda: tmp_path)
    (tmp_path / "9.9").mkdir()
    for name in ("0001-a.patch", "0002-b.patch", "0003-c.patch", "9.9/0002-b.patch"):
        (tmp_path / name).touch()
    (tmp_path / "9.9/not-needed").write_text("# why\n0001-a.patch  8.0\n")
    assert Patched("x", "9.9").series == (tmp_path / "9.9/0002-b.patch", tmp_path / "0003-c.patch")
    assert len(Patched("x", "7.2").series) == 3
    (tmp_path / "9.9/not-needed").write_text("0009-z.patch  8.0\n")
    with pytest.raises(InputError, match=r"names 0009-z\.patch, which is no patch of ours"):
        _ = Patched("x", "9.9").series


def test_lock_of_another_version_is_refused(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = dict.fromkeys(Lock.load().packages(*OURS.sets), tmp_path)
    monkeypatch.setattr(qemubuild, "fetch", lambda *_: files)
    with pytest.raises(InputError, match=r"has QEMU 1:7\.2\S+ for other, our patches are for 7\.1"):
        qemubuild.unpack(Patched("other", "7.1"), tmp_path, BuildContext(cache))


NINJA = f"""#!/bin/sh
echo '[1/2] Compiling C object one.c.o'
test -e ../broken && {{ echo "one.c:3:1: error: no such thing"; exit 1; }}
cp /bin/true {PROGRAM}
echo '[2/2] Linking target {PROGRAM}'
"""


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of stand-ins, first on the path; a source that has nothing but `configure`."""
    folder = tmp_path / "tools"
    folder.mkdir()
    (folder / "ninja").write_text(NINJA)
    (folder / "ninja").chmod(0o755)

    def unpack(wanted: Patched, into: Path, context: BuildContext) -> str:
        (into / "configure").write_text("#!/bin/sh\necho configured with $* >&2\n")
        (into / "configure").chmod(0o755)
        if (folder / "broken").exists():
            (into / "broken").touch()
        return "1:7.2-1"

    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setattr(qemubuild, "unpack", unpack)
    monkeypatch.setattr(qemubuild, "load_packages", tuple)
    monkeypatch.setattr(Patched, "series", ())
    return folder


@needs_qemu
@pytest.mark.usefixtures("tools")
def test_build_reports_its_steps_and_is_cached(cache: Cache) -> None:
    progress = Recorder()
    assert qemubuild.built(OURS, cache) is None
    program = qemubuild.build(OURS, BuildContext(cache, progress))
    assert ("Linking target qemu-system-x86_64", 2, 2) in progress.ticks
    (configured,) = [what for what, *_ in progress.ticks if "configured with" in what]
    assert "--target-list=x86_64-softmmu" in configured
    assert "--with-pkgversion=Debian 1:7.2-1, patched by emu-xen-block" in configured
    assert (program.parent.parent / "share/qemu/multiboot_dma.bin").exists()
    again = Recorder()
    assert (
        qemubuild.build(OURS, BuildContext(cache, again)) == program == qemubuild.built(OURS, cache)
    )
    assert not again.ticks


@needs_qemu
@pytest.mark.usefixtures("tools")
def test_broken_entry_is_built_again(cache: Cache) -> None:
    program = qemubuild.build(OURS, BuildContext(cache))
    program.chmod(0o755)
    program.write_bytes(b"not a program")
    assert qemubuild.built(OURS, cache) is None
    progress = Recorder()
    assert qemubuild.build(OURS, BuildContext(cache, progress)).read_bytes()[:4] == b"\x7fELF"
    assert "thrown away, building again" in progress.notes[0]


@needs_qemu
def test_compile_error_is_reported(cache: Cache, tools: Path) -> None:
    (tools / "broken").touch()
    with pytest.raises(InputError, match="QEMU can't be built") as failed:
        qemubuild.build(OURS, BuildContext(cache))
    assert failed.value.lines[0] == "one.c:3:1: error: no such thing"
    assert qemubuild.built(OURS, cache) is None


@needs_qemu
def test_missing_build_tools_are_named(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    packages = (HostPackage("libnothing-dev", "qemu", ("/nowhere/nothing.h",), "x"),)
    monkeypatch.setattr(qemubuild, "load_packages", lambda: packages)
    with pytest.raises(
        InputError, match="to build QEMU this machine lacks libnothing-dev"
    ) as lacks:
        qemubuild.build(OURS, BuildContext(cache))
    assert lacks.value.hint is not None
    assert lacks.value.hint.startswith("make qemu, or ")


def test_other_inputs_make_another_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    before = qemubuild.inputs(OURS, Lock.load())
    assert qemubuild.inputs(OURS, Lock.load()) == before
    monkeypatch.setattr(qemubuild, "OPTIONS", (*qemubuild.OPTIONS, "--enable-debug"))
    assert qemubuild.inputs(OURS, Lock.load()) != before
    monkeypatch.undo()
    monkeypatch.setattr(Patched, "series", ())
    assert qemubuild.inputs(OURS, Lock.load()) != before


def test_commit_message_of_a_patch_does_not_change_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patch = tmp_path / "0001-a.patch"
    monkeypatch.setattr(Patched, "series", (patch,))

    def key(text: str) -> object:
        patch.write_text(text)
        return qemubuild.inputs(OURS, Lock.load())

    before = key("Subject: a\n---\ndiff --git a/x b/x\n+one\n")
    assert key("Subject: better\n---\ndiff --git a/x b/x\n+one\n") == before
    assert key("Subject: a\n---\ndiff --git a/x b/x\n+two\n") != before
