"""What is generated from the parser: completion for shells, the manual page."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from emu import cli, paths
from emu.commands.completion import SHELLS
from emu.commands.parser import COMMANDS

COMPLETE = """
eval "$(cat)"
function=$(complete -p emu | sed 's/.* -F \\([^ ]*\\) .*/\\1/')
COMP_WORDS=(%s)
COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
"$function"
printf '%%s\\n' "${COMPREPLY[@]}"
"""


def completed(script: str, *words: str) -> set[str]:
    """What bash offers for the last of `words`."""
    line = " ".join(shlex.quote(word) for word in words)
    done = subprocess.run(
        ["bash", "-c", COMPLETE % line], input=script, capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_bash_completes_commands_and_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    assert completed(script, "emu", "ru") == {"run", "runs"}
    assert set(COMMANDS) <= completed(script, "emu", "")
    assert completed(script, "emu", "run", "--ring") == {"--ring-pages"}
    assert completed(script, "emu", "shell", "dom") == {"dom0", "domu"}


@pytest.mark.parametrize("shell", SHELLS)
def test_completion_knows_every_command(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert [command for command in COMMANDS if command not in script] == []


def test_manual_page_has_every_command(tmp_path: Path) -> None:
    make = ["make", "--dry-run", "--no-print-directory", "man"]
    done = subprocess.run(make, cwd=paths.checkout(), capture_output=True, text=True, check=True)
    _, _, words = done.stdout.replace("\\\n", " ").rpartition("argparse-manpage ")
    page = tmp_path / "emu.1"
    made = [*shlex.split(words)[:-1], str(page)]
    subprocess.run([Path(sys.executable).parent / "argparse-manpage", *made], check=True)
    text = page.read_text().replace("\\-", "-")
    assert "emu - the Xen block stack in QEMU" in text
    assert [c for c in COMMANDS if f"emu {c}" not in text] == []
    if shutil.which("groff"):
        checked = subprocess.run(
            ["groff", "-man", "-Kutf8", "-Tutf8", "-z", "-ww", str(page)],
            capture_output=True,
            text=True,
            check=True,
        )
        assert "error" not in checked.stderr
