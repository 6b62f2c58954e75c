"""Taking compressed things apart: modules, a bzImage, the files of a Debian package."""

from __future__ import annotations

import lzma
import struct
import subprocess
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from emu.errors import InputError, RigError
from emu.progress import Progress
from emu.runprogram import SILENCE, bounded, find_program, run

_BROKEN = (OSError, EOFError, lzma.LZMAError, zlib.error)


def unpacked(path: Path) -> bytes:
    """The bytes of a file that may be compressed with gzip, xz, zstd or lz4 (`.ko.xz`).

    Raises InputError when it is not there, cannot be read, or ends too early.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    try:
        return decompress(data)
    except _BROKEN as error:
        raise InputError(f"{path} is compressed, and broken: {error}") from error


def decompress(data: bytes) -> bytes:
    """`data` decompressed by its magic number; as it is if that is unknown.

    What follows the compressed stream is ignored: in a bzImage that is the size.
    """
    if data.startswith(b"\x1f\x8b"):
        inflate = zlib.decompressobj(wbits=31)
        return _whole(inflate.decompress(data), inflate.eof)
    if data.startswith(b"\xfd7zXZ\0"):
        decoder = lzma.LZMADecompressor()
        return _whole(decoder.decompress(data), decoder.eof)
    if data.startswith(b"\x28\xb5\x2f\xfd"):
        return _tool("zstd", data)
    if data.startswith(b"\x02\x21\x4c\x18"):
        return _tool("lz4", data)
    return data


def extract_vmlinux(image: bytes, *, what: str = "the kernel image") -> bytes:
    """The uncompressed kernel inside a bzImage; an ELF file is given back as it is.

    The setup header has the payload's offset (Linux `Documentation/x86/boot.rst`:
    setup_sects at 0x1f1, "HdrS" at 0x202, payload_offset and _length at 0x248 from 2.08 on).
    """
    if image.startswith(b"\x7fELF"):
        return image
    if image[0x202:0x206] != b"HdrS" or len(image) < 0x250:
        raise InputError(f"{what} is neither an ELF file nor a bzImage")
    (version,) = struct.unpack_from("<H", image, 0x206)
    if version < 0x208:
        raise InputError(f"{what} has boot protocol {version:#x}, which names no payload")
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = ((image[0x1F1] or 4) + 1) * 512 + offset
    payload = image[start : start + length]
    try:
        vmlinux = decompress(payload)
    except _BROKEN as error:
        raise InputError(f"{what} has a damaged payload: {error}") from error
    if not vmlinux.startswith(b"\x7fELF"):
        raise InputError(f"{what} is compressed in a way we cannot undo ({payload[:4].hex()})")
    return vmlinux


def unpack_deb(deb: Path, into: Path, progress: Progress | None = None) -> None:
    """Unpack the files of a .deb below `into`, without root and without running its scripts."""
    command = ["dpkg-deb", "--extract", str(deb), str(into)]
    run(command, f"cannot unpack {deb.name}", lines=3, progress=progress)


@contextmanager
def source_tar(deb: Path) -> Iterator[IO[bytes]]:
    """The kernel's source as one uncompressed tar stream, out of a linux-source package.

    Nothing is written: the package is read, and its `usr/src/*.tar.xz` decompressed, on
    the way.
    """
    command = [find_program("dpkg-deb"), "--fsys-tarfile", str(deb)]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as outer,
        bounded(outer, f"reading {deb.name}", SILENCE),
    ):
        assert outer.stdout is not None
        try:
            with tarfile.open(fileobj=outer.stdout, mode="r|") as package:
                for member in package:
                    inner = package.extractfile(member) if member.isfile() else None
                    if inner is not None and member.name.endswith(".tar.xz"):
                        with lzma.LZMAFile(inner) as source:
                            yield source
                        return
        except (tarfile.TarError, lzma.LZMAError, EOFError) as error:
            raise RigError(f"cannot read the source in {deb.name}: {error}") from error
        finally:
            outer.kill()
    raise RigError(f"{deb.name} holds no source archive")


def _whole(data: bytes, ended: bool) -> bytes:
    if not ended:
        raise EOFError("it ends in the middle")
    return data


def _tool(name: str, data: bytes) -> bytes:
    done = run([name, "-dcq"], data=data)
    # Both call the size behind a bzImage's payload an error after they wrote everything.
    if done.status and not done.stdout.startswith(b"\x7fELF"):
        raise OSError(done.errors.strip() or f"{name} failed")
    return done.stdout
