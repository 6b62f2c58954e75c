"""A back end that lies on the ring: the front end takes no answer that can't be one.

The back end is the series' with a patch by which a test says what the next answer is
(back-ends/told-answers.patch). The domU goes on, and so do its other disks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from driver_checks import READ_MANY, READ_ONE
from told_answers import Command, ToldBackEnd

from emu.deadline import Deadline, poll
from emu.rig import RigDomu, RigHost, RigLun

WRITE_ONE = "dd if=/dev/zero of=/dev/{} bs=4k count=1 oflag=direct seek=512"
WRITE_MANY = "dd if=/dev/zero of=/dev/{} bs=128k count=1 oflag=direct seek=16"
READ, WRITE, FLUSH, DISCARD = 0, 1, 3, 5


@dataclass(frozen=True)
class Lie:
    """What the request of a command is answered with, and how the front end reports that."""

    answer: str
    reported: str
    command: str = READ_ONE


NO_SUCH, NOT_ASKED = "response has incorrect id", "response references no pending request"
OTHER, TOO_MANY = "response has wrong operation", "illegal number of responses"
LIES = {
    "id one past the ring": Lie("answer 32 = =", NO_SUCH),
    "id 2^32 more than the true one": Lie("answer +4294967296 = =", NO_SUCH),
    "largest id": Lie("answer -1 = =", NO_SUCH),
    "id that is free": Lie("answer +1 = =", NOT_ASKED),
    "read answered as a write": Lie("answer = 1 =", OTHER),
    "read answered as a discard": Lie("answer = 5 =", OTHER),
    "read answered as what is none": Lie("answer = 99 =", OTHER),
    "indirect read answered as indirect": Lie("answer = 6 =", OTHER, READ_MANY),
    "indirect read answered as a write": Lie("answer = 1 =", OTHER, READ_MANY),
    "write answered as a read": Lie("answer = 0 =", OTHER, WRITE_ONE),
    "write answered as a flush": Lie("answer = 3 =", OTHER, WRITE_MANY),
    # In the place of the answer there is the request, still.
    "answer that was not written": Lie("ahead 1", NO_SUCH),
    "a ring of answers to one request": Lie("ahead 32", NO_SUCH),
    "more answers than the ring has": Lie("ahead 33", TOO_MANY),
    "answers taken back": Lie("ahead -1", TOO_MANY),
}


def answered(told: ToldBackEnd, domu: RigDomu, disk: str, lie: Lie) -> tuple[Command, str]:
    """A command whose request is answered so, and what is wrong with what the front end says."""
    domu.log.mark()
    told.answer(disk, lie.answer)
    command = Command(domu, lie.command.format(disk))
    if not told.wait():
        return command, "no request came"
    lines = poll(
        lambda: domu.log.lines(f"{disk}: "),
        Deadline("the front end's report", 3),
        pause=0.05,
    )
    if not any(lie.reported in line for line in lines):
        return command, f"the front end reports {lines or 'nothing'}, not {lie.reported!r}"
    if command.status() == 0:
        return command, "the request succeeded"
    return command, ""


def told_wrong(wrong: Mapping[str, str]) -> str:
    return "\n".join(f"{name}: {what}" for name, what in wrong.items())


def test_answer_that_none_can_be_is_not_taken(host: RigHost, lun: RigLun) -> None:
    """Each lie is told on a disk of its own: the front end gives that one up, says why in a
    line, and refuses what is asked of it from then on.

    A stock front end reports the same, and lets later requests wait for ever.
    """
    told = ToldBackEnd(host)
    domu = host.create(disk=lun)
    written = domu.fill()
    disks = {}
    for name in LIES:
        domu.attach(lun)
        disks[name] = domu.disks[-1]
    wrong = {}
    for name, disk in disks.items():
        _, what = answered(told, domu, disk, LIES[name])
        later = Command(domu, READ_ONE.format(disk))
        if what:
            wrong[name] = what
        elif (status := later.wait()) != 1:
            wrong[name] = f"a later request {'waits for ever' if status is None else 'succeeds'}"
        elif domu.sum() != written:
            wrong[name] = "another disk reads other data than was written"
    assert not wrong, told_wrong(wrong)


STATUSES = (1, 5, -1, -2, -3, -17, 32767, -32768)
"""Of which blkif.h defines -1, an error, and -2, an operation that is not supported."""


def test_status_that_is_not_okay_is_an_error(host: RigHost, lun: RigLun) -> None:
    """Whatever it is: the caller gets an error, and the disk goes on."""
    told = ToldBackEnd(host)
    domu = host.create(disk=lun)
    written = domu.fill()
    wrong = {}
    for status in STATUSES:
        for name, script in (
            ("read", READ_ONE),
            ("indirect read", READ_MANY),
            ("write", WRITE_ONE),
            ("indirect write", WRITE_MANY),
        ):
            told.answer("xvda", f"answer = = {status}")
            ended = Command(domu, script.format("xvda")).wait()
            if ended != 1:
                how = "never ended" if ended is None else "succeeded"
                wrong[f"{name} answered with status {status}"] = how
    assert not wrong, told_wrong(wrong)
    assert domu.sum() == written, "later reads have other data than was written"


def test_answers_come_in_any_order_and_without_an_event(host: RigHost, lun: RigLun) -> None:
    told = ToldBackEnd(host)
    domu = host.create(disk=lun)
    domu.fill()
    parts = "for i in 0 1 2 3; do dd if=/dev/xvda bs=4k count=1 skip=$i iflag=direct; done"
    whole = domu.run(f"({parts}) 2>/dev/null | sha256sum").split()[0]
    wrong = {}
    for order in ("first", "last"):
        commands = []
        for part in range(4):
            told.answer("xvda", "keep")
            read = f"dd if=/dev/xvda of=/tmp/part.{part} bs=4k count=1 skip={part} iflag=direct"
            commands.append(Command(domu, read))
            assert told.wait(), "no request came"
        assert domu.outstanding() == 4, "a request whose answer was kept is not outstanding"
        # Events that announce nothing: the kept answers are still to come.
        told.answer("xvda", "event;event;answer = = =;event")
        domu.run(READ_ONE.format("xvda"))
        if early := [each for each in commands if each.status() is not None]:
            wrong[f"{order} first"] = f"{len(early)} reads ended before they were answered"
        told.give(order)
        ended = [each.wait() for each in commands]
        if ended != [0] * 4:
            wrong[f"{order} first"] = f"four reads ended as {ended} (None: never)"
        elif domu.run("cat /tmp/part.[0123] | sha256sum").split()[0] != whole:
            wrong[f"{order} first"] = "reads got data of one another"
    told.answer("xvda", "quiet;answer = = =;loud")
    quiet = Command(domu, READ_ONE.format("xvda"))
    assert told.wait(), "no request came"
    told.answer("xvda", "answer = = =;event")
    loud = Command(domu, READ_ONE.format("xvda"))
    if (ended := [quiet.wait(), loud.wait()]) != [0, 0]:
        wrong["an answer without an event"] = f"after the next event reads ended as {ended}"
    assert not wrong, told_wrong(wrong)


UNMAP = "blkdiscard -o 1048576 -l 65536 /dev/xvda"
DISCARDS = {-1: 1, 5: 1, -2: 0}
"""How blkdiscard ends by the status of the answer. Of the last one Linux makes a success, as a
discard is advice; the disk takes none any more."""


def test_discard_that_is_not_okay_is_an_error(host: RigHost, lun: RigLun) -> None:
    """A status that says "not supported" is believed; any other is of this one discard."""
    told = ToldBackEnd(host)
    domu = host.create(disk=lun)
    wrong = {}
    for status, expected in DISCARDS.items():
        told.answer("xvda", f"answer = = {status}")
        if (ended := Command(domu, UNMAP).wait()) != expected:
            wrong[f"status {status}"] = f"blkdiscard ended with {ended}, not {expected}"
        most = int(domu.queue_limits("discard_max_bytes")["discard_max_bytes"])
        if (most > 0) != (status != -2):
            wrong[f"limit after status {status}"] = f"discards of {most} bytes are possible"
    told.answer("xvda", "")
    since = lun.mark()
    if (again := Command(domu, UNMAP).wait()) != 1:
        wrong["a discard after all"] = f"ended with {again}"
    if came := [str(each) for each in lun.requests(since) if each.operation == "unmap"]:
        wrong["discards that were given up"] = f"are sent: {came}"
    assert not wrong, told_wrong(wrong)
