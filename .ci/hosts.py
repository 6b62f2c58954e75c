"""The project's commands on fresh machines of other Debian suites: `make test-hosts`.

A machine is a root that mmdebstrap makes and the cache keeps, with the packages that `make setup`
installs there; a copy of it is entered with pivot_root. It shares this machine's kernel, network
and cache, so that only what another compiler or QEMU makes differently is made anew; with --fresh
it has neither packages nor a cache, as for a newcomer.

Everything runs in namespaces of its own for mounts and processes: nothing stays mounted, and
nothing runs on, however this ends.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from emu import paths
from emu.errors import (
    EXIT_HELD,
    EXIT_INTERRUPTED,
    EXIT_NOT_HELD,
    EmuError,
    InputError,
    RigError,
)
from emu.hosttools import HOST_PACKAGES
from emu.images import kbuild
from emu.images.cache import Cache
from emu.images.context import BuildContext
from emu.images.manifest import JSON
from emu.images.mirrors import find_mirrors
from emu.runprogram import follow, run
from emu.screen import Screen, fail

SUITES = ("bookworm", "trixie")
COMMANDS = ("make doctor", "make run", "make test-quick")
BASE = ("ca-certificates", "git", "make", "mount", "python3")
"""What a machine has on which somebody has cloned the project."""
KIND, _ARCHIVE = "host-root", "root.tar.zst"
PLACE = "/emu-xen-block"
_SETUP = paths.PACKAGE / "host-setup.sh"
_RECIPE = 1
"""Raised when the way a root is made changes the outcome; a part of cache keys."""
_ROOM = 6 << 30
"""Bytes of the disk for a machine: its packages 1.4 GiB, and what the tests write."""
_PASSED_ON = ("http_proxy", "https_proxy", "no_proxy", "PIP_INDEX_URL", "EMU_DEBIAN_MIRROR",
              "EMU_DEBIAN_SECURITY_MIRROR", "EMU_TIMEOUT_SCALE", "TERM")  # fmt: skip
_ENVIRON = ("PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LC_ALL=C.UTF-8",
            "XDG_CACHE_HOME=/cache")  # fmt: skip
_ENDS_WITHIN = 60.0
"""Seconds for an interrupted command to end; then its processes are killed."""

_OWN = """
set -e
# The first process of its namespace, or this would mount for the whole machine.
[ $$ -eq 1 ] || { echo "not in namespaces of its own" >&2; exit 125; }
"""
_UNPACK = f"""{_OWN}
zstd --quiet --decompress --stdout "$2" | tar -x -p --numeric-owner --exclude='./dev/*' -C "$1"
mkdir -p "$1$3" "$1/cache/emu-xen-block"
tar -x -C "$1$3"
# Names are resolved as on this machine.
rm -f "$1/etc/resolv.conf"
cp -L /etc/resolv.conf "$1/etc/resolv.conf"
"""
"""Fills the root $1 from the archive $2, and its directory $3 from a tar on standard input."""
_ENTER = f"""{_OWN}
root=$1 cache=$2
shift 2
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
seen() {{
	mount --bind "$1" "$root$1"
	mount -o remount,bind,ro "$root$1"
}}
seen /sys
# A network may have certificates of its own.
[ ! -d /etc/ssl/certs ] || seen /etc/ssl/certs
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
mkdir "$root/dev/pts" "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=666 devpts "$root/dev/pts"
mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
for node in null zero full random urandom tty kvm; do
	[ ! -e "/dev/$node" ] || {{
		touch "$root/dev/$node"
		mount --bind "/dev/$node" "$root/dev/$node"
	}}
done
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
for stream in stdin:0 stdout:1 stderr:2; do
	ln -s "/proc/self/fd/${{stream#*:}}" "$root/dev/${{stream%:*}}"
done
[ -z "$cache" ] || mount --bind "$cache" "$root/cache/emu-xen-block"
# Not chroot, where nobody could make a user's namespace; the machine around it is gone then.
cd "$root"
pivot_root . .
umount -l .
cd /
# This shell stays: the first process of its namespace, it reaps orphans.
status=0
env -i "$@" || status=$?
exit $status
"""
"""Runs a command in the root $1, with the cache $2 unless that is empty."""


@dataclass(frozen=True)
class Result:
    """How a command ended on a machine; seconds of wall time."""

    suite: str
    command: str
    status: int
    seconds: float


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    signal.signal(signal.SIGTERM, _interrupt)
    results: list[Result] = []
    try:
        namespaces = find_namespaces()
        for suite in arguments.suites or SUITES:
            results += on_machine(suite, arguments, namespaces)
    except EmuError as error:
        fail(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        fail("interrupted; nothing is left running or mounted")
        return EXIT_INTERRUPTED
    if arguments.json:
        print(json.dumps([vars(result) for result in results], indent=2))
    else:
        for one in results:
            said = "passed" if one.status == 0 else f"FAILED with status {one.status}"
            print(f"{one.suite:<10} {one.command:<16} {said} ({one.seconds:.0f} s)")
    return EXIT_NOT_HELD if any(result.status for result in results) else EXIT_HELD


def _parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="make test-hosts", description=__doc__)
    made.add_argument(
        "suites", nargs="*", metavar="SUITE", type=_suite, help=f"by default {', '.join(SUITES)}"
    )
    made.add_argument(
        "--command", action="append", metavar="LINE", dest="commands",
        help=f"run in the checkout there; repeatable (default: {', '.join(COMMANDS)})",
    )  # fmt: skip
    made.add_argument(
        "--fresh", action="store_true", help="without the project's packages and with no cache"
    )
    made.add_argument("--json", action="store_true", help="print the results as JSON")
    return made


def _suite(name: str) -> str:
    if name not in SUITES:
        raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(SUITES)}")
    return name


def find_namespaces() -> list[str]:
    """The command that runs another in namespaces of its own, as root or as seen from there.

    Its processes end with this one. Raises InputError where this user can make none.
    """
    # A namespace's first process takes all others with it.
    plain = ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--fork",
             "--kill-child"]  # fmt: skip
    ways = [plain]
    if os.geteuid() != 0:
        # First without --map-auto, whose helper hangs where there are no namespaces.
        ways = [[*plain, "--user", *ids] for ids in ([], ["--map-root-user", "--map-auto"])]
    hint = "run it as root, or: apt-get install uidmap, and let /etc/subuid name this user"
    failed = "this user can make no namespaces with the users of a Debian system"
    for command in ways:
        run([*command, "true"], failed, error=InputError, hint=hint, lines=3)
    return ways[-1]


def on_machine(
    suite: str, arguments: argparse.Namespace, namespaces: Sequence[str]
) -> Iterator[Result]:
    """Run the commands on a machine of `suite`, which is gone afterwards; how each ended.

    With --json what they print goes to standard error.
    """
    cache = Cache()
    with contextlib.ExitStack() as held:
        with Screen() as screen:
            context = BuildContext(cache, screen)
            archive = make_root(suite, not arguments.fresh, namespaces, context) / _ARCHIVE
            cache.need(_ROOM, f"a machine of {suite}")
            root = held.enter_context(empty_root(cache, namespaces))
            with screen.stage(f"unpacking a machine of {suite}"):
                unpack(archive, root, namespaces)
        shared = "" if arguments.fresh else str(cache.root)
        for command in arguments.commands or COMMANDS:
            print(f"== {suite}: {command}", file=sys.stderr, flush=True)
            began = time.monotonic()
            out = sys.stderr if arguments.json else None
            status = enter(root, shared, command, namespaces, out)
            yield Result(suite, command, status, round(time.monotonic() - began, 1))


def make_root(suite: str, prepared: bool, namespaces: Sequence[str], context: BuildContext) -> Path:
    """A directory with the archive of a root, made (2 minutes) unless the cache has it.

    `prepared`: with what `make setup` installs. Raises InputError when mmdebstrap fails.
    """
    mirrors = find_mirrors()
    sources = (
        f"deb {mirrors.main} {suite} main",
        f"deb {mirrors.main} {suite}-updates main",
        f"deb {mirrors.security} {suite}-security main",
    )
    inputs: dict[str, JSON] = {
        "suite": suite,
        "base": list(BASE),
        "setup": list(kbuild.digest([HOST_PACKAGES, _SETUP])) if prepared else [],
        "recipe": _RECIPE,
    }
    # What `make setup` does first, in the root.
    hooks = [
        f'--customize-hook=copy-in {shlex.quote(str(HOST_PACKAGES))} {shlex.quote(str(_SETUP))} /',
        f'--customize-hook=chroot "$1" sh /{_SETUP.name} /{HOST_PACKAGES.name}',
        f'--customize-hook=rm "$1/{_SETUP.name}" "$1/{HOST_PACKAGES.name}"',
    ]  # fmt: skip

    def build(made: Path) -> None:
        command = [
            *namespaces, "mmdebstrap", "--mode=root", "--variant=minbase", "--format=tar",
            f"--include={','.join(BASE)}", *(hooks if prepared else ()), suite,
            str(made / "root.tar"), *sources,
        ]  # fmt: skip
        with (
            context.progress.stage(f"making a machine of {suite}"),
            context.cache.scratch("mmdebstrap") as scratch,
        ):
            status, printed = follow(
                command, context.progress.tick, cwd=scratch,
                env={**os.environ, "TMPDIR": str(scratch)}, progress=context.progress,
            )  # fmt: skip
            if status:
                raise InputError(f"mmdebstrap can't make {suite}", lines=printed[-8:])
            pack = ["zstd", "--quiet", "-T0", "-3", "--rm", str(made / "root.tar")]
            run(pack, f"zstd fails on the root of {suite}", progress=context.progress)

    return context.entry(KIND, inputs, build, room=_ROOM)


@contextlib.contextmanager
def empty_root(cache: Cache, namespaces: Sequence[str]) -> Iterator[Path]:
    """An empty directory for a machine, removed afterwards with the files of its users."""
    with cache.scratch("host") as scratch:
        root = scratch / "root"
        root.mkdir(mode=0o755)
        try:
            yield root
        finally:
            if str(root) in Path("/proc/self/mountinfo").read_text():
                raise RigError(f"something is mounted in {root}, it is not removed")
            run([*namespaces, "rm", "-rf", "--one-file-system", str(root)], limit=300)


def unpack(archive: Path, root: Path, namespaces: Sequence[str]) -> None:
    """Fill `root` with a suite, and with the files that git knows or would take, as they are."""
    top = paths.checkout("make test-hosts")
    listed = run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        "this is no git checkout",
        cwd=top,
        error=InputError,
    )
    names = [name for name in listed.stdout.split(b"\0") if name]
    there = b"\0".join(name for name in names if os.path.lexists(top / os.fsdecode(name)))
    pack = ["tar", "-c", "--null", "--files-from=-", "--owner=0", "--group=0"]
    files = run(pack, "the checkout can't be read", cwd=top, data=there).stdout
    command = [*namespaces, "sh", "-c", _UNPACK, "sh", str(root), str(archive), PLACE]
    run(command, "a machine can't be unpacked", data=files)


def enter(
    root: Path, cache: str, command: str, namespaces: Sequence[str], out: TextIO | None
) -> int:
    """Run a command line in the machine's checkout, on `cache` unless empty; its exit status."""
    environ = [f"{name}={os.environ[name]}" for name in _PASSED_ON if name in os.environ]
    environ += _ENVIRON
    entered = [
        *("env", "--default-signal=INT", *namespaces, "sh", "-c", _ENTER, "sh"),
        *(str(root), cache, *environ, "sh", "-c", f"cd {PLACE} && {command}"),
    ]
    # In a session of its own: Ctrl-C reaches this process, which passes it on.
    process = subprocess.Popen(
        entered, stdin=subprocess.DEVNULL, stdout=out, start_new_session=True
    )
    try:
        return process.wait()
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_ENDS_WITHIN)
        raise
    finally:
        process.kill()  # and with it all of its namespace
        process.wait()


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
