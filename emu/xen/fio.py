"""fio in a guest: a job that writes all over a disk, reads it back and checks every block.

Each block carries its own checksum, its offset and a number that fio derives from its
random seed: a block that went to another place, came twice, or is of an earlier pass is
found, not only one that is damaged.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from emu.channel.channel import Channel
from emu.errors import NotHeld, RigError

PROGRAM = "/tmp/fio"
_BLOCKS = "4k/30:16k/20:64k/20:512/10:128k/10:1m/10"
"""Sizes and their shares in per cent: some fit one segment, some need indirect ones, the
largest are split into several requests."""


@dataclass(frozen=True)
class FioResult:
    """What fio reports of a job; `error` is an errno, 0 when all was as it should be."""

    error: int
    write_ios: int
    write_bytes: int
    read_ios: int
    read_bytes: int
    seconds: float


def install(channel: Channel, program: Path) -> None:
    """Put fio (`emu.images.fio`, gzipped) into a guest, where it stays until the guest ends."""
    if channel.run(["test", "-x", PROGRAM], timeout=20, check=False).status == 0:
        return
    channel.put(program, f"{PROGRAM}.gz")
    channel.run(f"gunzip {PROGRAM}.gz && chmod 755 {PROGRAM}", timeout=60)


def verify(
    channel: Channel,
    disk: str,
    *,
    mib: int,
    depth: int = 64,
    checksum: str = "crc32c",
    seed: int = 1,
    timeout: float = 300.0,
) -> FioResult:
    """Write the first `mib` MiB of `disk` in random order and sizes, read them back, check.

    `depth` requests are in flight at a time, past the page cache. Raises NotHeld with fio's
    output when a block is not what was written, or a request fails.
    """
    job = [
        PROGRAM, "--name=verify", f"--filename=/dev/{disk}", f"--size={mib}M", "--direct=1",
        "--ioengine=io_uring", f"--iodepth={depth}", "--rw=randwrite", f"--bssplit={_BLOCKS}",
        "--verify_state_save=0", f"--verify={checksum}", "--verify_fatal=1", "--do_verify=1",
        f"--randseed={seed}", "--thread", "--output-format=json",
    ]  # fmt: skip
    done = channel.run(job, timeout=timeout, check=False)
    text, errors = done.text, done.stderr.decode(errors="replace").splitlines()
    # fio that a disk's error ends may print no report.
    result = None if done.status and "{" not in text else parse(text)
    if result is None or done.status or result.error:
        error = f", error {result.error}" if result else ""
        raise NotHeld(
            f"{channel.name}: fio ended with status {done.status}{error} on {disk}",
            lines=errors[-12:],
        )
    return result


def parse(text: str) -> FioResult:
    """Read `--output-format=json`; what fio prints before the opening brace is skipped."""
    try:
        (job,) = json.loads(text[text.index("{") :])["jobs"]
        write, read = job["write"], job["read"]
        return FioResult(
            error=job["error"],
            write_ios=write["total_ios"],
            write_bytes=write["io_bytes"],
            read_ios=read["total_ios"],
            read_bytes=read["io_bytes"],
            seconds=job["job_runtime"] / 1000,
        )
    except (ValueError, KeyError) as error:
        raise RigError(
            f"fio's report is no report: {error!r}", lines=text.splitlines()[:5]
        ) from error
