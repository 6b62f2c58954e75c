"""Where Debian's archive is: this machine's own sources, or what mmdebstrap uses by itself."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from emu.errors import EmuError, InputError
from emu.runprogram import Output, run

MIRROR = "EMU_DEBIAN_MIRROR"
SECURITY_MIRROR = "EMU_DEBIAN_SECURITY_MIRROR"
SECURITY = "-security"
"""How the names of suites with security updates end."""
NO_APT = "the guests are made of Debian's packages: install apt, dpkg and mmdebstrap"


@dataclass(frozen=True)
class Mirrors:
    """Base URLs: of the archive proper, and of the one of security updates."""

    main: str
    security: str


def find_mirrors(environ: Mapping[str, str] = os.environ) -> Mirrors:
    """Where Debian's archive is: the environment, this machine's sources, mmdebstrap's default.

    `EMU_DEBIAN_MIRROR` is a base URL (what comes before /dists); security updates are
    looked for next to it, under the same name plus "-security", or at
    `EMU_DEBIANSECURITY_MIRROR`. Raises InputError if no mirror is known.
    """
    if main := environ.get(MIRROR, "").rstrip("/"):
        return Mirrors(main, environ.get(SECURITY_MIRROR, "").rstrip("/") or main + SECURITY)
    main = security = ""
    release = _os_release()
    if release.get("ID") == "debian":
        main, security = parse_indextargets(_local_targets(), release.get("VERSION_CODENAME", ""))
    if not (main and security):
        other_main, other_security = parse_sources(_mmdebstrap_sources())
        main, security = main or other_main, security or other_security
    if not (main and security):
        raise InputError(
            "no mirror of Debian's archive is known: neither this machine's sources nor "
            "mmdebstrap name one",
            hint=f"apt-get install mmdebstrap, or set {MIRROR} to the base URL of a mirror",
        )
    return Mirrors(main, security)


def parse_indextargets(text: str, codename: str) -> tuple[str, str]:
    """(main, security) of lines "URI release component [origin]" from apt-get indextargets.

    Either is empty if no line names it; `codename` is that of this machine's release.
    """
    found = {"": "", SECURITY: ""}
    names = {codename, "oldstable", "stable", "testing", "unstable", "sid"} - {""}
    for line in text.splitlines():
        uri, release, component, *origin = line.split()
        if component != "main" or origin not in ([], ["Debian"]) or uri.startswith("cdrom:"):
            continue
        # Before bullseye security updates were in "<release>/updates".
        for tail in found:
            if release.removesuffix(tail) in names and release.endswith(tail) and not found[tail]:
                found[tail] = uri.rstrip("/")
    return found[""], found[SECURITY]


def parse_sources(text: str) -> tuple[str, str]:
    """(main, security) of a sources.list in the one-line format; empty where it has none."""
    main = security = ""
    for line in text.splitlines():
        match = re.match(r"deb\s+(?:\[[^]]*\]\s+)?(\S+)\s+(\S+)\s", line)
        if match and match[2].endswith(SECURITY):
            security = security or match[1].rstrip("/")
        elif match:
            main = main or match[1].rstrip("/")
    return main, security


def _os_release() -> dict[str, str]:
    try:
        return platform.freedesktop_os_release()
    except OSError:
        return {}


def _local_targets() -> str:
    form = "$(REPO_URI) $(RELEASE) $(COMPONENT) $(ORIGIN)"
    done = run_apt(["apt-get", "indextargets", "--format", form, "Created-By: Packages"])
    return done.text


def _mmdebstrap_sources() -> str:
    """The sources.list it writes; it is stopped by a hook before it downloads anything."""
    hook = '--setup-hook=cat "$1"/etc/apt/sources.list "$1"/etc/apt/sources.list.d/*; false'
    skip = "--skip=check/chrootless"  # it warns root of maintainer scripts: none will run
    command = ["mmdebstrap", "--quiet", "--mode=chrootless", "--variant=custom"]
    try:
        # What a hook writes comes out on its standard error.
        return run_apt([*command, skip, hook, "bookworm", "/dev/null"], cwd=Path("/")).errors
    except EmuError:
        return ""


def run_apt(
    command: list[str], env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> Output:
    """Run a program of apt's, or mmdebstrap. Raises InputError where it is not installed."""
    return run(command, env=env, cwd=cwd, limit=120, missing=NO_APT)
