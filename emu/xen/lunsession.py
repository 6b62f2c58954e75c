"""The iSCSI session of a LUN: lost and back again, and what was agreed on for it.

A session is lost when LIO disables the target's portal group: it closes the connection and answers
log-ins with "service unavailable", so that iscsid goes on trying. What dom0's initiator does then
is Linux' drivers/scsi/scsi_transport_iscsi.c: requests wait (iscsi_block_session()); after the
replacement time-out they fail, and those that come, too (session_recovery_timedout()), until there
is a session again (iscsi_unblock_session()).
"""

from __future__ import annotations

from dataclasses import dataclass

from emu.channel.channel import Channel, CommandTimeout
from emu.deadline import Deadline
from emu.errors import RigError
from emu.xen.lun import Lun, step

REPLACEMENT_TIMEOUT = 120
"""Seconds that requests wait for a session that is lost: guest-images/dom0/iscsid.conf."""
LOST_WITHIN = 20.0
"""Seconds until dom0's initiator has noticed the end of a session."""
BACK_WITHIN = 40.0
"""Seconds in which iscsid has logged in again; it tries every few seconds."""

# $session: the directory of the session to the target $1.
_SESSION = """
for session in /sys/class/iscsi_session/*; do
    [ "$(cat $session/targetname 2> /dev/null)" = "$1" ] && break
    session=
done
if [ -z "$session" ]; then
    echo "there is no session to $1" >&2
    exit 1
fi
"""
_LOSE = """
set -e
echo $2 > $session/recovery_tmo
echo 0 > {configfs}/iscsi/$1/tpgt_1/enable
if [ -n "$3" ]; then
    (sleep $3; echo 1 > {configfs}/iscsi/$1/tpgt_1/enable) > /dev/null 2>&1 &
fi
"""
_ALLOW = "echo 1 > {configfs}/iscsi/$1/tpgt_1/enable"
_RESET = "echo $2 > $session/recovery_tmo"
_STATE = """
echo state=$(cat $session/state)
echo device=$(cat $session/device/target*/*/state)
for file in $session/device/connection*/iscsi_connection/*; do
    echo header_digest=$(cat $file/header_digest)
    echo data_digest=$(cat $file/data_digest)
done
"""


@dataclass(frozen=True)
class Session:
    """A session as dom0's kernel shows it. `state`: LOGGED_IN, FAILED or FREE; `device`: that of
    the disk, "running", "blocked" or "transport-offline"; whether header and data have digests."""

    state: str
    device: str
    header_digest: bool
    data_digest: bool


def parse(text: str) -> Session:
    """Read what the kernel shows of a session, a value a line."""
    values = dict(line.split("=", 1) for line in text.split("\n") if "=" in line)
    return Session(
        values.get("state", ""),
        values.get("device", ""),
        values.get("header_digest") == "1",
        values.get("data_digest") == "1",
    )


def session(dom0: Channel, lun: Lun) -> Session:
    """The session of a LUN as it is now. Raises RigError where there is none."""
    return parse(step(dom0, f"reading the session of LUN {lun.name}", _SESSION + _STATE, lun.iqn))


def lose(dom0: Channel, lun: Lun, replacement_timeout: int, seconds: float | None) -> None:
    """End the session, and refuse another for `seconds` (None: until `restore`); returns when
    dom0 has noticed. Requests wait `replacement_timeout` seconds of dom0's.

    Raises RigError with dom0's output.
    """
    words = (lun.iqn, str(replacement_timeout), "" if seconds is None else f"{seconds:.3f}")
    step(dom0, f"ending the session of LUN {lun.name}", _SESSION + _LOSE, *words)
    _await(dom0, lun, '[ "$(cat $session/state)" != LOGGED_IN ]', "to be lost", LOST_WITHIN)


def restore(dom0: Channel, lun: Lun) -> None:
    """Let the initiator log in again, as `await_back`."""
    step(dom0, f"allowing a session of LUN {lun.name}", _ALLOW, lun.iqn)
    await_back(dom0, lun)


def await_back(dom0: Channel, lun: Lun, after: float = 0.0) -> None:
    """Wait until the initiator has logged in again and the disk takes requests.

    `after` seconds (before scaling) it has been refused, at most. Raises RigError with what the
    session is instead.
    """
    there = '[ "$(cat $session/state $session/device/target*/*/state)" = "LOGGED_IN\nrunning" ]'
    _await(dom0, lun, there, "to be back", BACK_WITHIN + after)
    words = (lun.iqn, str(REPLACEMENT_TIMEOUT))
    step(dom0, f"resetting the session of LUN {lun.name}", _SESSION + _RESET, *words)


def _await(dom0: Channel, lun: Lun, condition: str, what: str, timeout: float) -> None:
    deadline = Deadline(f"the session of LUN {lun.name} {what}", timeout)
    try:
        dom0.wait_until(_SESSION + condition, deadline.what, timeout, lun.iqn)
    except CommandTimeout:
        raise RigError(f"waited for {deadline}: it is {session(dom0, lun)}") from None
