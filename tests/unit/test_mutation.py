"""Mutants made by machine: what is changed, under which name, which ones are in a sample."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emu.errors import InputError
from emu.images.patching import apply_patch
from emu.suite.mutation.candidates import Candidate, candidates, in_random_order
from emu.suite.mutation.equivalents import changed_text, read_equivalents, stale
from emu.suite.mutation.source import Source

FILE = "drivers/block/xen-blkfront.c"

FRONT = """\
static DEFINE_MUTEX(lock);

static int __init first_one(struct thing *one, int err)
{
	unsigned int i, n = 3;

	if (err)
		goto out;
	for_each_part(one, part, i) {
		/* a comment */
		part->flags = WANTED | MORE;
		if (part->used >= n && !part->gone)
			count_up(one, part);
	}
	pr_debug("n is %u\\n", n + 1);
	BUG_ON(n == 7);
	wmb();
	return 0;
out:
	return err;
}

static struct thing *second(void)
{
	do {
		one->left -= 1;
	} while (one->left);
	return list_first_entry(&one->list, struct thing, node);
}
"""


def made_of(body: str, head: str = "static int f(void)") -> list[tuple[str, str]]:
    """What is made of a function with this body: operators, and the changed bodies."""
    before = f"{head}\n{{\n"
    source = Source(FILE, f"{before}{body}\n}}\n".encode())
    found = []
    for one in candidates([source]):
        changed = one.content.decode()
        assert changed.startswith(before)
        assert changed.endswith("\n}\n")
        found.append((one.operator, changed[len(before) : -3]))
    return found


def test_first_statement_that_is_done_no_more_is_known() -> None:
    body = "if (a) {\n\t/* why */\n\tb();\n}\nwhile (c)\n\td();\nx = e ? 1 : 2;"
    source = Source(FILE, f"static void f(void)\n{{\n{body}\n}}\n".encode())
    then = [one.then for one in candidates([source]) if one.operator == "condition false"]
    assert then == [5, 8, 9]


@pytest.mark.parametrize(
    ("condition", "known"),
    [
        ("a || b", True),
        ("unlikely(a || b)", True),
        ("(a || b) && (c)", True),
        ("unlikely(a || b) || c", True),
        ("!(a || b) && c", False),
        ("f(a || b)", False),
        ("(a || b) == c", False),
    ],
)
def test_what_is_done_less_often_is_known(condition: str, known: bool) -> None:
    """By an operand or a connective that is weaker; not where it may be done more often."""
    source = Source(FILE, f"static void f(void)\n{{\nif ({condition})\n\tg();\n}}\n".encode())
    of_or = ("operand dropped", "connective")
    made = [one for one in candidates([source]) if one.operator in of_or and "&&" not in one.old]
    (then,) = {one.then for one in made if one.old in ("a || b", "||")}
    assert then == (4 if known else None)


@pytest.mark.parametrize(
    ("body", "operator", "changed"),
    [
        ("if (err) stop();", "condition negated", {"if (!(err)) stop();"}),
        ("if (err) stop();", "condition true", {"if ((err) || 1) stop();"}),
        ("if (err) stop();", "condition false", {"if ((err) && 0) stop();"}),
        ("while (a) b();", "condition negated", {"while (!(a)) b();"}),
        ("while (a) b();", "condition false", {"while ((a) && 0) b();"}),
        ("while (a) b();", "condition true", set()),
        ("do b(); while (a);", "condition negated", {"do b(); while (!(a));"}),
        ("for (;a;) b();", "condition false", {"for (;(a) && 0;) b();"}),
        ("x = a ? b : c;", "condition negated", {"x = !(a) ? b : c;"}),
        ("x = a < b;", "bound", {"x = a <= b;"}),
        ("x = a >= b;", "bound", {"x = a > b;"}),
        ("x = a == b;", "bound", {"x = a != b;"}),
        ("if (a == b) c();", "bound", set()),
        ("if (a == b && c) d();", "bound", {"if (a != b && c) d();"}),
        ("if (a && b) c();", "connective", {"if (a || b) c();"}),
        ("if (a && b) c();", "operand dropped", {"if (a) c();", "if (b) c();"}),
        ("x = a + b;", "arithmetic", {"x = a - b;"}),
        ("x = a + b;", "off by one", {"x = (a + b) + 1;"}),
        ("x = a << b;", "arithmetic", {"x = a >> b;"}),
        ("x += a;", "arithmetic", {"x -= a;"}),
        ("x |= A;", "arithmetic", {"x = A;"}),
        ("i++;", "arithmetic", {"i--;"}),
        ("x = A | B;", "flag dropped", {"x = A;", "x = B;"}),
        ("x = a & ~B;", "flag dropped", {"x = a;"}),
        ("x = a & ~B;", "sign dropped", {"x = a & B;"}),
        ("x = !a;", "sign dropped", {"x = a;"}),
        ("if (!a) b();", "sign dropped", set()),
        ("x = f(a, 1);", "constant", {"x = f(a, 0);"}),
        ("x = f(a, 7u);", "constant", {"x = f(a, (7u + 1));"}),
        ("x = true;", "constant", {"x = false;"}),
        ("f(a, b);", "call left out", {";"}),
        ("x = a;", "assignment left out", {";"}),
        ("f(a,\n  b);", "call left out", {";\n"}),
        ("switch (a) { case 1: b(); break; }", "break left out", {"switch (a) { case 1: b(); ; }"}),
        ("while (a) { if (b) continue; }", "continue left out", {"while (a) { if (b) ; }"}),
        ("goto out;", "goto left out", {";"}),
        ("return;", "return left out", {";"}),
        ("return 0;", "value returned", {"return -EINVAL;"}),
        ("return err;", "value returned", {"return 0;"}),
        ("return -ENOMEM;", "value returned", {"return 0;"}),
        ("f(a, b, 1);", "arguments swapped", {"f(b, a, 1);"}),
        ("f(a, a);", "arguments swapped", set()),
        ("x = min(a, b);", "arguments swapped", set()),
        ("f(one->a, two->b);", "arguments swapped", {"f(two->b, one->a);"}),
    ],
)
def test_operator(body: str, operator: str, changed: set[str]) -> None:
    found = [text for name, text in made_of(body) if name == operator]
    assert set(found) == changed, f"{operator} makes {found} of {body}"
    assert len(found) == len(changed), f"{operator} makes the same twice of {body}"


@pytest.mark.parametrize(
    ("head", "value", "changed"),
    [
        ("static bool f(void)", "true", "false"),
        ("static bool f(void)", "a > b", "!(a > b)"),
        ("static inline unsigned int f(void)", "0", "1"),
        ("static struct thing *f(void)", "one", "NULL"),
        ("static irqreturn_t f(int irq)", "IRQ_HANDLED", "IRQ_NONE"),
        ("static blk_status_t f(void)", "BLK_STS_OK", "BLK_STS_IOERR"),
        ("static blk_status_t f(void)", "BLK_STS_NOTSUPP", "BLK_STS_OK"),
    ],
)
def test_value_returned(head: str, value: str, changed: str) -> None:
    found = [text for name, text in made_of(f"return {value};", head) if name == "value returned"]
    assert found == [f"return {changed};"]


@pytest.mark.parametrize(
    "body",
    [
        'pr_debug("%u\\n", a + 1);',
        'dev_warn(&one->dev, "no %s", a ? b : c);',
        "BUG_ON(a != b);",
        "WARN_ON_ONCE(a && b);",
        "lockdep_assert_held(&one->lock);",
        "might_sleep();",
        "virt_rmb();",
        "cond_resched();",
        "int a[4];",
        "/* if (a) b(); */",
        "while (1) ;",
        "do { } while (0);",
    ],
)
def test_left_alone(body: str) -> None:
    assert made_of(body) == []


def test_a_condition_is_looked_at_beside_what_is_left_alone() -> None:
    assert ("condition negated", "if (!(a)) pr_warn(b + c);") in made_of("if (a) pr_warn(b + c);")
    assert len(made_of("if (a) pr_warn(b + c);")) == 3


def test_functions_with_the_kernels_words() -> None:
    (source,) = [Source(FILE, FRONT.encode())]
    assert [(one.name, one.returns) for one in source.functions()] == [
        ("first_one", "int"),
        ("second", "struct thing *"),
    ]


def test_each_place_of_a_function() -> None:
    found = candidates([Source(FILE, FRONT.encode())])
    lines = {one.line for one in found}
    assert lines == {5, 7, 8, 11, 12, 13, 18, 20, 26, 27, 28}
    assert not [one for one in found if "for_each_part" in one.old], "a loop is no call"
    assert {one.end for one in found} == {"front"}


# -- names, texts, patches


def named(text: str) -> dict[str, Candidate]:
    found = candidates([Source(FILE, text.encode())])
    assert len({one.id for one in found}) == len(found), "two candidates have one name"
    return {one.id: one for one in found}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("static DEFINE_MUTEX(lock);", "static DEFINE_MUTEX(lock);\nint more(void)\n{\n\tf(a);\n}"),
        ("\t\t/* a comment */\n", ""),
        ("one->left -= 1;", "one->right = 2;"),
        ("\tif (err)", "\tif (one->late)\n\t\treturn -EIO;\n\tif (err)"),
        ("part->flags = WANTED | MORE;", "part->flags =  WANTED  | MORE;"),
    ],
    ids=["function before", "comment", "function behind", "line before", "white space"],
)
def test_names_stay_when_something_else_changes(old: str, new: str) -> None:
    before, after = named(FRONT), named(FRONT.replace(old, new))
    untouched = {one.id for one in before.values() if one.source.line(one.line) not in old}
    assert len(untouched) > 20
    assert untouched <= after.keys()


def test_names_go_with_their_line() -> None:
    before, after = named(FRONT), named(FRONT.replace("part->used >= n", "part->used >= m"))
    gone = {before[name].line for name in before.keys() - after.keys()}
    assert gone == {12}


def test_equal_lines_have_names_of_their_own() -> None:
    found = named("static int f(void)\n{\n\tg(a);\n\tg(a);\n}\n")
    assert [one.line for one in found.values()] == [3, 4]


def test_a_patch_makes_the_mutant(tmp_path: Path) -> None:
    for number, one in enumerate(named(FRONT).values()):
        tree = tmp_path / str(number)
        (tree / FILE).parent.mkdir(parents=True)
        (tree / FILE).write_text(FRONT)
        patch = tree / "one.patch"
        patch.write_text(one.patch)
        apply_patch(patch, tree)
        assert (tree / FILE).read_bytes() == one.content
        assert one.content.count(b"\n") == FRONT.count("\n"), "lines have moved"
        assert one.content != FRONT.encode()
        assert one.patch.startswith(f"{one.function} (xen-blkfront.c:{one.line}): {one.operator}")


STATEMENTS = st.sampled_from(
    [
        "if (a)\n\t\tb();",
        "x = a | B;",
        "f(a,\n\t  b);",
        "i++;",
        "return 0;",
        "while (a < b)\n\t\ti--;",
    ]
)


@given(st.lists(st.lists(STATEMENTS, min_size=1, max_size=6), min_size=1, max_size=4))
def test_candidates_of_any_source(functions: list[list[str]]) -> None:
    text = "\n".join(
        f"static int f{n}(void)\n{{\n" + "".join(f"\t{one}\n" for one in body) + "}\n"
        for n, body in enumerate(functions)
    )
    found = named(text)
    for one in found.values():
        assert one.content.count(b"\n") == text.count("\n")
        start, end = one.edit.start, one.edit.end
        assert one.content.startswith(text[:start].encode())
        assert one.content.endswith(text[end:].encode())


# -- the order


def many(functions: int = 5, each: int = 8) -> list[Candidate]:
    text = "".join(
        f"static int f{n}(void)\n{{\n"
        + "".join(f"\tg{line}(a);\n" for line in range(each * (n + 1)))
        + "}\n"
        for n in range(functions)
    )
    return candidates([Source(FILE, text.encode())])


def test_the_order_is_that_of_the_seed() -> None:
    found = many()
    once = in_random_order(found, 1)
    assert once == in_random_order(list(reversed(found)), 1)
    assert once != in_random_order(found, 2)
    assert sorted(one.id for one in once) == sorted(one.id for one in found)
    assert once != found
    of_one = [[c.id for c in in_random_order(found, n) if c.function == "f3"] for n in (1, 2)]
    assert of_one[0] != of_one[1], "every seed has the same order in a function"


@given(st.integers(0, 10_000), st.integers(1, 120))
def test_each_function_has_its_share_of_any_sample(seed: int, count: int) -> None:
    found = many()
    whole = Counter(one.function for one in found)
    chosen = Counter(one.function for one in in_random_order(found, seed)[:count])
    for function, number in whole.items():
        share = count * number / len(found)
        assert abs(chosen[function] - share) <= 3, f"{function}: {chosen[function]}, not {share}"


def test_one_candidate_more_keeps_the_order_of_the_others() -> None:
    found = many()
    before = [one.id for one in in_random_order(found[1:], 5) if one.function != found[0].function]
    after = [one.id for one in in_random_order(found, 5) if one.function != found[0].function]
    assert before == after


# -- equivalent.toml


def entry(one: Candidate, **changes: str) -> str:
    fields = {
        "id": one.id,
        "where": f"{one.short_file}:{one.function}",
        "text": changed_text(one),
        "reason": "nobody looks",
        **changes,
    }
    rows = "".join(f"{name} = '''{text}'''\n" for name, text in fields.items())
    return f"[[equivalent]]\n{rows}"


def test_entries_of_equivalents(tmp_path: Path) -> None:
    path = tmp_path / "equivalent.toml"
    assert read_equivalents(path) == ()
    found = list(named(FRONT).values())
    path.write_text(entry(found[0]) + entry(found[-1]))
    entries = read_equivalents(path)
    assert [one.id for one in entries] == [found[0].id, found[-1].id]
    assert stale(entries, found) == []
    assert stale(entries, found[1:]) == [
        f"{found[0].id} (xen-blkfront.c:first_one): there is no such mutant any more"
    ]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"where": "xen-blkfront.c:second"}, "where is xen-blkfront.c:first_one, not xen-blkfront"),
        ({"text": "another"}, "text is "),
    ],
)
def test_entry_that_is_not_true(tmp_path: Path, changes: dict[str, str], words: str) -> None:
    found = list(named(FRONT).values())
    path = tmp_path / "equivalent.toml"
    path.write_text(entry(found[0], **changes))
    (line,) = stale(read_equivalents(path), found)
    assert words in line


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[[equivalent]]\nid = '1'\n", "entry 1 has to have id, where, text, reason"),
        ("[[equivalent]", "equivalent.toml: "),
        ("[more]\n", "unknown more"),
        (
            "[[equivalent]]\nid = '1'\nwhere = 'a'\ntext = 'b'\nreason = ' '\n",
            "entry 1 (1) has no reason",
        ),
        (
            2 * "[[equivalent]]\nid = '1'\nwhere = 'a'\ntext = 'b'\nreason = 'c'\n",
            "1 is there twice",
        ),
    ],
)
def test_entries_are_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "equivalent.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=re.escape(words)):
        read_equivalents(path)
