"""What a kernel is configured from: the lab's fragments, a file of somebody's, what is added."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from emu.errors import InputError
from emu.images import configuration
from emu.images.configuration import Configuration, completed, for_tree
from emu.images.kconfig import Completion, Requirements, read_config
from emu.images.kernel_specs import completion, requirements
from emu.progress import Progress

WHOLE = """\
#
# Automatically generated file; DO NOT EDIT.
#
CONFIG_CC_IS_GCC=y
CONFIG_X86=y
CONFIG_LOCALVERSION="-mine"
CONFIG_XEN=y
# CONFIG_XEN_PVH is not set
CONFIG_SYSTEM_TRUSTED_KEYS="debian/certs/debian-uefi-certs.pem"
"""


class Notes(Progress):
    def __init__(self) -> None:
        self.lines = list[str]()

    def note(self, line: str) -> None:
        self.lines.append(line)


def kconfig(tree: Path, drops: tuple[str, ...] = ()) -> Callable[..., list[str]]:
    """A kconfig that takes everything but some options, and selects what is selected in Linux."""

    def make(target: str, *variables: str) -> list[str]:
        source = tree / ".config"
        if variables:
            source = Path(variables[0].partition("=")[2])
        taken = read_config(source.read_text()) | {"CONFIG_HIBERNATE_CALLBACKS": "y"}
        lines = [f"{name}={value}\n" for name, value in taken.items() if name not in drops]
        (tree / ".config").write_text("".join(line for line in lines if not line.endswith("=n\n")))
        return []

    return make


def test_only_what_is_missing_is_added_and_what_is_a_module_may_stay_one() -> None:
    requires = Requirements(("CONFIG_A", "CONFIG_B"), ("CONFIG_FRONT",), ("CONFIG_C", "CONFIG_D"))
    also = Completion(("CONFIG_E", "CONFIG_F"), (("CONFIG_KEYS", '""'), ("CONFIG_SIG", "n")))
    given = {
        "CONFIG_A": "y", "CONFIG_B": "m", "CONFIG_FRONT": "y", "CONFIG_C": "m", "CONFIG_E": "m",
        "CONFIG_KEYS": '"debian/certs"', "CONFIG_OTHER": "y",
    }  # fmt: skip
    assert completed(given, requires, also) == {
        "CONFIG_B": "y", "CONFIG_FRONT": "m", "CONFIG_D": "y", "CONFIG_F": "y", "CONFIG_KEYS": '""',
    }  # fmt: skip
    assert completed({}, Requirements((), (), ()), Completion((), also.replaced)) == {}


def test_whole_config_is_completed_and_says_what_was_added(tmp_path: Path) -> None:
    given = tmp_path / "mine"
    given.write_text(WHOLE)
    wanted = for_tree("7.3", given)
    assert wanted.whole
    notes = Notes()
    made = wanted.apply(tmp_path, kconfig(tmp_path), "linux", notes)
    final = read_config((tmp_path / ".config").read_text())
    assert (final["CONFIG_LOCALVERSION"], final["CONFIG_XEN_PVH"]) == ('"-mine"', "y")
    assert final["CONFIG_SYSTEM_TRUSTED_KEYS"] == '""'
    assert made["from"] == f"{given}, completed"
    assert isinstance(made["added"], dict)
    assert made["added"]["CONFIG_XEN_BLKDEV_FRONTEND"] == "m"
    assert "CONFIG_XEN" not in made["added"]
    (line,) = notes.lines
    assert line.startswith(f"{given}: CONFIG_")
    assert line.endswith("more were set")
    assert given.read_text() == WHOLE


def test_option_that_a_tree_does_not_take_is_named_with_what_it_became(tmp_path: Path) -> None:
    given = tmp_path / "mine"
    given.write_text(WHOLE)
    drops = ("CONFIG_XEN_PVH", "CONFIG_XEN_BLKDEV_BACKEND")
    with pytest.raises(InputError, match=r"linux, configured with .* lacks what") as refused:
        for_tree("7.3", given).apply(tmp_path, kconfig(tmp_path, drops), "linux", Progress())
    assert refused.value.lines == (
        "CONFIG_XEN_PVH=y: it is n",
        "CONFIG_XEN_BLKDEV_BACKEND=m: it is n",
    )


def test_labs_option_that_a_tree_does_not_know_is_a_note(tmp_path: Path) -> None:
    drop = ("CONFIG_DM_FLAKEY",)
    notes = Notes()
    wanted = for_tree("7.3", None)
    made = wanted.apply(tmp_path, kconfig(tmp_path, drop), "linux", notes)
    assert notes.lines == ["linux: kconfig did not take CONFIG_DM_FLAKEY=m became n"]
    assert (made["from"], made["added"]) == ("lab configuration", {})
    # A name of its own is in the place of the lab's suffix.
    assert read_config((tmp_path / ".config").read_text())["CONFIG_LOCALVERSION"] == '""'
    with pytest.raises(InputError, match="did not take 1 of"):
        Configuration(wanted.fragments).apply(
            tmp_path, kconfig(tmp_path, drop), "lab-7.3", Progress()
        )
    with pytest.raises(InputError, match="lacks what this rig needs"):
        wanted.apply(tmp_path, kconfig(tmp_path, ("CONFIG_XENFS",)), "linux", Progress())


def test_fragment_comes_after_the_labs(tmp_path: Path) -> None:
    given = tmp_path / "kasan.config"
    given.write_text("CONFIG_KASAN=y\n# CONFIG_DM_FLAKEY is not set\n")
    wanted = for_tree("6.1", given)
    assert not wanted.whole
    made = wanted.apply(tmp_path, kconfig(tmp_path), "linux", Progress())
    final = read_config((tmp_path / ".config").read_text())
    assert (final["CONFIG_KASAN"], final.get("CONFIG_DM_FLAKEY", "n")) == ("y", "n")
    assert made["from"] == f"lab configuration and {given}"


@pytest.mark.parametrize(
    ("line", "fragments"),
    [
        ("5.10", ["lab.config", "lab-6.1.config"]),
        ("6.1", ["lab.config", "lab-6.1.config"]),
        ("6.11", ["lab.config", "lab-6.1.config"]),
        ("6.18", ["lab.config"]),
        ("7.3", ["lab.config", "lab-7.3.config"]),
        ("8.0", ["lab.config", "lab-7.3.config"]),
    ],
)
def test_lab_configuration_is_that_of_the_line_before(line: str, fragments: list[str]) -> None:
    assert [path.name for path in for_tree(line, None).fragments] == fragments


def test_configuration_counts_in_the_key(tmp_path: Path) -> None:
    given = tmp_path / "mine"
    given.write_text(WHOLE)
    keys = [str(for_tree("7.3", one).inputs()) for one in (None, given)]
    given.write_text(WHOLE + "CONFIG_KASAN=y\n")
    keys.append(str(for_tree("7.3", given).inputs()))
    given.write_text("CONFIG_KASAN=y\n")
    keys.append(str(for_tree("7.3", given).inputs()))
    assert len(set(keys)) == 4


def test_what_is_no_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no configuration .*nowhere: No such file"):
        for_tree("7.3", tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"there is no configuration .*: Is a directory"):
        for_tree("7.3", tmp_path)
    other = tmp_path / "notes.txt"
    other.write_text("what I want\nCONFIG_SHELL := sh\nexport CONFIG_SHELL\n")
    with pytest.raises(InputError, match="is no kernel configuration"):
        for_tree("7.3", other)


def test_what_the_rig_needs_is_in_the_labs_configuration_or_added() -> None:
    """The list of kernels.toml names no option that the lab's kernels have found no use for."""
    lab = read_config("".join(p.read_text() for p in for_tree("6.12", None).fragments))
    asked = completion()
    assert [option for option in asked.built_in if lab.get(option) != "y"] == []
    assert not set(asked.built_in) & set(requirements().built_in)
    assert configuration.NOTES
