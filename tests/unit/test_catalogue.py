"""Kernels by name: what kernels.lock has, the names it goes by, and what is refused."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from kernel_names import a_kernel

from emu import paths
from emu.errors import InputError
from emu.images import kernel_specs
from emu.images.catalogue import Catalogue, catalogue
from emu.images.kernel_specs import full_name, spec
from emu.images.packages import (
    KERNELS,
    Lock,
    Package,
    digest_of_kernels,
    kernel_set,
    load_archives,
    load_wanted_kernels,
)

KERNELS_LOCKED = {
    # release: (package version, with headers)
    "5.10.0-46-amd64": ("5.10.262-1", True),
    "6.1.0-52-amd64": ("6.1.180-1", False),
    "6.1.0-55-amd64": ("6.1.192-1", True),
    "6.1.0-56-amd64": ("6.1.192-2", True),
    "6.12.95+deb12-amd64": ("6.12.95-1~bpo12+1", True),
    "6.12.95+deb13-amd64": ("6.12.95-1", False),
    "6.12.95+deb12-cloud-amd64": ("6.12.95-1~bpo12+1", True),
    "6.12.107+deb12-amd64": ("6.12.107-1~deb12u1", True),
    "6.12.107+deb13-amd64": ("6.12.107-1", True),
    "6.18.9+deb13-amd64": ("6.18.9-1~bpo13+1", False),
    "6.18.15+deb13-amd64": ("6.18.15-1~bpo13+1", False),
    "7.3-amd64": ("7.3~rc7-1~exp1", True),
}


def lock_of(kernels: dict[str, tuple[str, bool]]) -> Lock:
    entries = []
    for release, (version, headers) in kernels.items():
        roles = ("image", "headers", "source") if headers else ("image",)
        entries += [
            Package("test", f"linux-{role}-{release}", version, "amd64", "0" * 64, 1,
                    (kernel_set(role, release),))
            for role in roles
        ]  # fmt: skip
    return Lock("", tuple(entries))


@pytest.fixture
def known() -> Catalogue:
    return Catalogue.of(lock_of(KERNELS_LOCKED))


@pytest.mark.parametrize(
    ("name", "release"),
    [
        ("debian-6.18", "6.18.15+deb13-amd64"),  # the newest of the line: 6.18.9 is older
        ("debian-6.12", "6.12.107+deb13-amd64"),
        ("debian-6.12.107", "6.12.107+deb13-amd64"),
        ("debian-6.12.107+deb12", "6.12.107+deb12-amd64"),
        ("debian-6.12.107-1~deb12u1", "6.12.107+deb12-amd64"),
        ("debian-6.12.95", "6.12.95+deb12-amd64"),  # the newer package has no headers
        ("debian-6.12.95-1", "6.12.95+deb13-amd64"),
        ("debian-6.1.192", "6.1.0-56-amd64"),
        ("debian-6.1.192-1", "6.1.0-55-amd64"),
        ("debian-6.1.0-55", "6.1.0-55-amd64"),
        ("cloud-6.12", "6.12.95+deb12-cloud-amd64"),
        ("6.12.95+deb12-cloud-amd64", "6.12.95+deb12-cloud-amd64"),
        ("debian-7.3", "7.3-amd64"),
        ("debian-7.3~rc7", "7.3-amd64"),
    ],
)
def test_kernel_is_found_by_each_of_its_names(known: Catalogue, name: str, release: str) -> None:
    found = known.find(name)
    assert found is not None
    assert found.release == release


def test_short_name_means_one_kernel_alone(known: Catalogue) -> None:
    names = [known.short_name(kernel) for kernel in known.kernels]
    assert [known.find(name) for name in names] == list(known.kernels)
    assert {"debian-5.10.262", "debian-6.12.107+deb12", "debian-6.1.192-1", "cloud-6.12.95"} <= {
        *names
    }


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("debian-6.13", ["debian-6.12.107+deb13", "debian-6.18.9"]),
        ("debian-4.19", ["debian-5.10.262"]),
        ("debian-9", ["debian-7.3~rc7"]),
        ("debain-6.18", ["debian-6.18"]),
        ("nothing-like-it", []),
    ],
)
def test_nearest_names_are_offered(known: Catalogue, name: str, nearest: list[str]) -> None:
    assert known.nearest(name)[: len(nearest) or 1] == nearest


def test_neighbours_can_have_drivers_of_ours(known: Catalogue) -> None:
    kernel = known.find("debian-6.18")
    assert kernel is not None
    assert known.neighbours(kernel, ["6.1", "6.12"]) == ["debian-6.12.107+deb13"]
    assert known.neighbours(kernel, None) == ["debian-6.12.107+deb13", "debian-7.3~rc7"]


# -- what is committed


def test_kernels_lock_matches_packages_toml() -> None:
    wanted = load_wanted_kernels()
    lock = Lock.load(paths.guest_images() / KERNELS)
    assert lock.wants == digest_of_kernels(wanted), "run `emu images lock`"
    assert {package.archive for package in lock.entries} == {one.name for one in wanted.archives}
    assert set(load_archives()) >= {one.name for one in wanted.archives}


def test_committed_kernels_have_the_source_of_their_version() -> None:
    lock = Lock.load(paths.guest_images() / KERNELS)
    buildable = [kernel for kernel in catalogue().kernels if kernel.buildable]
    assert len(buildable) > 50
    for kernel in buildable:
        (source,) = lock.packages(kernel.packages["source"])
        assert source.version == kernel.version
        names = [package.name for package in lock.packages(kernel.packages["headers"])]
        assert f"linux-headers-{kernel.release}" in names
        assert len(names) == len(set(names))


def test_every_committed_kernel_has_a_name_of_its_own() -> None:
    names = [full_name(kernel.release) for kernel in catalogue().kernels]
    assert len(names) == len(set(names)) > 100
    for kernel, name in zip(catalogue().kernels, names, strict=True):
        assert full_name(name) == name
        if kernel.complete:
            assert spec(name).version == kernel.line
            assert spec(name).flavour == kernel.flavour


def test_line_of_kernels_toml_is_what_the_suite_runs_on() -> None:
    assert full_name("debian") == "debian-6.1"
    for name in kernel_specs.specs():
        assert full_name(name) == name
        assert spec(name) == kernel_specs.specs()[name]
    # By another of its names it is the same kernel, in the same entry of the cache.
    (image,) = (
        package
        for package in Lock.load().packages("kernel-debian-6.1")
        if package.name.startswith("linux-image-6")
    )
    if catalogue().find(f"debian-{image.version}"):
        assert full_name(f"debian-{image.version}") == "debian-6.1"
        assert full_name(image.name.removeprefix("linux-image-")) == "debian-6.1"


def test_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(InputError, match=r"no kernel 'debian-6\.11'") as refused:
        spec("debian-6.11")
    hint = str(refused.value.hint)
    assert hint.startswith("the nearest: debian-6.1, debian-6.12")
    assert hint.endswith("; `emu images kernels` lists all")


def test_kernel_without_headers_can_have_stock_drivers_alone() -> None:
    stock_only = spec(a_kernel(headers=False, series=False))
    assert not stock_only.buildable
    for require in (kernel_specs.require_buildable, kernel_specs.require_series):
        with pytest.raises(InputError, match=r"no headers for it any more") as refused:
            require(stock_only, "--back stock")
        assert "(--back stock), or debian-" in str(refused.value.hint)


def test_series_is_refused_for_lines_that_it_is_not_for() -> None:
    old = spec(a_kernel(headers=True, series=False))
    kernel_specs.require_buildable(old)
    lines = r"for Linux 6\.1, 6\.12, 7\.2 and 7\.3, not for "
    with pytest.raises(InputError, match=lines + re.escape(old.name)):
        kernel_specs.require_series(old)
    for name in ("debian-6.1", "lab-7.3", a_kernel(headers=True), a_kernel("cloud", headers=True)):
        kernel_specs.require_series(spec(name))


def test_cloud_kernel_is_for_a_domu_alone() -> None:
    cloud = spec(a_kernel("cloud", headers=True))
    assert not cloud.dom0
    with pytest.raises(InputError, match="CONFIG_XEN_DOM0") as refused:
        kernel_specs.require_dom0(cloud)
    assert f"--domu-kernel {cloud.name}" in str(refused.value.hint)
    kernel_specs.require_dom0(spec("debian-6.12"))


def test_image_without_its_modules_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = lock_of({"6.19.14+deb13-amd64": ("6.19.14-1~bpo13+1", False)})
    (image,) = gone.entries
    gone = replace(gone, entries=(replace(image, sets=("incomplete-6.19.14+deb13-amd64",)),))
    entries = (*lock_of(KERNELS_LOCKED).entries, *gone.entries)
    monkeypatch.setattr(kernel_specs, "catalogue", lambda: Catalogue.of(Lock("", entries)))
    with pytest.raises(InputError, match="its modules no more") as refused:
        spec("debian-6.19")
    assert refused.value.hint == "the nearest are debian-6.18.15 and debian-7.3~rc7"
    assert "debian-6.19.14" not in [one.name for one in kernel_specs.every_spec()]
