"""Which accelerator: KVM is proved, cached, and its failure reported in one line."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import tiny_guest

from emu.emulator import accel
from emu.errors import InputError, RigError
from emu.images.cache import Cache
from emu.images.context import BuildContext
from emu.machine.qemu import Machine

needs_qemu = pytest.mark.skipif(
    shutil.which("qemu-system-x86_64") is None, reason="qemu-system-x86_64 is not installed"
)


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_guest.build(tmp_path_factory.mktemp("guest, with a space"))


def test_kvm_needs_its_device(tmp_path: Path, guest: Path) -> None:
    cache = Cache(tmp_path / "cache")
    missing = tmp_path / "kvm"
    choice = accel.choose("auto", "qemu-system-x86_64", guest, BuildContext(cache), device=missing)
    assert str(choice) == f"TCG (KVM: no {missing})"
    with pytest.raises(InputError, match=f"KVM can't be used here: no {missing}"):
        accel.choose("kvm", "qemu-system-x86_64", guest, BuildContext(cache), device=missing)
    assert (
        accel.choose("tcg", "qemu-system-x86_64", guest, BuildContext(cache)).reason == "as asked"
    )


@needs_qemu
def test_kvm_is_chosen_only_after_a_proof_that_is_cached(
    tmp_path: Path, guest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = tmp_path / "kvm"
    device.touch()
    cache = Cache(tmp_path / "cache")
    probes: list[str | None] = []

    def prove(answer: str | None) -> accel.AccelChoice:
        def probe(qemu: str, xen: Path) -> str | None:
            probes.append(answer)
            return answer

        monkeypatch.setattr(accel, "probe", probe)
        return accel.choose("auto", "qemu-system-x86_64", guest, BuildContext(cache), device=device)

    assert prove("opens, but Xen does not start under it (KVM internal error)").name == "tcg"
    assert prove(None).name == "tcg"
    assert len(probes) == 1
    other = Cache(tmp_path / "other")
    monkeypatch.setattr(accel, "probe", lambda qemu, xen: None)
    choice = accel.choose("auto", "qemu-system-x86_64", guest, BuildContext(other), device=device)
    assert (choice.name, choice.reason) == ("kvm", "Xen starts under it")


@needs_qemu
def test_hypervisor_without_a_banner_proves_nothing(
    guest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accel, "BANNER_TIMEOUT", 0.5)
    trouble = accel.probe("qemu-system-x86_64", guest, "tcg", tmp_path / "runs")
    assert trouble is not None
    assert trouble.startswith("opens, but Xen does not start under it (xen: waited ")


PRINTED = {
    "KVM internal error. Suberror: 1": (
        "KVM internal error. Suberror: 1",
        "extra data[0]: 0x0000000000000001",
        "…",
        "EFER=0000000000000d01",
    ),
    "failed to set MSR 0x10a to 0x69": (
        "qemu-system-x86_64: error: failed to set MSR 0x10a to 0x69",
    ),
    "Could not access KVM kernel module: No such file or directory": (
        "Could not access KVM kernel module: No such file or directory",
        "qemu-system-x86_64: -accel kvm: failed to initialize kvm: No such file or directory",
    ),
    "xen: waited 8 s for Xen's banner": (),
}
"""QEMU's output, by the line to be reported."""


@pytest.mark.parametrize("line", PRINTED)
def test_most_telling_line_of_qemu_is_reported_whole(
    line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = RigError("xen: waited 8 s for Xen's banner; last lines: …", lines=PRINTED[line])

    def start(*_: object) -> object:
        raise error

    monkeypatch.setattr(Machine, "start", start)
    trouble = accel.probe("qemu-system-x86_64", Path("xen"), root=None)
    assert trouble == f"opens, but Xen does not start under it ({line})"
