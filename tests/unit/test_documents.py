"""Commands in documents exist, with their options; what they link to exists."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from documents import (
    PLACEHOLDERS,
    Command,
    commands_of,
    documents,
    help_texts,
    made_by,
)

from emu import paths
from emu.commands.parser import parser


def every_command() -> list[Command]:
    """Those of all documents and of `--help`, each text once."""
    found = [
        command
        for path in documents()
        for command in commands_of(path.read_text(), str(path.relative_to(paths.checkout())))
    ]
    for name, text in help_texts():
        found += commands_of(text.replace("\n", " "), name)
    return list({(c.text, c.block, c.marked): c for c in found}.values())


COMMANDS = every_command()


def filled(words: list[str]) -> list[str]:
    """Placeholders replaced, ellipses gone."""
    known = (PLACEHOLDERS.get(word, word) for word in words)
    return [word.replace("…", "") for word in known if word not in ("…", "COMMAND")]


def check_emu(words: list[str]) -> None:
    status: object = 0
    try:
        parser(words).parse_args(words)
    except SystemExit as ended:
        status = ended.code
    assert status == 0, f"emu {shlex.join(words)} is refused"


def check_pytest(words: list[str], config: pytest.Config) -> None:
    """Its options are some, its paths exist, the names after -m are markers, -k matches."""
    known, unknown = config._parser.parse_known_and_unknown_args(words)
    assert not unknown, f"pytest has no {unknown}"
    for name in known.file_or_dir:
        assert (paths.checkout() / name.partition("::")[0]).exists(), name
    markers = {line.partition(":")[0] for line in config.getini("markers")}
    for name in set(re.findall(r"\w+", known.markexpr)) - {"not", "or", "and"}:
        assert name in markers, f"no marker {name}"
    tests = " ".join(
        path.read_text() for path in Path(paths.checkout(), "tests").rglob("test_*.py")
    )
    names = " ".join(path.name for path in Path(paths.checkout(), "tests").rglob("test_*.py"))
    for name in set(re.findall(r"\w+", known.keyword)) - {"not", "or", "and"}:
        assert name in names or f"{name}" in tests, f"no test matches -k {name}"


def check(words: list[str], config: pytest.Config) -> None:
    if words[0] == "make":
        for made in made_by(filled(words[1:])):
            check(made, config)
    elif words[0] == "emu":
        check_emu(filled(words[1:]))
    else:
        check_pytest(filled(words[1:]), config)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.text)
def test_command_is_accepted(command: Command, pytestconfig: pytest.Config) -> None:
    try:
        check(command.words(), pytestconfig)
    except (AssertionError, pytest.UsageError) as error:
        raise AssertionError(f"{command.where}: {command.text}: {error}") from error


def test_commands_are_found() -> None:
    found = {(command.text, command.block, command.marked) for command in COMMANDS}
    assert ("make run", True, False) in found
    assert ("make test", True, True) in found
    assert any("cover-letter" in command.where for command in COMMANDS)
    assert any(command.where == "emu replay --help" for command in COMMANDS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("emu run --no-such-option", "is refused"),
        ("emu nosuch", "is refused"),
        ("make no-such-target", "No rule to make target"),
        ("make run ARGS='--kernal lab'", "is refused"),
        ("make test ARGS=--no-such-option", "pytest has no"),
        ("make test ARGS=tests/nowhere", "tests/nowhere"),
        ("pytest -m nosuch", "no marker nosuch"),
    ],
)
def test_wrong_command_is_found(text: str, message: str, pytestconfig: pytest.Config) -> None:
    (command,) = commands_of(f"Run `{text}`.", "README.md")
    with pytest.raises(AssertionError, match=message):
        check(command.words(), pytestconfig)


def test_blocks_and_marks_are_told_apart() -> None:
    text = """Text with `emu cache` and `git am`.

    make run    # a comment
    make test   # long: not run by a test
    emu --cache/  is a path

<!-- not run by a test: needs QEMU -->

    .venv/bin/emu replay

More, `emu
images`.

```sh
emu doctor
```
"""
    found = [(c.text, c.block, c.marked) for c in commands_of(text, "x")]
    assert found == [
        ("make run", True, False),
        ("make test", True, True),
        ("emu --cache/  is a path", True, False),
        (".venv/bin/emu replay", True, True),
        ("emu doctor", True, False),
        ("emu cache", False, False),
        ("emu images", False, False),
    ]


WORKFLOWS = sorted((paths.checkout() / ".github/workflows").glob("*.yml"))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: str(path.name))
def test_commands_of_workflows_are_accepted(path: Path, pytestconfig: pytest.Config) -> None:
    text = path.read_text().replace("${{ matrix.run }}", "")
    lines = (re.sub(r"^[- ]*(run:)?", "", line).strip() for line in text.splitlines())
    found = [line for line in lines if re.match(r"(make|\.venv/bin/emu|\.ci/\w+)\b", line)]
    assert found
    for line in found:
        words = shlex.split(line.partition(" > ")[0])
        if words[0].startswith(".ci/"):
            assert (paths.checkout() / words[0]).exists(), line
        else:
            check([words[0].removeprefix(".venv/bin/"), *words[1:]], pytestconfig)


@pytest.mark.parametrize("path", documents(), ids=lambda path: str(path.name))
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text()):
        if "://" not in target and not target.startswith("mailto:"):
            assert (path.parent / target).exists(), f"{path}: {target}"
