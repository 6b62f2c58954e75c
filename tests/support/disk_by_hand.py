"""A disk that dom0 gives a domU and takes away by xenstore alone, as libxl does, in less time.

How far both ends have come is all that it tells: whatever their drivers do, it goes on.
"""

from __future__ import annotations

from dataclasses import dataclass

from emu.channel.channel import CommandTimeout
from emu.rig import FIRST_DISK, RigDomu, RigLun
from emu.xen import xenstore

ENDED_WITHIN = 20.0
"""Seconds in which both ends have connected, or one has closed."""
CLOSED_WITHIN = 20.0
"""Seconds until the back end of a disk that is taken away has closed."""

KEEPS = "keeps the device"

_READ = "/usr/lib/emu/emu-xenstore read"
"""Debian's xenstore-read takes several times as long."""
_PREPARE = """
xenstore-write $1 "" $2 "" && xenstore-chmod $1 n0 r$3 && xenstore-chmod $2 n$3 r0
"""
_GIVE = f"""
set -e
front=$1 back=$2 lun=$3 key=$6
at=$(stat -c %t:%T $lun)
xenstore-write $front/backend $back $front/backend-id 0 $front/$key ${{front##*/}} \
    $front/device-type disk $front/state 1 \
    $back/frontend $front $back/frontend-id $5 $back/online 1 \
    $back/mode w $back/dev $4 $back/type phy $back/params $lun $back/state 1
tries=0
while [ "$({_READ} $back/state)" = 1 ] && [ $tries -lt 50 ]; do
    tries=$((tries + 1)); sleep 0.02
done
xenstore-write $back/physical-device $at
"""
_STATES = f"front=$({_READ} $1/state) back=$({_READ} $2/state)"
ENDED = f"""
{_STATES}
case $front$back in *[56]*|44) echo ${{front:-0}} ${{back:-0}} ;; *) false ;; esac
"""
CONNECTED = f"""
{_STATES}
[ "$front$back" = 44 ] && echo 4 4
"""
_CLOSE = f"""
case $({_READ} $1/state) in
[1-4]) xenstore-write $1/online 0 $1/state 5 ;;
*) xenstore-write $1/online 0 ;;
esac
"""
_CLOSED = f"""[ "$({_READ} $1/state || echo 6)" = 6 ]"""
_REMOVE = "xenstore-rm $1 2> /dev/null; xenstore-rm $2 2> /dev/null; true"


@dataclass(frozen=True)
class States:
    """The states of both ends, by name."""

    front: str
    back: str

    @property
    def connected(self) -> bool:
        return self.front == self.back == "Connected"

    @property
    def closed(self) -> bool:
        """Whether an end has given up."""
        return not {self.front, self.back}.isdisjoint({"Closing", "Closed"})

    def __str__(self) -> str:
        return f"front end {self.front}, back end {self.back}"


class DiskByHand:
    """The first disk of a domU: `device` of dom0, or else a whole LUN.

    The front end has its number in `number_key`, the back end its name `dev`.
    """

    def __init__(
        self,
        domu: RigDomu,
        device: str = "",
        *,
        number_key: str = "virtual-device",
        dev: str = FIRST_DISK,
    ) -> None:
        self.domu = domu
        self.device = device
        self.number_key, self.dev = number_key, dev
        self.dom0 = domu.host.dom0
        self._prepared = False

    def give(self, lun: RigLun) -> States:
        """Make it, and wait for both ends; how far they came.

        Both ends appear at once: a back end goes if its front end has no state.
        """
        front, back = self._paths
        if not self._prepared:
            # What is written below a directory has its permissions.
            parents = [path.rpartition("/")[0] for path in (back, front)]
            domid = str(self.domu.domain.domid)
            self.dom0.run(["sh", "-c", _PREPARE, "sh", *parents, domid], timeout=20)
            self._prepared = True
        device = self.device or lun.device
        words = [front, back, device, self.dev, str(self.domu.domain.domid), self.number_key]
        self.dom0.run(["sh", "-c", _GIVE, "sh", *words], timeout=30)
        return self.wait(ENDED)

    def wait(self, condition: str = CONNECTED) -> States:
        """Wait until both ends are connected (`ENDED`: or one has given up); how far they came."""
        try:
            text = self.dom0.wait_until(condition, "both ends", ENDED_WITHIN, *self._paths)
        except CommandTimeout:
            return self.states()
        front, back = (xenstore.state_of("", word) for word in text.split()[-2:])
        return States(front, back)

    def states(self) -> States:
        """How far both ends are now."""
        domain = self.domu.domain
        return States(domain.front_tree().state(), domain.back_tree().state())

    def take(self, *, answered: bool = True) -> list[str]:
        """Take it away; what does not let go of it in time.

        With `answered` False one end has no driver that could close it.
        """
        front, back = self._paths
        wrong = []
        self.dom0.run(["sh", "-c", _CLOSE, "sh", back], timeout=20)
        if answered:
            try:
                self.dom0.wait_until(_CLOSED, "the back end to close", CLOSED_WITHIN, back)
            except CommandTimeout:
                wrong.append(f"it is not closed {CLOSED_WITHIN:.0f} s later ({self.states()})")
        self.dom0.run(["sh", "-c", _REMOVE, "sh", front, back], timeout=20)
        return wrong + self.kept()

    def kept(self) -> list[str]:
        """The guests that keep its device for long after it was removed."""
        wrong = []
        for guest, bus, device in (
            (self.dom0, "xen-backend", self.domu.device("back")),
            (self.domu.channel, "xen", self.domu.device("front")),
        ):
            path = f"/sys/bus/{bus}/devices/{device}"
            try:
                guest.wait_until("[ ! -e $1 ]", f"{path} to be gone", CLOSED_WITHIN, path)
            except CommandTimeout:
                wrong.append(f"{guest.name} {KEEPS} {device}")
        return wrong

    @property
    def _paths(self) -> tuple[str, str]:
        return self.domu.domain.front_path(), self.domu.domain.back_path()


class DiskByXl(DiskByHand):
    """The same by xl, whose record of the domain is what it is restored from."""

    def give(self, lun: RigLun) -> States:
        self.domu.domain.attach(lun.lun, FIRST_DISK)
        return self.wait(ENDED)

    def take(self, *, answered: bool = True) -> list[str]:
        words = ["xl", "block-detach", str(self.domu.domain.domid), FIRST_DISK]
        ended = self.dom0.run(words, timeout=60, check=False)
        wrong = []
        if ended.status:
            wrong.append(f"xl can't detach it: {ended.stderr.decode(errors='replace').strip()}")
        if self.states().back != "absent":
            self.domu.force_detach(FIRST_DISK)
        return wrong + self.kept()
