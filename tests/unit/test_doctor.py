"""`emu doctor`, on this machine and on ones where something is missing."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from emu import cli, hosttools, paths
from emu.emulator import faults
from emu.images.cache import Cache
from emu.images.context import BuildContext
from emu.lab import doctor, hostkernel

QEMU = "qemu-system-x86_64"


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache root that does not exist."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache root that holds only the faults of this machine's QEMU (takes seconds)."""
    cache = Cache(tmp_path_factory.mktemp("known") / "emu-xen-block")
    faults.find(QEMU, BuildContext(cache))
    return cache.root


@pytest.fixture
def tried(nowhere: Path, known: Path) -> None:
    """A new cache, on a machine whose QEMU was tried before."""
    shutil.copytree(known, nowhere / known.name)


def of(diagnosis: doctor.Diagnosis, subject: str) -> list[doctor.Check]:
    return [finding for finding in diagnosis.findings if finding.subject == subject]


@pytest.mark.usefixtures("nowhere")
def test_machine_that_runs_the_tests_is_able(capsys: pytest.CaptureFixture[str]) -> None:
    began = time.monotonic()
    status = cli.main(["doctor", "--qemu", "system", "--json"])  # the cache has no other yet
    assert time.monotonic() - began < 10
    printed = json.loads(capsys.readouterr().out)
    assert printed["able"]
    assert status == 0
    assert {"QEMU", "accelerator", "memory", "disk", "cache"} <= {
        finding["subject"] for finding in printed["findings"]
    }


def test_doctor_builds_nothing(nowhere: Path) -> None:
    doctor.examine(QEMU)
    assert not nowhere.exists()


@pytest.mark.usefixtures("tried")
def test_report_fits_one_screen(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["doctor"])
    lines = capsys.readouterr().out.splitlines()
    assert 8 < len(lines) <= 24
    assert "Python" in "".join(lines)


@pytest.mark.usefixtures("nowhere")
def test_missing_qemu_is_status_3(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--qemu", "/nowhere/qemu"]) == 3
    printed = capsys.readouterr().out
    assert "MISSING QEMU         /nowhere/qemu is not there" in printed
    assert "apt-get install qemu-system-x86" in printed


@pytest.mark.usefixtures("tried")
def test_one_command_installs_all_that_is_missing(tmp_path: Path) -> None:
    listed = tmp_path / "list"
    listed.write_text(
        "# comment\n"
        "coreutils  run  ls          # there\n"
        "one        run  emu-no-one,ls  # for runs\n"
        "two        lab  /nowhere/two.h  # for the kernel\n"
    )
    diagnosis = doctor.examine(QEMU, listed)
    tools = of(diagnosis, "host tools")
    assert [(tool.state, tool.text) for tool in tools[:2]] == [
        ("missing", "no emu-no-one (for runs)"),
        ("note", "no /nowhere/two.h (for the kernel), for the lab kernel"),
    ]
    assert tools[2].fix is not None
    assert "apt-get install one two" in tools[2].fix
    assert not diagnosis.able


@pytest.mark.usefixtures("tried")
def test_missing_tool_of_the_lab_kernel_stops_no_run(tmp_path: Path) -> None:
    listed = tmp_path / "list"
    listed.write_text("two  lab  emu-no-two  # for the kernel\n")
    assert doctor.examine(QEMU, listed).able


def test_setup_installs_no_certain_gcc() -> None:
    """Debian 13 has another by default, and it is as good."""
    needs = {one.name: one.needed_for for one in hosttools.load_packages()}
    assert {need for name, need in needs.items() if name.startswith("gcc-")} == {"lint"}
    assert needs["gcc"] == "run"


def test_another_compiler_than_the_kernels_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = tmp_path / "gcc-99"
    compiler.write_text("#!/bin/sh\necho 'gcc-99 (Debian 99.1.0-1) 99.1.0'\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("EMU_CC", str(compiler))
    found = doctor._compiler()
    assert found.state == "ok"
    assert "gcc 99.1.0, where the kernel's was gcc 12.2.0: fine, " in found.text


def test_list_of_host_packages_is_sound() -> None:
    packages = hosttools.load_packages()
    names = [package.name for package in packages]
    assert len(names) == len(set(names)) > 20
    assert {package.needed_for for package in packages} == {"run", "lab", "test", "lint", "qemu"}
    assert all(package.purpose for package in packages)


@pytest.mark.parametrize("more", [[], ["qemu"], ["lint"]])
def test_setup_leaves_out_what_is_not_asked_for(tmp_path: Path, more: list[str]) -> None:
    """The shell script takes the first words of each line; here apt has none of the packages."""
    for name, text in (("dpkg-query", "exit 1"), ("apt-get", ":"), ("id", "echo 0")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    done = subprocess.run(
        ["sh", paths.checkout() / "emu/host-setup.sh", hosttools.HOST_PACKAGES, *more],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    packages = hosttools.load_packages()
    left_out = {"qemu", "lint"} - set(more)
    wanted = [one.name for one in packages if one.needed_for not in left_out]
    assert done.stdout.split("(apt):")[1].split() == wanted


@pytest.mark.parametrize(("limit", "named"), [("-f 1000", "file size"), ("-n 100", "open files")])
def test_low_limit_is_named(limit: str, named: str) -> None:
    script = "from emu.lab import hostkernel; print(hostkernel.troubles()['user limits'])"
    done = subprocess.run(
        ["sh", "-c", f'ulimit {limit}; exec "$0" -c "$1"', sys.executable, script],
        capture_output=True,
        text=True,
        check=True,
    )
    assert named in done.stdout


def test_kernel_of_this_machine_is_fit() -> None:
    assert hostkernel.troubles() == {}


def test_unwritable_cache_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file/cache"))
    diagnosis = doctor.examine(QEMU)
    disk = of(diagnosis, "disk")[0]
    assert (disk.state, diagnosis.able) == ("missing", False)
    assert "XDG_CACHE_HOME" in (disk.fix or "")
