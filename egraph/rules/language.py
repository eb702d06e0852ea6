"""The rule language: a rule is two readable texts, and guards that say why they refuse.

    Rule(
        "matmul-associative",
        "MatMul(MatMul(x, w), v)",
        "MatMul(x, MatMul(w, v))",
        where=[Guard("w.const and v.const", "only where the product of two weights folds into one")],
        examples=[{"x": T(3, 5), "w": W(5, 2), "v": W(2, 7)}],
    )

Both sides are Python expressions over the core operators (table in `egraph.operators`). On the left, a name stands
for any term, `*xs` for any number of them, `axis=k` binds an attribute, `**a` binds all of them; the same name twice
must mean the same thing. The operands of sums and products match in either order (`egraph.orders`). Several roots are
written as assignments, `y1 = …; y2 = …`; a name assigned on the left and not on the right is a shared part of the
pattern. The right side is executed with the bound names, so attributes may be computed with plain Python; `s[0]` is the
first part of a tuple. Guards are expressions over the same names.

The left side also *builds* the examples, so that a rule carries its own tests: each example gives a type to every
free term (`T` an input, `W` a weight, `C` a small constant) and a value to every bound attribute.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from types import CodeType
from typing import Any, Literal, TypeAlias

import numpy as np

from ..graph import TensorType
from ..guards import earlier_first, invertible, later_first, next_user, share
from ..operators import IllTyped, core
from .axes import alike, blocks, inverse, kept, moved, one, padded, parted, product, same, spread, stripped
from .parts import consecutive, cut, nested, offsets, piece, seams, without

Tag = Literal["exact", "range", "approx"]
Example: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True)
class Free:
    """A free term of an example: an input, or a weight with given or random values."""

    type: TensorType
    kind: Literal["input", "weight"]
    values: tuple[float, ...] | None = None


def T(*shape: int, dtype: str = "float32") -> Free:
    """An input tensor of this shape."""
    return Free(TensorType(shape, dtype), "input")


def W(*shape: int, dtype: str = "float32") -> Free:
    """A weight of this shape with random values."""
    return Free(TensorType(shape, dtype), "weight")


def C(value: Any, dtype: str = "float32") -> Free:
    """A small weight with exactly these values."""
    array = np.asarray(value, dtype=np.float64)
    return Free(TensorType(tuple(array.shape), dtype), "weight", tuple(array.reshape(-1).tolist()))


@dataclass(frozen=True)
class Guard:
    """A condition on a match.

    test: an expression over the rule's names. reason: why the rule refuses where it is false.
    kind: "sound" if the rule would be wrong (or ill-typed) without it, "growth" if it only keeps the e-graph small.
    counter: an example which the guard refuses; a test shows that it does, and for "sound" that it must.
    """

    test: str
    reason: str
    kind: Literal["sound", "growth"] = "sound"
    counter: Example | None = None

    @cached_property
    def code(self) -> CodeType:
        return compile(self.test.strip(), f"<guard: {self.test}>", "eval")


@dataclass(frozen=True)
class Pattern:
    """A node of a left-hand side. `result` names the term it matches; `whole` binds all attributes (`**a`)."""

    op: str
    operands: tuple[Pattern | str, ...]
    result: str
    named: tuple[tuple[str, str], ...] = ()
    fixed: tuple[tuple[str, Any], ...] = ()
    whole: str | None = None

    def walk(self) -> Iterator[Pattern]:
        yield self
        for operand in self.operands:
            if isinstance(operand, Pattern):
                yield from operand.walk()


@dataclass(frozen=True)
class Rule:
    """One rewrite rule; see the module's text for the two sides."""

    name: str
    lhs: str
    rhs: str
    where: tuple[Guard, ...] | list[Guard] = ()
    tag: Tag = "exact"
    examples: tuple[Example, ...] | list[Example] = ()
    source: str = ""
    """Where the identity is from, if it is not plain algebra."""
    folds: bool = False
    """Whether it also fires on constant expressions (others leave those alone: they cost nothing)."""
    supersedes: str = ""
    """A part of the left side that is of no use to other rules once this one has fired, if a rule made it."""
    coarse: bool = False
    """Whether it looks at what was superseded all the same."""
    undoes: tuple[str, ...] = ()
    """Rules whose results this one leaves alone: it would only lead back to where they came from."""
    innermost: str = ""
    """A name of the left side that may not be a link of the same chain: of x + c₁ + … + cₙ the constants are brought
    together from the innermost sum on, one after the other, else in each of 2ⁿ ways."""
    family: str = field(default="", compare=False)

    @cached_property
    def patterns(self) -> tuple[Pattern, ...]:
        """The left side's patterns, roots and shared parts, in the text's order."""
        return tuple(_Parser(self).parse())

    @cached_property
    def roots(self) -> tuple[str, ...]:
        """Names of the terms that the rule gives an equal to."""
        assigned = [p.result for p in self.patterns]
        right = {t.id for s in ast.parse(self.rhs.strip()).body if isinstance(s, ast.Assign) for t in _names(s)}
        return tuple(n for n in assigned if n in right or n == "root")

    @cached_property
    def right(self) -> CodeType:
        """The right side as code that assigns every root."""
        text = self.rhs.strip()
        body = ast.parse(text).body
        if len(body) == 1 and isinstance(body[0], ast.Expr):
            text = f"root = ({text})"
        return compile(text, f"<right side of {self.name}>", "exec")

    @cached_property
    def used(self) -> frozenset[str]:
        """All names that the right side reads."""
        return frozenset(_read(self.rhs))

    @cached_property
    def asked(self) -> frozenset[str]:
        """All names that guards read."""
        return frozenset(n for guard in self.where for n in _read(guard.test))

    @cached_property
    def introduces(self) -> tuple[str, ...]:
        """Operators that the right side makes and the left side has not, in alphabetical order."""
        there = {q.op for p in self.patterns for q in p.walk()}
        called = {n.func.id for n in ast.walk(ast.parse(self.rhs.strip()))
                  if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}  # fmt: skip
        return tuple(sorted(op for op in called - there if core(op)))

    @cached_property
    def left(self) -> CodeType:
        """The left side as code that builds it."""
        text = self.lhs.strip()
        if not any(isinstance(s, ast.Assign) for s in ast.parse(text).body):
            text = f"root = ({text})"
        return compile(text, f"<left side of {self.name}>", "exec")

    @cached_property
    def starred(self) -> tuple[str, ...]:
        """Names of the `*xs` in the left side."""
        return tuple(
            o[1:]
            for p in self.patterns
            for q in p.walk()
            for o in q.operands
            if isinstance(o, str) and o.startswith("*")
        )

    def refusal(self, names: Mapping[str, Any]) -> Guard | None:
        """The first guard that is false for these names, or None if all hold."""
        for guard in self.where:
            try:
                if not eval(guard.code, {**HELPERS, **names}):  # the text is the rule author's, never the user's
                    return guard
            except (TypeError, IllTyped):  # reckoning with an unknown extent
                return guard
        return None

    def __str__(self) -> str:
        return f"{self.name}: {' '.join(self.lhs.split())}  →  {' '.join(self.rhs.split())}"


def _read(text: str) -> Iterator[str]:
    """The names that a text reads."""
    for node in ast.walk(ast.parse(text.strip())):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            yield node.id


def _names(statement: ast.Assign) -> Iterator[ast.Name]:
    for target in statement.targets:
        if isinstance(target, ast.Name):
            yield target


class _Parser:
    """Reads a left-hand side."""

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.fresh = 0

    def fail(self, message: str) -> ValueError:
        return ValueError(f"rule {self.rule.name}: {message}")

    def parse(self) -> Iterator[Pattern]:
        for statement in ast.parse(self.rule.lhs.strip()).body:
            if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
                name, value = statement.targets[0].id, statement.value
            elif isinstance(statement, ast.Expr):
                name, value = "root", statement.value
            else:
                raise self.fail("a left side is an expression or assignments")
            pattern = self.term(value, name)
            if not isinstance(pattern, Pattern):
                raise self.fail("a left side is an operator")
            yield pattern

    def term(self, node: ast.expr, result: str | None = None) -> Pattern | str:
        if isinstance(node, ast.Name):
            return node.id
        if isinstance(node, ast.Starred) and isinstance(node.value, ast.Name):
            return "*" + node.value.id
        if result is None:
            self.fresh += 1
            result = f"_{self.fresh}"
        if isinstance(node, ast.Subscript):
            if isinstance(node.slice, ast.Name):
                return Pattern("Get", (self.term(node.value),), result, named=(("index", node.slice.id),))
            return Pattern("Get", (self.term(node.value),), result, fixed=(("index", ast.literal_eval(node.slice)),))
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or not core(node.func.id):
            raise self.fail(f"{ast.unparse(node)} is no core operator")
        named: list[tuple[str, str]] = []
        fixed: list[tuple[str, Any]] = []
        whole = None
        for keyword in node.keywords:
            if keyword.arg is None:
                assert isinstance(keyword.value, ast.Name)
                whole = keyword.value.id
            elif isinstance(keyword.value, ast.Name):
                named.append((keyword.arg, keyword.value.id))
            else:
                fixed.append((keyword.arg, ast.literal_eval(keyword.value)))
        return Pattern(node.func.id, tuple(self.term(a) for a in node.args), result, tuple(named), tuple(fixed), whole)


def swapped(rank: int) -> tuple[int, ...]:
    """The permutation that exchanges the last two axes."""
    return (*range(rank - 2), rank - 1, rank - 2)


def composed(p: tuple[int, ...], q: tuple[int, ...]) -> tuple[int, ...]:
    """The permutation of Transpose(Transpose(x, p), q)."""
    return tuple(p[i] for i in q)


_HELD: dict[str, str] = {
    "bool": "bool uint8 int8 uint16 int16 uint32 int32 uint64 int64 float16 bfloat16 float32 float64",
    "uint8": "uint8 uint16 int16 uint32 int32 uint64 int64 float16 bfloat16 float32 float64",
    "int8": "int8 int16 int32 int64 float16 bfloat16 float32 float64",
    "uint16": "uint16 uint32 int32 uint64 int64 float32 float64",
    "int16": "int16 int32 int64 float32 float64",
    "uint32": "uint32 uint64 int64 float64",
    "int32": "int32 int64 float64",
    "uint64": "uint64",
    "int64": "int64",
    "float16": "float16 float32 float64",
    "bfloat16": "bfloat16 float32 float64",
    "float32": "float32 float64",
    "float64": "float64",
}


def holds(wide: str, narrow: str) -> bool:
    """Whether every value of the element type `narrow` is one of the element type `wide`."""
    return wide in _HELD.get(narrow, "").split()


HELPERS: dict[str, Any] = {
    "prod": prod, "np": np, "swapped": swapped, "composed": composed, "one": one, "holds": holds,
    **{f.__name__: f for f in (consecutive, cut, nested, offsets, piece, seams, without)},
    **{f.__name__: f for f in (earlier_first, invertible, later_first, next_user, share)},
    **{f.__name__: f for f in (alike, blocks, inverse, kept, moved, padded, parted, product, same, spread, stripped)},
    "__builtins__": {
        f.__name__: f
        for f in (abs, all, any, dict, enumerate, float, int, len, list, max, min, range, sorted, sum, tuple, zip)
    },
}  # fmt: skip
"""What guards and right sides may use beside the operators and the bound names."""

Family: TypeAlias = Callable[[], list[Rule]]
