"""Broadcasts and gathers that exporters leave: dropped where they change nothing, done after the work on them."""

from __future__ import annotations

from ..terms import COMMUTATIVE
from .language import C, Free, Guard, Rule, T

_BINARY = ("Add", "Sub", "Mul", "Div", "Max", "Min", "And", "Or", "Less", "LessOrEqual", "Equal")


def _broadcast(name: str, left: str, right: str, **operands: Free) -> Rule:
    """An element-wise operator broadcasts by itself, so x may be expanded after it; often there is nothing left to do."""
    example = {"x": T(3, 1), "y": T(2, 3, 5), "n": (3, 5), **operands}
    return Rule(
        name,
        f"root = {left}",
        f"root = Expand({right}, shape=root.shape)",
        examples=[example, {**example, "n": (2, 3, 1), "y": T(1, 5, dtype=example["y"].type.dtype)}],  # type: ignore[attr-defined]
    )


def _binary(op: str) -> list[Rule]:
    dtype = "bool" if op in ("And", "Or") else "float32"
    operands = {"x": T(3, 1, dtype=dtype), "y": T(2, 3, 5, dtype=dtype)}
    rules = [_broadcast(f"{op.lower()}-of-expand", f"{op}(Expand(x, shape=n), y)", f"{op}(x, y)", **operands)]
    if op not in COMMUTATIVE:
        rules.append(_broadcast(f"{op.lower()}-with-expand", f"{op}(y, Expand(x, shape=n))", f"{op}(y, x)", **operands))
    return rules


def _where() -> list[Rule]:
    c = T(3, 1, dtype="bool")
    return [
        _broadcast("where-of-expand", "Where(Expand(x, shape=n), y, z)", "Where(x, y, z)", x=c, z=C(-1e4)),
        _broadcast("where-of-expand-first", "Where(z, Expand(x, shape=n), y)", "Where(z, x, y)", z=c),
        _broadcast("where-of-expand-second", "Where(z, y, Expand(x, shape=n))", "Where(z, y, x)", z=c),
    ]


def _unary(op: str, attrs: str = "", **values: str) -> Rule:
    """A function of every element is computed before the elements are repeated."""
    dtype = "bool" if op == "Not" else "float32"
    return Rule(
        f"{op.lower()}-of-expand",
        f"{op}(Expand(x, shape=n){attrs})",
        f"Expand({op}(x{attrs}), shape=n)",
        examples=[
            {"x": T(3, 1, dtype=dtype), "n": (2, 3, 5), **values},
            {"x": T(7, dtype=dtype), "n": (1, 7), **values},
        ],
    )


RULES = [
    *(rule for op in _BINARY for rule in _binary(op)),
    *_where(),
    *(_unary(op) for op in ("Neg", "Exp", "Sigmoid", "Tanh", "Cos", "Sin", "Not")),
    _unary("Cast", ", to=t", t="float16"),
    Rule(
        "slice-of-expand",
        "Slice(Expand(x, shape=n), axes=a, starts=b, ends=e)",
        """
o = len(n) - x.rank
own = [j for j in range(len(a)) if a[j] >= o and not one(x.shape[a[j] - o])]
part = Slice(x, axes=[a[j] - o for j in own], starts=[b[j] for j in own], ends=[e[j] for j in own]) if own else x
root = Expand(part, shape=[e[a.index(i)] - b[a.index(i)] if i in a else n[i] for i in range(len(n))])
""",
        examples=[
            {"x": T(3, 1), "n": (2, 3, 5), "a": (0, 1, 2), "b": (1, 1, 0), "e": (2, 3, 3)},
            {"x": T(3, 1), "n": (3, 7), "a": (1,), "b": (2,), "e": (6,)},
        ],
    ),
    Rule(
        "gather-of-gather",
        "Gather(Gather(x, i, axis=k), j, axis=k)",
        "Gather(x, Gather(i, j, axis=0), axis=k)",
        where=[
            Guard(
                "i.const and j.const and not x.const",
                "the indices must be constants, so that they fold",
                kind="growth",
                counter={"x": T(3, 5), "i": T(2, dtype="int64"), "j": C([1], "int64"), "k": 1},
            ),
        ],
        examples=[
            {"x": T(3, 5), "i": C([4, 0, 2], "int64"), "j": C([2, 0], "int64"), "k": 1},
            {"x": T(5, 3), "i": C([4, 1], "int64"), "j": C(1, "int64"), "k": 0},
            {"x": T(5, 7), "i": C([[3, 1], [0, 2]], "int64"), "j": C([1, 0], "int64"), "k": 1},
        ],
    ),
    Rule(
        "gather-at-expanded",
        "root = Gather(x, Expand(i, shape=n), axis=k)",
        "root = Expand(Gather(x, i, axis=k), shape=root.shape)",
        where=[
            Guard(
                "k == 0 or i.rank == len(n)",
                "axes in front of the indices' must stay where they are",
                counter={"x": T(3, 4), "i": C([2, 1, 0], "int64"), "n": (3, 3), "k": 1},
            )
        ],
        examples=[
            {"x": T(5, 3), "i": T(1, 7, dtype="int64"), "n": (2, 7), "k": 0},
            {"x": T(2, 5), "i": C([[4], [1]], "int64"), "n": (2, 3), "k": 1},
        ],
        source="token types that are zero for all",
    ),
]
