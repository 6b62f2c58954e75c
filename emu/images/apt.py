"""A private apt: packages of Debian's archive on any machine with apt, without root.

An archive of source packages is asked for upstream's tarballs, or for Debian's packaging: its
patches.

Its lists, cache, sources and configuration lie in one directory of ours, the list of
installed packages is empty, and of this machine's configuration only the settings for
reaching a mirror are used. apt checks the archive's signature against Debian's keyring.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from debian import deb822

from emu.deadline import Deadline
from emu.errors import InputError, RigError
from emu.images.mirrors import MIRROR, NO_APT, SECURITY, Mirrors, run_apt
from emu.progress import Progress
from emu.runprogram import find_program

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_KEPT_SETTINGS = re.compile(r"Acquire::(https?::|Check-|Max-|ForceIPv[46] )")
_NETWORK = f"is the network up? {MIRROR} names another mirror"
STALLED = 300.0
"""Seconds (before scaling) that apt may download nothing; its own time-out is 10 s, twice."""
SOURCE = "source"
"""Used in place of the architecture of a source package."""
PACKAGING = "packaging"
"""The same for Debian's part of it."""
_TARBALLS = {SOURCE: "orig", PACKAGING: "debian"}
"""What their files are called: `name_version.orig.tar.xz`."""

Depends: TypeAlias = "tuple[tuple[str, ...], ...]"
"""For each dependency the names that satisfy it."""


@dataclass(frozen=True)
class Archive:
    """Suites that are looked at together; of `target` (a suite, or empty) even backports win.

    `source`: it is their source packages that are wanted, upstream's tarball of each;
    `packaging`: of those Debian's part instead.
    """

    name: str
    suites: tuple[str, ...]
    target: str = ""
    source: bool = False
    packaging: bool = False

    @property
    def part(self) -> str:
        """Used in place of the architecture of its source packages."""
        return PACKAGING if self.packaging else SOURCE


@dataclass(frozen=True)
class Record:
    """A package as the archive's index has it; `size` is that of the .deb in bytes.

    Of a source package (`arch` is "source" or "packaging") hash and size are those of a tarball.
    `source` is the name of the source package that it is built from.
    """

    name: str
    version: str
    arch: str
    sha256: str
    size: int
    depends: Depends
    provides: tuple[str, ...]
    source: str


def parse_solution(text: str) -> list[tuple[str, str]]:
    """(name, version) of every package that `apt-get --simulate install` would install."""
    return re.findall(r"^Inst (\S+) (?:\[\S+\] )?\((\S+) ", text, re.MULTILINE)


def parse_records(text: str) -> list[Record]:
    """The stanzas of `apt-cache show`."""
    return [
        Record(
            name=stanza["Package"],
            version=stanza["Version"],
            arch=stanza["Architecture"],
            sha256=stanza["SHA256"],
            size=int(stanza["Size"]),
            depends=(*parse_depends(stanza, "Pre-Depends"), *parse_depends(stanza, "Depends")),
            provides=tuple(names[0] for names in parse_depends(stanza, "Provides")),
            source=stanza.get("Source", stanza["Package"]).partition(" ")[0],
        )
        for stanza in deb822.Packages.iter_paragraphs(text, use_apt_pkg=False)
        if "Package" in stanza
    ]


def parse_sources_index(text: str, part: str = SOURCE) -> list[Record]:
    """The stanzas of `apt-cache showsrc`; those without a tarball of that part are left out."""
    name = re.compile(rf"\S+\.{_TARBALLS[part]}\.tar\.\w+")
    return [
        Record(
            name=stanza["Package"],
            version=stanza["Version"],
            arch=part,
            sha256=file["sha256"],
            size=int(file["size"]),
            depends=(),
            provides=(),
            source=stanza["Package"],
        )
        for stanza in deb822.Sources.iter_paragraphs(text, use_apt_pkg=False)
        for file in stanza.get("Checksums-Sha256", ())
        if name.fullmatch(file["name"])
    ]


def parse_depends(stanza: deb822.Packages, field: str) -> Depends:
    """Names only: "a (>= 1), b:any | c" is (("a",), ("b", "c")); none without the field."""
    return tuple(
        tuple(choice["name"] for choice in choices)
        for choices in stanza.relations[field.lower()] or ()
    )


class Apt:
    """apt for one `Archive`, its state under `root`; not for two processes at once."""

    def __init__(self, root: Path, archive: Archive, mirrors: Mirrors) -> None:
        if not KEYRING.exists():
            raise InputError(
                f"Debian's archive keyring {KEYRING} is missing, no package can be verified",
                hint="apt-get install debian-archive-keyring",
            )
        self.root, self.archive = root.absolute(), archive
        for name in ("state/lists/partial", "cache/archives/partial", "etc", "log"):
            (self.root / name).mkdir(parents=True, exist_ok=True)
        for name in ("apt.conf.d", "auth.conf.d", "preferences.d", "sources.list.d", "trusted"):
            (self.root / "etc" / name).mkdir(exist_ok=True)
        (self.root / "state/status").touch()
        (self.root / "etc/sources.list").write_text(_sources(archive, mirrors))
        self._config = self.root / "etc/apt.conf"
        self._config.write_text(_config(self.root))

    def update(self, progress: Progress) -> None:
        """Bring the package lists up to date, or raise RigError with apt's last lines."""
        lists = self.root / "state/lists"
        what = f"package lists of {self.archive.name}"
        self._watch(
            ["apt-get", "update"],
            lambda: _size_of(lists.rglob("*")),
            lambda size: progress.tick(what, size),
            what,
        )

    def solve(self, roots: Iterable[str]) -> list[tuple[str, str]]:
        """(name, version) of `roots` and all they depend on, as apt would install them.

        A root may be name=version. Raises RigError when they can't be installed together. Of
        source packages `roots` alone, in their newest versions.
        """
        if self.archive.source:
            return [(name, version) for name in roots for version in self.versions(name)[:1]]
        target = [f"--target-release={self.archive.target}"] if self.archive.target else []
        text = self._ask(
            ["apt-get", "--simulate", "--no-install-recommends", *target, "install", *roots]
        )
        return parse_solution(text)

    def records(self, packages: Iterable[tuple[str, str]]) -> list[Record]:
        """The index's records of these (name, version); those it does not have are left out."""
        wanted = set(packages)
        found = {
            (record.name, record.version): record
            for record in self.every_record(name for name, _ in wanted)
            if (record.name, record.version) in wanted
        }
        return [found[key] for key in sorted(found)]

    def every_record(self, names: Iterable[str]) -> list[Record]:
        """The index's records of all versions of these packages; unknown names are left out."""
        asked = set(names)
        if self.archive.source:
            asked = {name for name in asked if self.versions(name)}
            text = self._ask(["apt-cache", "showsrc", *sorted(asked)]) if asked else ""
            return parse_sources_index(text, self.archive.part)
        asked &= self.names()
        text = self._ask(["apt-cache", "show", *sorted(asked)]) if asked else ""
        return parse_records(text)

    def names(self, prefix: str = "") -> set[str]:
        """The names of packages in the index, and of those that packages only mention."""
        return set(self._ask(["apt-cache", "pkgnames", *filter(None, [prefix])]).split())

    def versions(self, name: str) -> list[str]:
        """Versions of a package the mirror has now, the newest first."""
        try:
            text = self._ask(["apt-cache", "madison", name])
        except RigError:
            return []
        rows = [line.split("|") for line in text.splitlines()]
        return list(dict.fromkeys(row[1].strip() for row in rows if len(row) == 3))

    def download(
        self, packages: Iterable[tuple[str, str]], into: Path, tick: Callable[[int], None]
    ) -> None:
        """Download name=version into a directory; `tick` is called with the bytes so far.

        Files are called as apt calls them: .deb, or the tarball of a source package.
        """
        names = [f"{name}={version}" for name, version in packages]
        part = "--diff-only" if self.archive.packaging else "--tar-only"
        what = ["source", "--download-only", part] if self.archive.source else ["download"]
        self._watch(
            ["apt-get", *what, *names],
            lambda: _size_of(into.iterdir()),
            tick,
            "packages",
            cwd=into,
        )

    def _ask(self, command: list[str]) -> str:
        done = run_apt(command, env=self._environ())
        if done.status:
            raise _failed(" ".join(command[:3]), done.text + done.errors)
        return done.text

    def _watch(
        self,
        command: list[str],
        size: Callable[[], int],
        report: Callable[[int], None],
        what: str,
        cwd: Path | None = None,
    ) -> None:
        """Run a command and report how much it has downloaded: the bytes that `size` finds."""
        find_program(command[0], NO_APT)
        # If we are killed, an apt that lives on would keep its lists locked.
        setpriv = find_program("setpriv")
        command = [setpriv, "--pdeathsig", "KILL", *command]
        with tempfile.TemporaryFile("w+") as log:
            process = subprocess.Popen(
                command, env=self._environ(), cwd=cwd or self.root, text=True,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
            stalled, before = Deadline(f"getting the {what}", STALLED), -1
            try:
                while process.poll() is None:
                    if (now := size()) != before:
                        stalled, before = Deadline(f"getting the {what}", STALLED), now
                    report(now)
                    if stalled.passed:
                        raise RigError(
                            f"{stalled.what}: apt has got nothing for {stalled.seconds:.0f} s",
                            hint=_NETWORK,
                        )
                    time.sleep(0.1)
            finally:
                if process.poll() is None:
                    process.terminate()
                    process.wait()
            report(size())
            if process.returncode:
                log.seek(0)
                raise _failed(f"getting the {what}", log.read())

    def _environ(self) -> dict[str, str]:
        return {**os.environ, "APT_CONFIG": str(self._config), "LC_ALL": "C.UTF-8"}


def _config(root: Path) -> str:
    """apt.conf(5), read before the machine's own, which `Dir::Etc` then replaces."""
    lines = [
        f'Dir::State "{root}/state";',
        f'Dir::State::status "{root}/state/status";',
        f'Dir::Cache "{root}/cache";',
        f'Dir::Log "{root}/log";',
        f'Dir::Etc "{root}/etc";',
        'Dir::Etc::main "none";',
        f'Dir::Etc::trustedparts "{root}/etc/trusted";',
        'APT::Architecture "amd64";',
        'APT::Architectures { "amd64"; };',
        'APT::Sandbox::User "";',
        'APT::Update::Error-Mode "any";',
        'Acquire::Languages "none";',
        'Acquire::Retries "1";',
        'Acquire::http::Timeout "10";',
        'Acquire::https::Timeout "10";',
    ]
    dump = run_apt(["apt-config", "dump"]).text.splitlines()
    return "\n".join([*lines, *filter(_KEPT_SETTINGS.match, dump), ""])


def _sources(archive: Archive, mirrors: Mirrors) -> str:
    kind = "deb-src" if archive.source else "deb"
    return "".join(
        f"{kind} [signed-by={KEYRING}] "
        f"{mirrors.security if suite.endswith(SECURITY) else mirrors.main} {suite} main\n"
        for suite in archive.suites
    )


def _failed(what: str, output: str) -> RigError:
    lines = [line for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith(("E:", "Err:", "W:"))]
    return RigError(
        f"{what}: apt failed",
        hint=_NETWORK,
        lines=(errors or lines)[-5:],
    )


def _size_of(files: Iterable[Path]) -> int:
    total = 0
    for path in files:
        try:
            total += path.stat().st_size
        except OSError:  # renamed between the listing and the question
            continue
    return total
