"""Where the package's data lie: beside it in a checkout, inside it when it is installed."""

from __future__ import annotations

from pathlib import Path

import pytest

from emu import cli, hosttools, paths
from emu.errors import InputError


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package with data inside, as a wheel leaves it."""
    package = tmp_path / "site-packages/emu"
    (package / "guest-images").mkdir(parents=True)
    monkeypatch.setattr(paths, "PACKAGE", package)
    return package


def test_checkout_has_its_data_at_the_top() -> None:
    top = paths.checkout()
    assert paths.guest_images() == top / "guest-images"
    assert paths.qemu_patches() == top / "qemu-patches"
    assert (top / "Makefile").is_file()
    assert not paths.installed()


def test_installed_package_has_its_data_inside(installed: Path) -> None:
    assert paths.installed()
    assert paths.guest_images() == installed / "guest-images"
    assert paths.qemu_patches() == installed / "qemu-patches"
    with pytest.raises(InputError, match=f"emu mutants needs a checkout .* in {installed}"):
        paths.checkout("emu mutants")


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("words", [["mutants", "--list"], ["repeat"], ["images", "lock"]])
def test_command_that_needs_a_checkout_says_so(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words) == 3
    error = capsys.readouterr().err
    assert f"emu {' '.join(words[:2] if words[0] == 'images' else words[:1])} needs a checkout" in (
        error
    )
    assert "in a clone, after `make setup` there" in error


@pytest.mark.usefixtures("installed")
def test_hint_of_an_installed_package_names_no_makefile() -> None:
    list_here = Path(hosttools.__file__).with_name("host-packages.txt")
    assert list_here == hosttools.HOST_PACKAGES
    assert hosttools.installs("qemu-img").endswith("apt-get install qemu-utils")
    assert hosttools.installs("sparse", "git").endswith("apt-get install git sparse")
    assert "doctor" in hosttools.installs("/opt/qemu")
    assert hosttools.builds_qemu("patched-10.2") == "emu qemu build patched-10.2"


def test_hint_in_a_checkout_is_a_target() -> None:
    assert hosttools.installs("qemu-img") == "make setup"
    assert hosttools.builds_qemu() == "make qemu"
