"""`emu run`: its output, its JSON, its exit status."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest
from emu_command import run_emu

from emu.errors import EXIT_HELD, EXIT_INPUT, EXIT_NOT_HELD, EXIT_USAGE


def emu_run(*options: str, timeout: float = 900) -> subprocess.CompletedProcess[str]:
    return run_emu("run", *options, timeout=timeout)


def emu_json(*options: str, status: int = EXIT_HELD, timeout: float = 900) -> dict[str, Any]:
    done = emu_run("--json", *options, timeout=timeout)
    assert done.returncode == status, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def assert_whole(report: dict[str, Any], pages: int) -> None:
    """What the report of every run that held contains."""
    ring, grants, data = report["ring"], report["grants"], report["data"]
    assert report["held"], report["checks"]
    assert ring["pages"] == pages
    assert ring["requests"] == 32 * pages
    assert len(set(ring["refs"])) == pages
    assert grants["mapped_attached"] >= grants["mapped_before"] + pages
    assert grants["mapped_after"] == grants["mapped_before"]
    assert data["equal"]
    assert data["bytes"] > 0
    for end in ("front", "back"):
        assert len(report["drivers"][end]["build_id"]) == 40
    assert report["timing"]["start_s"] > 0
    assert {"prepare_s", "drivers_s", "attach_s", "data_s", "detach_s"} <= set(report["timing"])


def test_default_report_as_text() -> None:
    done = emu_run("--data", "8")
    assert done.returncode == EXIT_HELD, done.stderr
    first_words = [line.split()[0] for line in done.stdout.splitlines()]
    assert first_words[:8] == ["host", "xen", "lun", "ring", "queue", "grants", "data", "drivers"]
    assert set(first_words[8:]) <= {"package"}, "those that the archive has replaced"
    assert "ring    16 pages (order 4), 512 requests · offered: order 4" in done.stdout
    assert "queue 0 16 pages, 512 requests · blkfront 0 outstanding, " in done.stdout
    assert "persistent grants · blkback 0 outstanding, " in done.stdout
    assert "SHA-256 equal" in done.stdout
    assert "loading the drivers" in done.stderr


def test_default_report_as_json() -> None:
    report = emu_json("--data", "8")
    assert_whole(report, pages=16)
    assert report["accel"] in ("tcg", "kvm")
    assert report["clock"] == "wall"
    assert report["xen"].startswith("4.17.")
    assert report["dom0_kernel"].startswith("6.1.")
    assert report["domu"]["kind"] == "pv"
    assert report["origin"] == "checkpoint"
    versions = {package["name"]: package["version"] for package in report["packages"]}
    assert versions["xen-hypervisor-4.17-amd64"].startswith(report["xen"])
    assert f"linux-image-{report['dom0_kernel']}" in versions
    assert {"tcmu-runner", "busybox-static", "linux-source-6.1"} <= versions.keys()
    assert report["ring"]["source"] == "drivers"
    for end in ("front", "back"):
        (queue,) = report["ring"]["shown"][end]
        assert (queue["queue"], queue["pages"], queue["size"]) == (0, 16, 512)
        assert queue["req_prod"] > 0
    # Ours takes the number, stock ones know the order alone.
    assert report["drivers"]["front"]["parameters"]["max_ring_pages"] == "16"


@pytest.mark.parametrize(
    "pages", [pytest.param(1, marks=pytest.mark.long), 2, pytest.param(8, marks=pytest.mark.long)]
)
def test_other_rings(pages: int) -> None:
    words = ("--disk", "hda,untrusted", "--data", "1")
    assert_whole(emu_json("--ring-pages", str(pages), *words), pages)


def test_stock_drivers() -> None:
    report = emu_json("--front", "stock", "--back", "stock", "--data", "1")
    assert_whole(report, pages=16)
    assert report["ring"]["source"] == "xenstore"
    assert report["ring"]["shown"] == {"front": None, "back": None}
    patched = emu_json("--data", "1")
    for end in ("front", "back"):
        assert report["drivers"][end]["build_id"] != patched["drivers"][end]["build_id"]


def test_stock_front_end_as_text() -> None:
    done = emu_run("--front", "stock", "--data", "1")
    assert done.returncode == EXIT_HELD, done.stderr
    assert "queue 0 16 pages, 512 requests · blkback 0 outstanding, " in done.stdout
    assert "persistent grants · no view of blkfront in debugfs\n" in done.stdout
    done = emu_run("--front", "stock", "--back", "stock", "--ring-pages", "2", "--data", "1")
    no_view = (
        "no view of blkfront and blkback in debugfs: the figures are from the keys in xenstore"
    )
    assert f"queue 0 2 pages, 64 requests · {no_view}\n" in done.stdout


def test_pvh() -> None:
    report = emu_json("--domu", "pvh", "--data", "1")
    assert_whole(report, pages=16)
    assert report["domu"]["kind"] == "pvh"


def test_instruction_time() -> None:
    report = emu_json("--clock", "icount", "--data", "1")
    assert_whole(report, pages=16)
    assert (report["clock"], report["accel"]) == ("icount", "tcg")


@pytest.mark.long
def test_cold() -> None:
    report = emu_json("--cold", "--data", "1")
    assert_whole(report, pages=16)
    assert report["origin"] == "cold"


@pytest.mark.timeout(2700)  # it may have to build the lab kernel
def test_lab_kernel_holds_64_pages() -> None:
    report = emu_json("--kernel", "lab", "--ring-pages", "64", "--data", "8", timeout=2600)
    assert_whole(report, pages=64)
    assert report["dom0_kernel"] == "6.1.192-lab"
    assert report["ring"]["offered_order"] == 6


def test_more_pages_than_the_kernel_has_do_not_hold() -> None:
    done = emu_run("--ring-pages", "32", "--domu-memory", "256", "--data", "1")
    assert done.returncode == EXIT_NOT_HELD
    assert "did not hold: the ring has 32 pages (16 pages; the back end offers order 4" in (
        done.stderr
    )


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (["--ring-pages", "3"], EXIT_INPUT, "a ring has 1, 2, 4, … pages, not 3"),
        (["--ring-pages", "12"], EXIT_INPUT, "--ring-pages 8 or 16"),
        (["--ring-pages", "0"], EXIT_INPUT, "--ring-pages 1\n"),
        (["--domu-memory", "16"], EXIT_INPUT, "16 MiB can't boot Linux"),
        (["--domu-memory", "100000000"], EXIT_INPUT, "takes 100001280 MiB with dom0 and Xen"),
        (["--kernel", "plan9"], EXIT_INPUT, "there is no kernel 'plan9-6.1'"),
        (["--front", "/nonexistent.ko"], EXIT_INPUT, "/nonexistent.ko"),
        (["--qemu", "qemu-of-nobody"], EXIT_INPUT, "qemu-of-nobody is not installed"),
        (["--clock", "icount", "--accel", "kvm"], EXIT_INPUT, "instruction time needs TCG"),
        (["--data", "many"], EXIT_USAGE, "invalid int value: 'many'"),
        (["--data", "100000"], EXIT_INPUT, "does not fit"),
        (["--disk", "hde"], EXIT_INPUT, "'hde' is no disk name"),
        (["--disk", "xvda,r"], EXIT_INPUT, "the domU writes to xvda"),
    ],
)
def test_bad_options_are_refused_at_once(options: list[str], status: int, message: str) -> None:
    done = emu_run(*options, timeout=60)
    assert done.returncode == status
    assert message in done.stderr
    assert "Traceback" not in done.stderr
