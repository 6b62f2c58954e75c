"""What is changed: operators on the syntax tree of a function, each the slip of a programmer.

An operator looks at one node and says what else could stand there, as text. Whether that
compiles, and whether it is another program, is the compiler's to say (`compiling`).

Left alone are, with all that is in them: what is printed for people (`pr_debug`, `dev_*`, …), and
the checks that a kernel makes of itself (`BUG_ON`, `WARN_ON`, lockdep's, `might_sleep`): without
them a sound driver does the same. So are memory barriers, and hints to compiler and scheduler: no
run on an emulated processor that keeps the order of stores can tell. Text in quotes, the
declarations themselves, and what the preprocessor has are left, too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from emu.suite.mutation.source import Function, Source

if TYPE_CHECKING:
    from tree_sitter import Node

_LEFT_ALONE = re.compile(
    r"(?:pr_\w+|dev_\w+|printk\w*|trace_\w+|DPRINTK|"
    r"W?BUG(?:_ON)?|WARN\w*|BUILD_BUG_ON\w*|lockdep_\w+|might_sleep\w*|"
    r"(?:virt_|smp_|dma_)?[rw]?mb|barrier|cond_resched|cpu_relax|prefetch|sizeof)"
)
_NO_CODE = ("string_literal", "comment", "ERROR", "sizeof_expression", "array_declarator")
_SYMMETRIC = re.compile(r"(?:min|max)(?:_t|_not_zero|3)?|swap|\w*for_each\w*|container_of|offsetof")
_BOUNDS = {"<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "!=", "!=": "=="}
_ARITHMETIC = {"+": "-", "-": "+", "*": "/", "/": "*", "%": "/", "<<": ">>", ">>": "<<"}
_CHANGED_RETURN: dict[str, tuple[tuple[str, str], ...]] = {
    "bool": (("true", "false"), ("false", "true")),
    "irqreturn_t": (("IRQ_HANDLED", "IRQ_NONE"), ("IRQ_NONE", "IRQ_HANDLED")),
    "blk_status_t": (("BLK_STS_OK", "BLK_STS_IOERR"),),
}
"""What is returned in place of some values, by a function's type."""
_OTHER_RETURN = {"bool": "!({})", "irqreturn_t": "IRQ_NONE", "blk_status_t": "BLK_STS_OK"}
"""And in place of all other values; 0, or NULL, for what is not named here."""


@dataclass(frozen=True)
class Edit:
    """What is put in place of the bytes from `start` to `end`, and by which operator.

    `then` is where the first statement begins that is done less often, or no more, and never
    where it was not before, if that is known.
    """

    operator: str
    start: int
    end: int
    text: str
    then: int | None = None


Operator = Callable[[Source, Function, "Node"], Iterator[Edit]]


def edits(source: Source, function: Function) -> Iterator[Edit]:
    """All that the operators make of a function, in the order of its text."""
    for node in _nodes(source, function.body):
        for operator in _OPERATORS:
            yield from operator(source, function, node)


def _nodes(source: Source, node: Node) -> Iterator[Node]:
    """What may be changed below a node."""
    if node.type in _NO_CODE or node.type.startswith("preproc"):
        return
    if node.type == "expression_statement" and node.named_children:
        if _is_left_alone(source, node.named_children[0]):
            return
    elif node.type == "call_expression" and _is_left_alone(source, node):
        return
    yield node
    for child in node.children:
        yield from _nodes(source, child)


def _is_left_alone(source: Source, node: Node) -> bool:
    return node.type == "call_expression" and bool(_LEFT_ALONE.fullmatch(_called(source, node)))


def _called(source: Source, call: Node) -> str:
    function = call.child_by_field_name("function")
    return "" if function is None else source.text(function)


def _condition(source: Source, function: Function, node: Node) -> Iterator[Edit]:
    """A condition negated, taken for true, taken for false; it is still evaluated."""
    if node.type not in (
        "if_statement", "while_statement", "do_statement", "for_statement",
        "conditional_expression",
    ):  # fmt: skip
        return
    found = node.child_by_field_name("condition")
    if found is None:
        return
    inner = _bare(found)
    if inner.type == "number_literal":
        return  # while (1), do … while (0)
    text = source.text(inner)
    yield Edit("condition negated", inner.start_byte, inner.end_byte, f"!({text})")
    if node.type in ("if_statement", "conditional_expression"):
        # A loop that never ends says nothing that one which is negated does not.
        yield Edit("condition true", inner.start_byte, inner.end_byte, f"({text}) || 1")
    then = _first_statement(node)
    yield Edit("condition false", inner.start_byte, inner.end_byte, f"({text}) && 0", then)


def _first_statement(node: Node) -> int | None:
    """Where that begins which is done under a node's condition."""
    body = node.child_by_field_name("consequence") or node.child_by_field_name("body")
    if body is not None and body.type == "compound_statement":
        statements = (one for one in body.named_children if one.type != "comment")
        body = next(statements, None)
    return None if body is None else body.start_byte


def _then_of(source: Source, node: Node) -> int | None:
    """Where that begins which is done under a condition that a part of it, `node`, can only make
    true: without a `!` in between.
    """
    while (holder := _holder(node)) is None:
        if node.parent is None or not _is_joined(source, node.parent):
            return None
        node = node.parent
    return _first_statement(holder)


def _is_joined(source: Source, node: Node) -> bool:
    """Whether a node is `&&`, `||`, a parenthesis, or unlikely() or its argument."""
    if node.type == "argument_list" and node.parent is not None:
        node = node.parent
    if node.type == "call_expression":
        return _called(source, node) in ("likely", "unlikely")
    operator = node.child_by_field_name("operator")
    if operator is not None:
        return source.text(operator) in ("&&", "||")
    return node.type == "parenthesized_expression"


def _bare(node: Node) -> Node:
    while node.type == "parenthesized_expression" and len(node.named_children) == 1:
        node = node.named_children[0]
    return node


def _binary(source: Source, function: Function, node: Node) -> Iterator[Edit]:
    """An operator of two operands: another one, or one operand alone."""
    if node.type != "binary_expression":
        return
    operator = node.child_by_field_name("operator")
    left, right = node.child_by_field_name("left"), node.child_by_field_name("right")
    if operator is None or left is None or right is None:
        return
    sign = source.text(operator)

    # `a && b` and `a` alone hold only where `a || b` does.
    then = _then_of(source, node) if sign == "||" else None

    def other(what: str, by: str) -> Edit:
        return Edit(what, operator.start_byte, operator.end_byte, by, then)

    def alone(what: str, kept: Node) -> Edit:
        return Edit(what, node.start_byte, node.end_byte, source.text(kept), then)

    if sign in _BOUNDS:
        if sign in ("==", "!=") and _is_condition(node):
            return  # that is the condition negated
        yield other("bound", _BOUNDS[sign])
    elif sign in _ARITHMETIC:
        yield other("arithmetic", _ARITHMETIC[sign])
    elif sign in ("&&", "||"):
        yield other("connective", "||" if sign == "&&" else "&&")
        yield alone("operand dropped", left)
        yield alone("operand dropped", right)
    elif sign in ("|", "&"):
        yield other("bits", "&" if sign == "|" else "|")
        yield alone("flag dropped", left)
        if sign == "|":
            yield alone("flag dropped", right)


def _is_condition(node: Node) -> bool:
    return _holder(node) is not None


def _holder(node: Node) -> Node | None:
    """The statement or expression that a node is the condition of."""
    parent = node.parent
    while parent is not None and parent.type == "parenthesized_expression":
        node, parent = parent, parent.parent
    if parent is None:
        return None
    # A node is another object each time it is asked for.
    condition = parent.child_by_field_name("condition")
    return parent if condition is not None and condition.id == node.id else None


def _unary(source: Source, function: Function, node: Node) -> Iterator[Edit]:
    """`!x`, `~x`, `-x` without the sign; `x++` in place of `x--`."""
    if node.type == "unary_expression":
        argument, operator = (node.child_by_field_name(n) for n in ("argument", "operator"))
        if argument is None or operator is None:
            return
        sign = source.text(operator)
        if sign == "!" and _is_condition(node):
            return  # that is the condition negated
        if sign in "!~-":
            yield Edit("sign dropped", node.start_byte, node.end_byte, source.text(argument))
    elif node.type == "update_expression":
        operator = node.child_by_field_name("operator")
        if operator is not None:
            by = "--" if source.text(operator) == "++" else "++"
            yield Edit("arithmetic", operator.start_byte, operator.end_byte, by)


def _assignment(source: Source, function: Function, node: Node) -> Iterator[Edit]:
    """`+=` in place of `-=`, `=` in place of `|=`; a computed value that is off by one."""
    if node.type not in ("assignment_expression", "init_declarator"):
        return
    operator = node.child_by_field_name("operator")
    if operator is not None and (sign := source.text(operator)) != "=":
        by = {"+=": "-=", "-=": "+=", "<<=": ">>=", ">>=": "<<="}.get(sign, "=")
        yield Edit("arithmetic", operator.start_byte, operator.end_byte, by)
    value = node.child_by_field_name("right") or node.child_by_field_name("value")
    if value is not None and _is_computed(source, value):
        yield Edit("off by one", value.start_byte, value.end_byte, f"({source.text(value)}) + 1")


def _is_computed(source: Source, node: Node) -> bool:
    node = _bare(node)
    operator = node.child_by_field_name("operator")
    return (
        node.type == "binary_expression"
        and operator is not None
        and source.text(operator) in _ARITHMETIC
    )


def _constant(source: Source, function: Function, node: Node) -> Iterator[Edit]:
    """A number one more or, where it is 1, none; true in place of false."""
    if node.type in ("true", "false"):
        if not _is_returned(node):
            by = "false" if node.type == "true" else "true"
            yield Edit("constant", node.start_byte, node.end_byte, by)
        return
    if node.type != "number_literal" or _is_returned(node):
        return
    parent = node.parent
    if parent is not None and parent.type in ("while_statement", "do_statement", "case_statement"):
        return
    if parent is not None and parent.type == "parenthesized_expression" and _is_condition(node):
        return
    text = source.text(node)
    by = "0" if re.fullmatch(r"1[uUlL]*", text) else f"({text} + 1)"
    yield Edit("constant", node.start_byte, node.end_byte, by)


def _is_returned(node: Node) -> bool:
    parent = node.parent
    while parent is not None and parent.type in ("unary_expression", "parenthesized_expression"):
        parent = parent.parent
    return parent is not None and parent.type == "return_statement"


def _statement(source: Source, function: Function, node: Node) -> Iterator[Edit]:
    """A statement left out: a call, an assignment, a jump."""
    if node.type == "expression_statement":
        if not node.children or node.children[-1].is_missing or node.children[-1].type != ";":
            return  # a macro that a block follows
        if not node.named_children:
            return
        what = node.named_children[0].type
        names = {"call_expression": "call", "assignment_expression": "assignment"}
        operator = f"{names.get(what, 'statement')} left out"
    elif node.type in ("break_statement", "continue_statement", "goto_statement"):
        operator = f"{node.type.partition('_')[0]} left out"
    elif node.type == "return_statement" and not node.named_children:
        operator = "return left out"
    else:
        return
    yield Edit(operator, node.start_byte, node.end_byte, ";")


def _return(source: Source, function: Function, node: Node) -> Iterator[Edit]:
    """Another value returned: success for an error, an error for success."""
    if node.type != "return_statement" or not node.named_children:
        return
    value = node.named_children[0]
    text, kind = source.text(value), function.returns.replace("static", "").split()
    known = next((word for word in kind if word in _OTHER_RETURN), None)
    by: str | None
    if known is not None:
        by = dict(_CHANGED_RETURN[known]).get(text, _OTHER_RETURN[known].format(text))
    elif function.returns.endswith("*"):
        by = "NULL"
    elif text == "0":
        by = "1" if "unsigned" in kind else "-EINVAL"
    else:
        by = "0"
    if by != text:
        yield Edit("value returned", value.start_byte, value.end_byte, by)


def _arguments(source: Source, function: Function, node: Node) -> Iterator[Edit]:
    """Two arguments of a call that stand beside each other and look alike, swapped."""
    if node.type != "call_expression" or _SYMMETRIC.fullmatch(_called(source, node)):
        return
    arguments = node.child_by_field_name("arguments")
    if arguments is None or arguments.has_error:
        return
    for one, two in zip(arguments.named_children, arguments.named_children[1:], strict=False):
        alike = one.type == two.type and one.type not in ("string_literal", "comment")
        first, second = source.text(one), source.text(two)
        if alike and first != second:
            between = source.content[one.end_byte : two.start_byte].decode("utf-8", "replace")
            swapped = f"{second}{between}{first}"
            yield Edit("arguments swapped", one.start_byte, two.end_byte, swapped)


_OPERATORS: tuple[Operator, ...] = (
    _condition,
    _binary,
    _unary,
    _assignment,
    _constant,
    _statement,
    _return,
    _arguments,
)
