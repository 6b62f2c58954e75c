"""What is checked of modules and kernels before a guest starts."""

from __future__ import annotations

import dataclasses
import struct
import subprocess
from pathlib import Path

import pytest
from small_modules import LAYOUT, RELEASE, VERMAGIC, build_kernel, build_module, symvers

from emu.errors import InputError
from emu.images import elf, packed

PRINTK = 0x92997ED8

# Lines of a real Module.symvers (Debian's linux-headers-6.1.0-56-amd64, 6.1.192-2).
SYMVERS = (
    "0x92997ed8\t_printk\tvmlinux\tEXPORT_SYMBOL\t\n"
    "0x9060323f\tmodule_layout\tvmlinux\tEXPORT_SYMBOL\t\n"
    "0x9c05c23f\tdma_buf_attach\tvmlinux\tEXPORT_SYMBOL_GPL\tDMA_BUF\n"
    "0x140c269a\tsnd_pcm_open_substream\tsound/core/snd-pcm\tEXPORT_SYMBOL\t\n"
)


@pytest.fixture
def kernel(tmp_path: Path) -> elf.KernelInfo:
    vmlinux = build_kernel(tmp_path / "vmlinux", notes={1: 0, 18: 0})
    (tmp_path / "Module.symvers").write_text(symvers(printk=PRINTK, kfree=7, gpl_thing=8))
    return elf.read_kernel(vmlinux, RELEASE, tmp_path / "Module.symvers")


def test_module_is_read_whole(tmp_path: Path) -> None:
    info = [
        "depends=virtio_ring,scsi-mod",
        "softdep=pre: crc32c zlib post: other",
        "alias=xen-backend:vbd",
        "parmtype=max_ring_page_order:int",
        "parm=max_ring_page_order:Maximum order",
        "parm=log_stats:untyped",
        "srcversion=ABC",
        "import_ns=DMA_BUF",
    ]
    path = build_module(
        tmp_path / "xen-blkback.ko", uses={"printk": PRINTK}, exports={"mine": 0x1234}, info=info
    )
    module = elf.read_module(path)
    assert (module.name, module.vermagic, module.license) == ("xen_blkback", VERMAGIC, "GPL")
    assert module.depends == ("virtio_ring", "scsi_mod")
    assert module.softdeps_pre == ("crc32c", "zlib")
    assert module.aliases == ("xen-backend:vbd",)
    assert module.parameters == {"max_ring_page_order": "int", "log_stats": ""}
    assert module.versions == {"printk": PRINTK, "module_layout": LAYOUT}
    assert module.undefined == {"printk"}
    assert module.exports == {"mine": elf.Export(0x1234, "xen-blkback.ko", gpl=True)}
    assert module.namespaces == {"DMA_BUF"}
    assert (module.srcversion, module.has_dwarf) == ("ABC", False)
    notes = subprocess.run(["readelf", "-n", path], capture_output=True, text=True, check=True)
    assert len(module.build_id) == 40
    assert f"Build ID: {module.build_id}" in notes.stdout
    assert elf.build_id(path) == module.build_id


@pytest.mark.parametrize("suffix", [".xz", ".gz", ".zst"])
def test_compressed_module_is_the_same_module(tmp_path: Path, suffix: str) -> None:
    plain = build_module(tmp_path / "a.ko")
    data = plain.read_bytes()
    program = {".xz": "xz", ".gz": "gzip", ".zst": "zstd"}[suffix]
    packed_data = subprocess.run(
        [program, "-c"], input=data, capture_output=True, check=True
    ).stdout
    path = tmp_path / f"b.ko{suffix}"
    path.write_bytes(packed_data)
    assert elf.read_module(path).build_id == elf.read_module(plain).build_id
    path.write_bytes(packed_data[: len(packed_data) // 2])
    with pytest.raises(InputError, match="broken"):
        elf.read_module(path)


def test_matching_module_is_accepted(tmp_path: Path, kernel: elf.KernelInfo) -> None:
    uses = {"printk": PRINTK, "gpl_thing": 8}
    module = elf.read_module(
        build_module(tmp_path / "a.ko", uses=uses, info=["parmtype=order:int"])
    )
    elf.check_module(module, kernel, parameters=["order"])


def test_module_of_another_release_passes_if_its_crcs_match(
    tmp_path: Path, kernel: elf.KernelInfo
) -> None:
    other = build_module(tmp_path / "a.ko", vermagic=VERMAGIC.replace("-56-", "-55-"))
    elf.check_module(elf.read_module(other), kernel)


def test_extended_versions_are_read(tmp_path: Path, kernel: elf.KernelInfo) -> None:
    module = elf.read_module(build_module(tmp_path / "a.ko", extended=True))
    assert module.versions == {"printk": PRINTK, "module_layout": LAYOUT}
    elf.check_module(module, kernel)
    other = elf.read_module(build_module(tmp_path / "b.ko", extended=True, layout=0x5))
    with pytest.raises(InputError, match="another version of module_layout"):
        elf.check_module(other, kernel)


def test_module_without_versions_is_refused(tmp_path: Path, kernel: elf.KernelInfo) -> None:
    module = elf.read_module(build_module(tmp_path / "a.ko", layout=None))
    with pytest.raises(InputError, match="says that it has symbol versions, but has none"):
        elf.check_module(module, kernel)


@pytest.mark.parametrize(
    ("vermagic", "layout"),
    [
        (f"{RELEASE} SMP mod_unload modversions ", LAYOUT),
        (VERMAGIC.replace("-56-", "-55-"), None),  # without CRCs the release counts
    ],
)
def test_vermagic_mismatch_is_refused_and_both_are_shown(
    tmp_path: Path, kernel: elf.KernelInfo, vermagic: str, layout: int | None
) -> None:
    module = elf.read_module(build_module(tmp_path / "a.ko", vermagic=vermagic, layout=layout))
    with pytest.raises(InputError) as refused:
        elf.check_module(module, kernel)
    assert vermagic.strip() in refused.value.message
    assert VERMAGIC.strip() in refused.value.message


def test_crc_mismatch_is_refused_with_symbol_and_both(
    tmp_path: Path, kernel: elf.KernelInfo
) -> None:
    module = elf.read_module(build_module(tmp_path / "a.ko", uses={"printk": 0x11}))
    with pytest.raises(InputError, match=r"printk: CRC 0x00000011 .*, 0x92997ed8 in 6\.1\.0-56"):
        elf.check_module(module, kernel)


def test_layout_of_struct_module_is_checked(tmp_path: Path, kernel: elf.KernelInfo) -> None:
    path = build_module(tmp_path / "a.ko", layout=0x5)
    with pytest.raises(InputError, match="another version of module_layout"):
        elf.check_module(elf.read_module(path), kernel)


def test_unexported_symbol_is_refused(tmp_path: Path, kernel: elf.KernelInfo) -> None:
    path = build_module(tmp_path / "a.ko", uses={"printk": PRINTK, "no_such": 3})
    module = elf.read_module(path)
    with pytest.raises(InputError, match="needs the symbol no_such"):
        elf.check_module(module, kernel)
    other = elf.read_module(build_module(tmp_path / "b.ko", exports={"no_such": 3}))
    elf.check_module(module, kernel, also=[other])
    changed = elf.read_module(build_module(tmp_path / "b.ko", exports={"no_such": 4}))
    with pytest.raises(InputError, match=r"no_such: CRC 0x00000003 .*0x00000004"):
        elf.check_module(module, kernel, also=[changed])


def test_gpl_only_symbols_need_a_gpl_module(tmp_path: Path, kernel: elf.KernelInfo) -> None:
    path = build_module(tmp_path / "a.ko", uses={"gpl_thing": 8}, licence="Proprietary")
    with pytest.raises(InputError, match='licence "Proprietary" but uses gpl_thing'):
        elf.check_module(elf.read_module(path), kernel)


def test_namespace_has_to_be_imported(tmp_path: Path, kernel: elf.KernelInfo) -> None:
    within = dataclasses.replace(
        kernel, exports={"dma": elf.Export(9, "vmlinux", False, "DMA_BUF")}
    )
    without = elf.read_module(build_module(tmp_path / "a.ko", uses={"dma": 9}))
    with pytest.raises(InputError, match="dma of the namespace DMA_BUF"):
        elf.check_module(without, within)
    importing = build_module(tmp_path / "b.ko", uses={"dma": 9}, info=["import_ns=DMA_BUF"])
    elf.check_module(elf.read_module(importing), within)


def test_unknown_parameter_is_refused(tmp_path: Path, kernel: elf.KernelInfo) -> None:
    module = elf.read_module(build_module(tmp_path / "a.ko", info=["parmtype=order:int"]))
    with pytest.raises(InputError, match="no parameter ordre") as refused:
        elf.check_module(module, kernel, parameters=["ordre"])
    assert refused.value.hint == "it has: order"


def test_module_without_build_id_is_refused(tmp_path: Path, kernel: elf.KernelInfo) -> None:
    module = elf.read_module(build_module(tmp_path / "a.ko", build_id=False))
    with pytest.raises(InputError, match="no build id"):
        elf.check_module(module, kernel)


def test_other_files_are_refused_as_modules(tmp_path: Path) -> None:
    good = build_module(tmp_path / "a.ko").read_bytes()
    path = tmp_path / "b.ko"
    with pytest.raises(InputError, match="cannot read"):
        elf.read_module(path)
    path.write_text("#!/bin/sh\n")
    with pytest.raises(InputError, match="not an ELF file"):
        elf.read_module(path)
    arm = bytearray(good)
    struct.pack_into("<H", arm, 18, 183)  # e_machine: EM_AARCH64
    path.write_bytes(arm)
    with pytest.raises(InputError, match="is for AArch64"):
        elf.read_module(path)
    with pytest.raises(InputError, match="not a kernel module"):
        elf.read_module(build_kernel(tmp_path / "vmlinux", notes={}))
    linked = bytearray(good)
    struct.pack_into("<H", linked, 16, 3)  # e_type: ET_DYN
    path.write_bytes(linked)
    with pytest.raises(InputError, match="not a kernel module"):
        elf.read_module(path)


def test_section_beyond_the_end_is_refused(tmp_path: Path) -> None:
    path = build_module(tmp_path / "a.ko")
    data = bytearray(path.read_bytes())
    (headers,) = struct.unpack_from("<Q", data, 40)
    struct.pack_into("<Q", data, headers + 64 + 32, len(data))  # sh_size of the first section
    path.write_bytes(data)
    with pytest.raises(InputError, match="is truncated"):
        elf.read_module(path)


def test_truncated_module_is_refused(tmp_path: Path) -> None:
    good = build_module(tmp_path / "a.ko", exports={"mine": 1}).read_bytes()
    path = tmp_path / "b.ko"
    for size in range(0, len(good), 61):
        path.write_bytes(good[:size])
        with pytest.raises(InputError):
            elf.read_module(path)


def test_symvers_is_parsed() -> None:
    exports = elf.read_symvers(SYMVERS)
    assert exports["_printk"] == elf.Export(0x92997ED8, "vmlinux")
    assert exports["dma_buf_attach"] == elf.Export(0x9C05C23F, "vmlinux", True, "DMA_BUF")
    assert exports["snd_pcm_open_substream"].by == "sound/core/snd-pcm"
    with pytest.raises(InputError, match="line 2"):
        elf.read_symvers("0x1\ta\tvmlinux\tEXPORT_SYMBOL\t\nnonsense\n")
    with pytest.raises(InputError, match="empty"):
        elf.read_symvers("")


def test_vermagic_comes_from_the_kernel_image(tmp_path: Path, kernel: elf.KernelInfo) -> None:
    assert kernel.vermagic == VERMAGIC
    assert elf.banner(tmp_path / "vmlinux").startswith(f"Linux version {RELEASE} ")
    with pytest.raises(InputError, match=r"no vermagic of 6\.1\.0-57-amd64"):
        elf.read_kernel(tmp_path / "vmlinux", "6.1.0-57-amd64", tmp_path / "Module.symvers")


def test_xen_support_is_read_from_the_notes(tmp_path: Path) -> None:
    vmlinux = tmp_path / "vmlinux"
    build_kernel(vmlinux, notes={1: 0, 17: 0x8801, 18: 0})  # features as in Debian's 6.1
    assert elf.xen_support(vmlinux) == elf.XenSupport(pv=True, pvh=True, dom0=True)
    elf.require_xen(vmlinux, pv=True, pvh=True, dom0=True)
    build_kernel(vmlinux, notes={18: 0})
    assert elf.xen_support(vmlinux) == elf.XenSupport(pv=False, pvh=True, dom0=False)
    with pytest.raises(InputError, match="without CONFIG_XEN_PV\n"):
        elf.require_xen(vmlinux, pv=True)
    build_kernel(vmlinux, notes={})
    with pytest.raises(InputError, match="without Xen support"):
        elf.require_xen(vmlinux)


@pytest.mark.parametrize("method", ["gzip", "xz", "zstd"])
def test_kernel_is_extracted_from_a_bzimage(tmp_path: Path, method: str) -> None:
    vmlinux = build_kernel(tmp_path / "vmlinux", notes={18: 0}).read_bytes()
    payload = subprocess.run([method, "-c"], input=vmlinux, capture_output=True, check=True).stdout
    if method != "gzip":  # the kernel's build puts the size behind all but gzip, which has it
        payload += struct.pack("<I", len(vmlinux))
    image = bytearray(512 * 3) + b"\x90" * 100 + payload + b"\0" * 64
    image[0x1F1] = 2
    image[0x202:0x208] = b"HdrS\x0f\x02"
    struct.pack_into("<II", image, 0x248, 100, len(payload))
    assert packed.extract_vmlinux(bytes(image)) == vmlinux
    assert packed.extract_vmlinux(vmlinux) == vmlinux
    with pytest.raises(InputError, match="damaged payload"):
        packed.extract_vmlinux(bytes(image[: 512 * 3 + 100 + len(payload) // 2]))
    with pytest.raises(InputError, match="neither an ELF file nor a bzImage"):
        packed.extract_vmlinux(bytes(1024))
