"""The package as others have it: a wheel in an environment of its own, used from elsewhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from emu import paths
from emu.images.cache import Cache
from emu.images.context import BuildContext
from emu.lab import store
from emu.stack.wish import Wish

KEYS = """
from pathlib import Path
from emu.images.cache import Cache
from emu.images.context import BuildContext
from emu.lab import store
from emu.stack.wish import Wish
built = store.build(Wish(), BuildContext(Cache()))
print(built.kernel.root, built.guests.root, *(one.path for one in built.drivers.values()))
"""


@dataclass(frozen=True)
class Installed:
    """An environment with the package, and an empty directory to use it from."""

    python: Path
    directory: Path

    @property
    def package(self) -> Path:
        (found,) = self.python.parents[1].glob("lib/python3*/site-packages/emu")
        return found

    def run(self, *words: str | Path, cwd: Path | None = None, status: int = 0) -> str:
        """What a command of the environment prints; its output is shown if it fails."""
        bin_ = self.python.parent
        done = subprocess.run(
            [bin_ / words[0], *words[1:]],
            cwd=cwd or self.directory,
            env={name: text for name, text in os.environ.items() if name != "PYTHONPATH"},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + (done.stderr if status else "")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installed]:
    """Sdist, wheel, install: what a release goes through."""
    top = tmp_path_factory.mktemp("installed")
    # Not what this test runs in: a virtual environment of the same Python, without its packages.
    subprocess.run([sys.executable, "-m", "venv", top / "venv"], check=True)
    (top / "empty").mkdir()
    made = Installed(top / "venv/bin/python", top / "empty")
    made.run("pip", "install", "--quiet", "hatchling")
    build = ("python", "-m", "hatchling", "build", "--target", "sdist", "--directory", top)
    made.run(*build, cwd=paths.checkout())
    (archive,) = top.glob("*.tar.gz")
    made.run("pip", "install", "--quiet", "--no-build-isolation", archive)
    before = files(made.package)
    yield made
    assert files(made.package) == before, "a command wrote into the installed package"


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_package_has_all_that_guests_are_made_from(installed: Installed) -> None:
    for folder in (paths.guest_images(), paths.qemu_patches()):
        assert files(installed.package / folder.name) == files(folder)
    for name in ("host-packages.txt", "host-setup.sh", "py.typed"):
        assert (installed.package / name).read_bytes() == (paths.PACKAGE / name).read_bytes()


def test_installed_package_takes_what_a_checkout_built(installed: Installed) -> None:
    built = store.build(Wish(), BuildContext(Cache()))
    here = [built.kernel.root, built.guests.root, *(one.path for one in built.drivers.values())]
    assert installed.run("python", "-c", KEYS).split() == list(map(str, here))


def test_installed_command_runs_the_stack(installed: Installed) -> None:
    report = json.loads(installed.run("emu", "run", "--data", "1", "--json"))
    assert report["held"]
    assert list(installed.directory.iterdir()) == []


def test_installed_plugin_runs_the_example_of_the_readme(
    installed: Installed, tmp_path: Path
) -> None:
    readme = (paths.checkout() / "README.md").read_text()
    (tmp_path / "test_ring.py").write_text(readme.partition("```python\n")[2].partition("```")[0])
    (tmp_path / "conftest.py").write_text("from emu.pytestplugin.short_names import *\n")
    assert "1 passed" in installed.run("pytest", "-q", cwd=tmp_path)


def test_installed_commands_need_no_checkout(
    installed: Installed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # a small one, for speed
    assert installed.run("emu", "images", "--json") == "[]\n"
    assert json.loads(installed.run("python", "-m", "emu", "doctor", "--json"))["able"]
    assert "_shtab_emu" in installed.run("emu", "completion", "bash")
    for words in (("mutants",), ("repeat",), ("images", "lock")):
        refused = installed.run("emu", *words, status=3)
        assert f"emu {' '.join(words)} needs a checkout of emu-xen-block" in refused
