"""Guest images: the same lock gives the same bytes, and nothing needs root."""

from __future__ import annotations

import hashlib
from pathlib import Path

from emu.images import agent, handler, xens
from emu.images.cache import Cache
from emu.images.context import BuildContext
from emu.images.fetch import fetch
from emu.images.guests import GuestImages, OwnPrograms, build_images, debs_by_set, package_sets
from emu.progress import Progress
from emu.stack.stack import Artifacts

XEN = xens.find(xens.DEFAULT)
SETS = package_sets(XEN)


def digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


def test_two_builds_are_byte_identical(artifacts: Artifacts, cache: Cache, tmp_path: Path) -> None:
    debs = debs_by_set(fetch(SETS, BuildContext(cache)), SETS)
    own = OwnPrograms(agent.build(BuildContext(cache)), handler.build(XEN, BuildContext(cache)))
    built = []
    for name in ("one", "another, with a space"):
        folder = tmp_path / name
        folder.mkdir()
        build_images(debs, XEN, artifacts.kernel, own, GuestImages(folder), Progress())
        built.append(digests(folder))
    assert built[0] == built[1]
    assert set(built[0]) == {
        "xen",
        "dom0-initrd.cpio",
        "dom0.squashfs",
        "domu-initrd.cpio",
        "scratch.qcow2",
    }
    # And the same as what the stack boots from.
    for name, digest in built[0].items():
        assert digests(artifacts.guests.root)[name] == digest, name


def test_no_service_manager_in_dom0(artifacts: Artifacts) -> None:
    listing = artifacts.guests.dom0.read_bytes()
    assert b"emu: dom0 is ready" in listing
    assert b"systemd-udevd" not in listing
