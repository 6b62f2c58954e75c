"""Kernels by name: any Linux of Debian's archives, in either guest.

By default one for virtual machines in the domU, whose packages are small. What takes a kernel of
150 MiB and a boot for each case is long.
"""

from __future__ import annotations

import pytest
from kernel_names import newest

from emu.images.kernel_specs import spec
from emu.rig import RigHost, RigLun

stack = pytest.mark.stack
WITHOUT_HEADERS = newest(headers=False, series=False)
POINT_RELEASE = newest(headers=True, line="6.12")
gone = pytest.mark.skipif(not (WITHOUT_HEADERS and POINT_RELEASE), reason="not in the archive now")


def connect(host: RigHost, lun: RigLun, front: str, back: str, *, long: bool = True) -> None:
    """A disk over these drivers; what is written to it is read back, and it goes as it came.

    `long`: with a save and a restore between.
    """
    wish = host.stack.artifacts.wish
    domu = host.create(disk=lun, ring_pages=16, front=front, back=back)
    for channel, kernel in (
        (host.dom0, host.stack.artifacts.kernel),
        (host.stack.domain.channel, host.stack.artifacts.domu_kernel),
    ):
        release = channel.run(["uname", "-r"], timeout=20).text.strip()
        assert release == kernel.release
    assert host.stack.artifacts.domu_kernel.name == wish.domu_kernel_name
    assert domu.ring(lun).pages == 16
    with domu.verifying_io():
        pass
    if long:
        domu.save_and_restore()
        assert domu.run("cat /proc/uptime")
    domu.detach(lun)


@stack(domu_kernel="cloud-6.1")
def test_cloud_kernel_in_the_domu(host: RigHost, lun: RigLun) -> None:
    connect(host, lun, "patched", "patched", long=False)
    assert host.stack.artifacts.domu_kernel.release.endswith("-cloud-amd64")


@pytest.mark.long
@pytest.mark.parametrize(
    ("front", "back"),
    [
        pytest.param("stock", "stock", marks=stack(kernel="debian-5.10"), id="5.10"),
        pytest.param("stock", "patched", marks=stack(domu_kernel="debian-5.10"), id="5.10-domu"),
        pytest.param("patched", "patched", marks=stack(kernel="debian-7.2"), id="7.2"),
    ],
)
def test_kernel_of_another_line(host: RigHost, lun: RigLun, front: str, back: str) -> None:
    connect(host, lun, front, back)


@gone
@pytest.mark.long
@stack(kernel=WITHOUT_HEADERS)
def test_kernel_without_headers_has_stock_drivers(host: RigHost, lun: RigLun) -> None:
    assert not spec(host.stack.artifacts.kernel.name).buildable
    connect(host, lun, "stock", "stock")


@gone
@pytest.mark.long
@stack(kernel=POINT_RELEASE)
def test_point_release_takes_the_variants_that_fit_it(host: RigHost, lun: RigLun) -> None:
    connect(host, lun, "patched", "patched")
