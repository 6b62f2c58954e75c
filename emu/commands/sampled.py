"""`emu mutants --sample`: the part of `emu mutants` that is about mutants made by machine."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from textwrap import shorten

from rich.markup import escape

from emu.commands.options import show, table
from emu.errors import EXIT_HELD, EXIT_NOT_HELD, EXIT_RIG, InputError
from emu.images.cache import Cache
from emu.images.context import BuildContext
from emu.images.patched import End
from emu.screen import Screen, fail
from emu.suite.coverage import read_coverage
from emu.suite.mutation import survey
from emu.suite.mutation.candidates import Candidate
from emu.suite.mutation.compiling import Kind
from emu.suite.mutation.judge import Judged, Verdict
from emu.suite.mutation.reach import Covered, Named, Reach
from emu.suite.mutation.survey import Sample, SampleWish, Survey

_SHOWN = 140
"""Characters of a line in a table."""
_ENDS: dict[str, tuple[End, ...]] = {"front": ("front",), "back": ("back",)}


def show_patch(name: str) -> int:
    """Print one mutant as a patch. InputError if there is none of that name."""
    with Screen(quiet=True) as screen:
        found = survey.all_candidates(BuildContext(Cache(), screen))
    for one in found:
        if one.id == name:
            print(one.patch, end="")
            return EXIT_HELD
    raise InputError(f"there is no mutant {name}", hint="emu mutants --sample 120 --list")


def run(arguments: argparse.Namespace) -> int:
    """Draw the sample; show it, or judge it and print the score."""
    reach: Reach = Named(arguments.tests) if arguments.tests else Covered(read_coverage(Cache()))
    wish = SampleWish(
        arguments.sample,
        arguments.seed,
        _ENDS.get(arguments.driver, ("front", "back")),
        tuple(arguments.names),
        arguments.jobs,
        arguments.again,
        arguments.limit,
    )
    with Screen() as screen:
        context = BuildContext(Cache(), screen)
        sample = survey.draw(wish, reach, context)
        if isinstance(reach, Covered):
            sources = {one.source for one in sample.chosen}
            if old := [one.file for one in sources if not reach.is_of(one)]:
                screen.note(f"coverage is of an older {', '.join(sorted(old))}: emu coverage")
        if not arguments.list:
            found = survey.perform(
                wish, sample, reach, context, lambda one: screen.note(_described(one))
            )
    if arguments.list:
        _list(sample, reach, as_json=arguments.json)
        return EXIT_HELD
    if arguments.json:
        print(json.dumps(as_json(found), indent=2))
    else:
        _show(found)
    for line in sample.stale:
        fail(f"equivalent.toml: {line}")
    return status(found)


def status(found: Survey) -> int:
    """The command's exit status: a survivor counts before what could not be judged."""
    if found.of(Verdict.SURVIVED) or found.sample.stale:
        return EXIT_NOT_HELD
    return EXIT_RIG if found.of(Verdict.RIG) else EXIT_HELD


def as_json(found: Survey) -> dict[str, object]:
    """A survey, for scripts."""
    return {
        "score": round(found.score, 4),
        "counted": found.counted,
        "verdicts": {one.value: len(found.of(one)) for one in Verdict},
        "seconds": round(found.seconds),
        "candidates": len(found.sample.candidates),
        "covered": found.sample.covered,
        "compiled": {kind.value: found.sample.kinds[kind] for kind in Kind},
        "unfit": found.unfit,
        "stale": list(found.sample.stale),
        "mutants": [
            {
                **_about(one.candidate),
                "verdict": one.verdict.value,
                "test": one.test,
                "message": one.line,
                "passed": one.passed,
                "reaching": one.reaching,
                "seconds": round(one.seconds, 1),
            }
            for one in found.judged
        ],
    }


def _about(one: Candidate) -> dict[str, object]:
    return {
        "mutant": one.id,
        "file": one.short_file,
        "line": one.line,
        "function": one.function,
        "operator": one.operator,
        "diff": list(one.changed_lines),
    }


def _list(sample: Sample, reach: Reach, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps([_about(one) for one in sample.chosen], indent=2))
        return
    rows = table("mutant", "where", "function", "operator", "tests", "becomes", right=["tests"])
    for one in sample.chosen:
        tests = "=" if one.id in sample.equivalent else str(len(reach.tests_of(one)))
        cells = (one.id, one.where, one.function, one.operator, tests, _becomes(one))
        rows.add_row(*map(escape, cells))
    show(rows)
    print(_drawn(sample))


def _becomes(one: Candidate) -> str:
    """The change in one line: what is added, or what is taken away."""
    added = " ".join(row[1:].strip() for row in one.changed_lines if row[0] == "+")
    taken = " ".join(row[1:].strip() for row in one.changed_lines if row[0] == "-")
    text = f"without: {taken}" if added == ";" else added
    return shorten(text, _SHOWN, placeholder=" …")


def _drawn(sample: Sample) -> str:
    out = [f"{sample.kinds[kind]} {kind.value}" for kind in Kind if kind is not Kind.MUTANT]
    return (
        f"{len(sample.chosen)} mutants of {sample.covered} candidates on lines that tests reach "
        f"({len(sample.candidates)} in all); not taken: {', '.join(out)}"
    )


def _described(one: Judged) -> str:
    what = one.candidate
    by = f" by {one.test}" if one.test else ""
    head = f"{one.verdict.value:9} {what.id} {what.where} {what.function}: {what.operator}"
    rows = [f"{head}{by} ({one.seconds:.0f} s)", f"    {one.line}" if one.line else ""]
    if one.verdict is Verdict.SURVIVED:
        rows[1] = f"    {_becomes(what)} [{_passed(one)}]"
    return "\n".join(filter(None, rows))


def _passed(one: Judged) -> str:
    return one.line or f"passed {one.passed} of {one.reaching} tests that reach it"


def _show(found: Survey) -> None:
    killers = table("", "mutant", "where", "operator", "by", "message")
    for one in found.of(Verdict.KILLED):
        line = shorten(one.line, _SHOWN, placeholder=" …")
        what = one.candidate
        cells = (one.verdict.value, what.id, what.where, what.operator, one.test, line)
        killers.add_row(*map(escape, cells))
    show(killers)
    for verdict, title in (
        (Verdict.HUNG, "noticed by the time limit of a test alone"),
        (Verdict.EQUIVALENT, "equivalent, each for a reason"),
        (Verdict.RIG, "the rig broke"),
        (Verdict.SURVIVED, "survived"),
    ):
        its = found.of(verdict)
        if its:
            print(f"\n{len(its)} {title}:")
        for one in its:
            what = one.candidate
            by = _passed(one) if verdict is Verdict.SURVIVED else f"{one.test} {one.line}".strip()
            print(f"  {what.id} {what.where} {what.function}: {what.operator}: {by}")
            for row in what.changed_lines:
                print(f"      {row}")
    for node, message in found.unfit.items():
        fail(f"{node} fails without a mutant, and decides nothing: {message}")
    print(f"\n{_drawn(found.sample)}")
    counts = Counter(one.verdict for one in found.judged)
    words = ", ".join(f"{counts[one]} {one.value}" for one in Verdict if counts[one])
    noticed = counts[Verdict.KILLED] + counts[Verdict.HUNG]
    print(
        f"score {100 * found.score:.1f} %: {noticed} of {found.counted} noticed ({words}) "
        f"in {found.seconds / 60:.0f} min"
    )
