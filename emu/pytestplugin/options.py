"""The plugin's options: which kernel, Xen, clock, QEMU and drivers the tests run on.

    pytest --emu-kernel debian-6.12 tests/system          on another kernel
    pytest --emu-tree ~/linux tests/system                on the kernel of a source tree
    pytest --emu-xen 4.20 tests/system                    on another Xen
    pytest --emu-driver-patches my.patch tests/system     the series with one more patch
    pytest --emu-front my/xen-blkfront.ko tests/system    this module as the patched front end

Each has a short name, too (`--kernel`), unless another plugin or a conftest.py has an option of
that name. QEMU and drivers are passed on in the environment, so that the workers of `pytest -n`
and the `emu` commands that tests start use the same.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from emu.emulator import choice as emulator
from emu.errors import InputError
from emu.images import xens
from emu.images.driver_patches import driver_patches
from emu.images.driver_source import read_tree
from emu.images.kernel_specs import require_dom0, spec
from emu.images.modules import ENDS, MODULE
from emu.images.patched import BASES, GIVEN, from_environment
from emu.images.replaced import INSIST

PREFIX = "--emu-"
_OPTIONS: dict[str, dict[str, Any]] = {
    "kernel": {
        "metavar": "NAME",
        "help": "the kernel of tests that name none, as `emu run` takes it (`emu images kernels` "
        "lists them); tests that ask for "
        '"lab" get the lab kernel of the same release',
    },
    "tree": {
        "metavar": "DIR",
        "help": "the kernel tree that the kernel of tests that name none is built of, with its own "
        "block drivers",
    },
    "domu-tree": {
        "metavar": "DIR",
        "help": "the same for the domU's kernel alone",
    },
    "config": {
        "metavar": "FILE",
        "help": "what trees are configured from, as `emu run --config` has it",
    },
    "xen": {
        "metavar": "RELEASE",
        "help": f"the Xen of tests that name none: {', '.join(xens.XENS)}",
    },
    "clock": {
        "choices": ("wall", "icount"),
        "help": "the clock of tests that name none: wall time, or instructions counted; two "
        "hosts always have wall time",
    },
    "qemu": {
        "metavar": "QEMU",
        "help": f"the QEMU of tests that name none: {', '.join(emulator.NAMES)}, or a path",
    },
    "record": {
        "action": "store_true",
        "help": "record each host, so that `emu replay` can repeat a failure; implies "
        f"instruction time and, by default, the QEMU {emulator.RECORDING}",
    },
    "locked": {
        "action": "store_true",
        "help": "refuse a package that the archive has replaced; by default the newest of its "
        "series is taken, and the end of the run says so",
    },
    "driver-patches": {
        "action": "append",
        "default": [],
        "metavar": "PATH",
        "help": 'add these patches to the series that makes the "patched" drivers: a diff, a mail, '
        "a mailbox, a maildir, a directory; repeatable",
    },
    "on": {
        "choices": BASES,
        "help": "apply them on the series (default), or on the stock drivers",
    },
    "tree-drivers": {
        "metavar": "DIR",
        "help": 'build the "patched" drivers from this kernel tree, without the series',
    },
    "coverage": {
        "metavar": "DIR",
        "help": 'build the "patched" drivers with gcc\'s counters, and write to DIR which of '
        "their lines each test reaches, see `emu coverage`",
    },
    **{
        end: {"metavar": "FILE.ko", "help": f'use this {MODULE[end]} as the "patched" one'}
        for end in ENDS
    },
}


def dest(name: str) -> str:
    """The name of an option's value: "driver-patches" is `config.option.emu_driver_patches`."""
    return f"emu_{name.replace('-', '_')}"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("emu", "the emulated Xen block stack")
    for name, attributes in _OPTIONS.items():
        group.addoption(f"{PREFIX}{name}", dest=dest(name), **attributes)


@pytest.hookimpl(wrapper=True)
def pytest_load_initial_conftests(
    early_config: pytest.Config, parser: pytest.Parser
) -> Generator[None, None, None]:
    """Add the short names as late as options can be: whoever else wants one has it by then."""
    yield
    group = parser.getgroup("emu-short", "short names of the above, where they are free")
    for name, attributes in _OPTIONS.items():
        if not _is_taken(early_config, f"--{name}"):
            shown = {**attributes, "help": f"same as {PREFIX}{name}"}
            group.addoption(f"--{name}", dest=dest(name), **shown)


def _is_taken(config: pytest.Config, option: str) -> bool:
    missing = object()
    return config.getoption(option, default=missing) is not missing


def pytest_configure(config: pytest.Config) -> None:
    """Pass on drivers and QEMU. Raises UsageError for a file that does not exist or is no patch,
    a Xen that nobody packages, and a kernel that is none for dom0.
    """
    if release := config.getoption(dest("xen")):
        with _wrong_usage():
            xens.find(release)
    if kernel := config.getoption(dest("kernel")):
        with _wrong_usage("--kernel: "):
            require_dom0(spec(kernel))
    if qemu := config.getoption(dest("qemu")):
        os.environ[emulator.GIVEN] = str(Path(qemu).absolute()) if "/" in qemu else qemu
    if config.getoption(dest("locked")):
        os.environ[INSIST] = "1"
    if config.getoption(dest("tree")) and config.getoption(dest("kernel")):
        raise pytest.UsageError(f"{PREFIX}tree and {PREFIX}kernel exclude each other")
    for name in ("tree", "domu-tree", "config"):
        if given := config.getoption(dest(name)):
            setattr(config.option, dest(name), _existing(given))
    for end in ENDS:
        if given := config.getoption(dest(end)):
            os.environ[GIVEN[end]] = _existing(given)
    patches = [_existing(name) for name in config.getoption(dest("driver-patches"))]
    tree, on = (config.getoption(dest(name)) for name in ("tree-drivers", "on"))
    if not (patches or tree or on):
        return
    with _wrong_usage():
        given = Path(_existing(tree)) if tree else None
        drivers = from_environment().but(list(map(Path, patches)), on, given)
        driver_patches(drivers, "", lambda line: None)
        if drivers.tree is not None:
            read_tree(drivers.tree)
        os.environ.update(drivers.environ())


@contextlib.contextmanager
def _wrong_usage(before: str = "") -> Iterator[None]:
    """An input that is refused is wrong usage of pytest, with `before` in front of the reason."""
    try:
        yield
    except InputError as error:
        raise pytest.UsageError(f"{before}{error}") from None


def _existing(name: str) -> str:
    path = Path(name).absolute()
    if not path.exists():
        raise pytest.UsageError(f"there is no {name}")
    return str(path)
