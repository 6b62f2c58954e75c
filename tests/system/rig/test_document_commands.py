"""The commands of documents and cover letters, as a reader copies them.

Those that a document marks as not run by a test are left out: see tests/support/documents.py.
Behind `make` its set-up is left out too: the tests run in what it has set up.
"""

from __future__ import annotations

import shlex

import pytest
from documents import Command, commands_of, documents, made_by
from emu_command import run_emu

from emu import paths
from emu.errors import EXIT_HELD

RUN = {
    command.text: command
    for path in documents()
    for command in commands_of(path.read_text(), str(path.relative_to(paths.checkout())))
    if command.block and not command.marked
}


@pytest.mark.timeout(2700)  # it may have to build the lab kernel
@pytest.mark.parametrize("command", RUN.values(), ids=list(RUN))
def test_command_of_a_document_works(command: Command, artifacts: object) -> None:
    words = command.words()
    (made,) = made_by(words[1:]) if words[0] == "make" else [words]
    assert made[0] == "emu", f"{command.where}: mark {command.text!r} as not run by a test"
    done = run_emu(*made[1:], timeout=2600)
    assert done.returncode == EXIT_HELD, f"{command.where}: {shlex.join(made)}\n{done.stderr}"
