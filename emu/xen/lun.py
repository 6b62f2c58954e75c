"""LUNs: a file served by tcmu-runner, exported by LIO over iSCSI, logged into by dom0.

Everything goes through configfs (Linux' Documentation/target/tcmu-design.rst and the
layout under /sys/kernel/config/target): targetcli takes seconds to list nothing here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from emu.channel.channel import Channel, CommandTimeout
from emu.errors import InputError, RigError

PORTAL = "127.0.0.1:3260"
CONFIGFS = "/sys/kernel/config/target"
STORE = "/scratch"
"""Where dom0 keeps the files behind the LUNs: its scratch disk."""

COMMANDS = 512
"""Commands that a session may have at the target at once: the most LIO takes (default: 64).
A request beyond waits in dom0's initiator, and has not reached the LUN yet."""
COMMAND_TIMEOUT = 24 * 3600
"""Seconds after which dom0 gives up a SCSI command: the default of 30 is too short to hold one.
(The kernel's side of tcmu has no time-out here, and neither the initiator nor blkfront has one
that counts while the session is up. What is left: a task that waits for a held request in D state
is reported after 120 s, and cannot be frozen for a save.) Under instruction time a guest's hours
may pass in seconds of this machine's."""

SECTOR_SIZES = (512, 4096)
SECTOR = 512
"""Bytes: the unit of sizes and places of disks in sysfs."""
MIB = 1024 * 1024
LARGEST = (1 << 44) - 4096
"""The most bytes of a LUN: of a file on ext4 with blocks of 4096 bytes, which are counted in 32
bits (Linux' Documentation/filesystems/ext4/blocks.rst)."""
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")

_EXPORT = """
set -e
file={store}/$1.img target={configfs}/iscsi/$2/tpgt_1
truncate -s $3 $file
[ $9 = thin ] || fallocate -l $3 $file
mkdir -p {configfs}/core/user_0/$1
cd {configfs}/core/user_0/$1
echo "dev_config=ledger/$file$7" > control
echo "dev_size=$3" > control
echo "hw_block_size=$4" > control
echo 1 > enable
echo $6 > attrib/cmd_time_out
echo "$5" > wwn/vpd_unit_serial
mkdir -p $target/lun/lun_0 $target/np/{portal}
ln -s {configfs}/core/user_0/$1 $target/lun/lun_0/$1
cd $target/attrib
echo 1 > generate_node_acls
echo 1 > cache_dynamic_acls
echo $8 > demo_mode_write_protect
echo 0 > authentication
echo {depth} > default_cmdsn_depth
echo 1 > $target/enable
"""

_NAME_NODE = """
set -e
iscsiadm -m node -o new -T $1 -p {portal}
"""

# Both ends insist: neither logs in without.
_DIGESTS = """
for digest in HeaderDigest DataDigest; do
    echo CRC32C > {configfs}/iscsi/$1/tpgt_1/param/$digest
    iscsiadm -m node -o update -T $1 -p {portal} -n node.conn[0].iscsi.$digest -v CRC32C
done
"""

_LOG_IN = """
iscsiadm -m node -T $1 -p {portal} --login
"""

# The device of a session to the target $1, once it is there. Its requests get $2 seconds.
_DISK = """{
    device=
    for session in /sys/class/iscsi_session/*; do
        [ "$(cat $session/targetname 2>/dev/null)" = "$1" ] || continue
        for disk in $session/device/target*/*/block/sd*; do
            [ -b "/dev/${disk##*/}" ] && echo $2 > $disk/device/timeout && device=${disk##*/}
        done
    done
    [ -n "$device" ] && echo "device=$device"
}"""
DISK_WITHIN = 20.0
"""Seconds from a log-in until the kernel has made the disk."""

_REMOVE = """
target={configfs}/iscsi/$2
iscsiadm -m node -T $2 -p {portal} --logout
iscsiadm -m node -o delete -T $2 -p {portal}
set -e
echo 0 > $target/tpgt_1/enable
rm -f $target/tpgt_1/lun/lun_0/$1
rmdir $target/tpgt_1/np/{portal} $target/tpgt_1/lun/lun_0 $target/tpgt_1 $target
rmdir {configfs}/core/user_0/$1
rm -f {store}/$1.img
"""


@dataclass(frozen=True)
class Lun:
    """A logged-in LUN. `size` in bytes when it was made, `sector` in bytes, `device` as dom0 names
    it; `thin`: it has blocks only where something was written, and gives them back."""

    name: str
    size: int
    sector: int
    device: str
    thin: bool = True

    @property
    def iqn(self) -> str:
        """The iSCSI qualified name of its target."""
        return iqn(self.name)

    @property
    def block(self) -> str:
        """The name of its device in dom0's sysfs."""
        return self.device.removeprefix("/dev/")

    @property
    def file(self) -> str:
        """The file in dom0 behind it."""
        return f"{STORE}/{self.name}.img"


def iqn(name: str) -> str:
    """The target name of LUN `name` (RFC 3720, 3.2.6.3.1)."""
    return f"iqn.2015-05.org.xen-block:{name}"


def create(
    dom0: Channel,
    name: str,
    size: int,
    sector: int = 512,
    server_timeout: int = 0,
    physical: int | None = None,
    *,
    thin: bool = True,
    write_protected: bool = False,
    digests: bool = False,
) -> Lun:
    """Make a LUN of `size` bytes, export it and log in.

    `physical` is the size of its physical sectors in bytes, where that is not `sector`. After
    `server_timeout` seconds the kernel gives a request up that tcmu-runner does not answer (0:
    never, so that requests can be held). `thin` False: all its blocks are allocated, and it offers
    no unmap (no LBPME in READ CAPACITY (16), SBC-3 5.16). `write_protected`: it says so (WP in MODE
    SENSE, SPC-4 6.13), and LIO refuses every command that brings data with DATA PROTECT.
    `digests`: header and data of every iSCSI PDU carry a CRC-32C, on which both ends insist (RFC
    7143, 13.1).

    Raises InputError for a size or sector that makes no disk, RigError with dom0's output when
    a step fails.
    """
    if not _NAME.fullmatch(name):
        raise InputError(f"{name!r} is no LUN name: small letters, digits and dashes, 32 at most")
    if sector not in SECTOR_SIZES:
        raise InputError(f"a LUN's sectors have 512 or 4096 bytes, not {sector}")
    if physical is not None and (physical not in SECTOR_SIZES or physical < sector):
        raise InputError(f"{sector}-byte sectors don't lie in physical ones of {physical} bytes")
    if server_timeout < 0:
        raise InputError(f"a LUN's server can't have {server_timeout} s for a request")
    check_size(size, sector)
    numbers = {
        "physical": 0 if physical == sector else physical,
        "full": not thin,
        "write_protected": write_protected,
    }
    config = "&".join(f"{key}={int(value)}" for key, value in numbers.items() if value)
    step(
        dom0, f"exporting LUN {name}", _EXPORT,
        name, iqn(name), str(size), str(sector), f"emu-{name}", str(server_timeout),
        f"?{config}" if config else "", str(int(write_protected)), "thin" if thin else "full",
    )  # fmt: skip
    script = _NAME_NODE + (_DIGESTS if digests else "") + _LOG_IN
    return Lun(name, size, sector, log_in(dom0, name, script), thin)


def check_size(size: int, sector: int) -> None:
    """Raises InputError where a LUN can't have `size` bytes."""
    if size <= 0 or size % sector:
        raise InputError(f"a LUN of {size} bytes is no whole number of {sector}-byte sectors")
    if size > LARGEST:
        raise InputError(
            f"a LUN of {size} bytes is larger than any file of dom0's: {LARGEST} at most"
        )


def log_in(dom0: Channel, name: str, script: str) -> str:
    """Log in to a LUN's target by `script`, which gets its iqn; the device that comes of it.

    The device's requests have the time that a held one needs. Raises RigError.
    """
    doing = f"logging in to LUN {name}"
    step(dom0, doing, script, iqn(name))
    try:
        answer = dom0.wait_until(
            _DISK, f"a disk of {iqn(name)}", DISK_WITHIN, iqn(name), str(COMMAND_TIMEOUT)
        )
    except CommandTimeout as error:
        raise RigError(f"{doing} failed: {error.message}", lines=error.lines) from None
    device = re.search(r"^device=(sd[a-z]+)$", answer, re.M)
    if not device:
        raise RigError(f"dom0 named no disk for LUN {name}", lines=answer.splitlines()[-5:])
    return f"/dev/{device.group(1)}"


def remove(dom0: Channel, lun: Lun) -> None:
    """Log out, take the export down and delete the file."""
    step(dom0, f"removing LUN {lun.name}", _REMOVE, lun.name, lun.iqn)


def session_up(dom0: Channel, lun: Lun) -> bool:
    """Whether the initiator's session to the LUN's target is logged in right now."""
    script = (
        "for s in /sys/class/iscsi_session/*; do "
        '[ "$(cat $s/targetname 2>/dev/null)" = "$1" ] && cat $s/state; done; exit 0'
    )
    return "LOGGED_IN" in dom0.run(["sh", "-c", script, "sh", lun.iqn], timeout=20).text


def step(dom0: Channel, doing: str, script: str, *words: str) -> str:
    """Run a script with the rig's names filled in; its output. RigError with dom0's output."""
    text = script.format(configfs=CONFIGFS, portal=PORTAL, store=STORE, depth=COMMANDS)
    answer = dom0.run(["sh", "-c", text, "sh", *words], timeout=60, check=False)
    if answer.status != 0:
        output = (answer.stdout + answer.stderr).decode(errors="replace").splitlines()
        raise RigError(f"{doing} failed with status {answer.status}", lines=output[-8:])
    return answer.text
