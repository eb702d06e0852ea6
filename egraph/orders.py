"""Operand orders: a pattern of sums and products stands for every order of their operands.

Terms keep the operands of commutative operators in one order (constants last, else by age), so an expression has one
form, and a pattern with `Mul(x, f(x))` has to look for `Mul(f(x), x)` as well. That is one more query over the same
e-graph, where a rule of commutativity would double the e-graph itself.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import replace

from .rules.language import Pattern, Rule
from .terms import COMMUTATIVE

_CONSTANT = ("const", "all_equal", "near")
MOST = 32
"""A rule with more orders than this ought to be two rules."""


def demanded_constants(rule: Rule) -> frozenset[str]:
    """Names that the rule's guards demand to be constant: in a term that is none itself, those come last."""
    found = set()
    for guard in rule.where:
        body = ast.parse(guard.test.strip(), mode="eval").body
        for part in body.values if isinstance(body, ast.BoolOp) and isinstance(body.op, ast.And) else [body]:
            if isinstance(part, ast.Call):  # c.all_equal(0.0)
                part = part.func
            elif isinstance(part, ast.Compare) and ast.unparse(part).endswith(".uniform is not None"):
                part = ast.Attribute(part.left.value, "const")  # type: ignore[attr-defined]
            if isinstance(part, ast.Attribute) and isinstance(part.value, ast.Name) and part.attr in _CONSTANT:
                found.add(part.value.id)
    return frozenset(found)


def orders(rule: Rule) -> tuple[tuple[Pattern, ...], ...]:
    """The rule's left side in every order of commutative operands that may find something of its own.

    Left out are orders that differ in the names of variables only, and those that would put what must be constant
    before what is not.
    """
    known: tuple[tuple[Pattern, ...], ...] | None = vars(rule).get("_orders")
    if known is None:
        known = vars(rule)["_orders"] = _orders(rule)
    return known


def _orders(rule: Rule) -> tuple[tuple[Pattern, ...], ...]:
    last = frozenset() if rule.folds else demanded_constants(rule)

    def variants(operand: Pattern | str) -> Iterator[Pattern | str]:
        if isinstance(operand, str):
            yield operand
            return
        for operands in products(operand.operands):
            yield replace(operand, operands=operands)
            if operand.op in COMMUTATIVE and (operands[1] not in last or operands[0] in last):
                yield replace(operand, operands=operands[::-1])

    def products(operands: tuple[Pattern | str, ...]) -> Iterator[tuple[Pattern | str, ...]]:
        if not operands:
            yield ()
            return
        for first in variants(operands[0]):
            for rest in products(operands[1:]):
                yield (first, *rest)

    found: dict[str, tuple[Pattern, ...]] = {}
    for sides in products(rule.patterns):
        patterns = tuple(p for p in sides if isinstance(p, Pattern))
        found.setdefault(_shape(patterns), patterns)
    if len(found) > MOST:
        raise ValueError(f"rule {rule.name}: {len(found)} orders of operands; write several rules")
    return tuple(found.values())


def _shape(patterns: tuple[Pattern, ...]) -> str:
    """The patterns with their names replaced by numbers, in the order in which they occur."""
    numbers: dict[str, str] = {}

    def number(name: str) -> str:
        return numbers.setdefault(name, f"{'*' if name.startswith('*') else '_'}{len(numbers)}")

    def text(operand: Pattern | str) -> str:
        if isinstance(operand, str):
            return number(operand)
        inner = ",".join(map(text, operand.operands))
        named = sorted((a, number(n)) for a, n in operand.named)
        whole = number(f"**{operand.whole}") if operand.whole else ""
        return f"{number(operand.result)}={operand.op}({inner};{named};{operand.fixed};{whole})"

    return ";".join(map(text, patterns))
