"""A LUN of one host used by another, over the network between the two: for a domU that moves.

The target gets one more portal, on its host's address; the second initiator logs in under a
name of its own, for a session of the same name would end the first (RFC 7143, 6.3.5).
"""

from __future__ import annotations

from dataclasses import replace

from emu.channel.channel import Channel
from emu.xen import lun as luns
from emu.xen.lun import Lun, step

CARD = "eth0"
MTU = 65000
"""Bytes: QEMU's socket back end takes frames of up to 68 KiB, and what costs here is a frame."""
PORT = 3260

CARD_WITHIN = 10.0
"""Seconds from loading its driver until the network card is there."""
_UP = """
set -e
ip link set $1 mtu $3 up
ip addr add $2/24 dev $1
"""

_OFFER = "mkdir -p {configfs}/iscsi/$1/tpgt_1/np/$2"

_JOIN = """
set -e
iscsiadm -m iface -I link -o new
iscsiadm -m iface -I link -o update -n iface.initiatorname -v $3
iscsiadm -m node -o new -T $1 -p $2 -I link
"""

_LOG_IN = """
set -e
iscsiadm -m node -T $1 --login
"""


def bring_up(dom0: Channel, address: str) -> None:
    """Give dom0's network card `address`, in a network of 24 bits.

    Raises RigError with dom0's output, CommandTimeout where there is no card.
    """
    step(dom0, "loading the network card's driver", "modprobe virtio_net")
    dom0.wait_until("[ -e /sys/class/net/$1 ]", f"the network card {CARD}", CARD_WITHIN, CARD)
    step(dom0, "bringing up the network card", _UP, CARD, address, str(MTU))


def address(dom0: Channel) -> str:
    """The address of dom0's network card. Raises RigError where it has none."""
    script = "ip -4 -o addr show dev $1 | sed -n 's,.* inet \\([0-9.]*\\)/.*,\\1,p'"
    return step(dom0, "reading the network card's address", script, CARD).strip()


def offer(dom0: Channel, lun: Lun, address: str) -> None:
    """Let the LUN's target answer on `address`, too."""
    step(dom0, f"offering LUN {lun.name} on {address}", _OFFER, lun.iqn, f"{address}:{PORT}")


def join(dom0: Channel, lun: Lun, address: str, initiator: str) -> Lun:
    """Log in, as `initiator`, to the LUN that the host at `address` offers; the LUN as seen here.

    Meant for a host without a LUN of its own. Raises RigError with dom0's output.
    """
    doing = f"naming the target of LUN {lun.name} at {address}"
    step(dom0, doing, _JOIN, lun.iqn, f"{address}:{PORT}", initiator)
    return log_in(dom0, lun)


def log_out(dom0: Channel, lun: Lun) -> None:
    """End the session of a host that has joined: there the LUN is gone, until `log_in`."""
    logout = "iscsiadm -m node -T $1 --logout"
    step(dom0, f"logging out of LUN {lun.name}", logout, lun.iqn)


def log_in(dom0: Channel, lun: Lun) -> Lun:
    """Log in (again) to a LUN that was joined; the LUN as seen here."""
    return replace(lun, device=luns.log_in(dom0, lun.name, _LOG_IN))
