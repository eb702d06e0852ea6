"""Sums and products of the same terms: what they share is taken out; concatenations of both are taken apart."""

from __future__ import annotations

from .language import C, Guard, Rule, T, W

_BINARY = ("Add", "Mul", "Sub", "Div")
_COMMUTATIVE = ("Add", "Mul")


def _across(op: str) -> list[Rule]:
    """An operator on two concatenations with the same parts is a concatenation."""
    name = {"Add": "sum", "Mul": "product", "Sub": "difference", "Div": "quotient"}[op]
    return [
        Rule(
            f"{name}-of-concats",
            f"{op}(Concat(a, b, axis=k), Concat(c, d, axis=k))",
            f"Concat({op}(a, c), {op}(b, d), axis=k)",
            where=[
                Guard(
                    "a.shape == c.shape and b.shape == d.shape",
                    "parts of different extents do not meet",
                    counter={"a": T(2, 2), "b": T(2, 4), "c": T(2, 4), "d": T(2, 2), "k": 1},
                ),
            ],
            examples=[
                {"a": T(2, 3), "b": T(2, 1), "c": T(2, 3), "d": T(2, 1), "k": 1},
                {"a": T(2, 3), "b": T(5, 3), "c": T(2, 3), "d": W(5, 3), "k": 0},
            ],
            source="TASO 76 and 77",
        ),
    ]


def _concatenated(op: str, count: int) -> Rule:
    """Concatenated sums (products) with constants of as many values along that axis."""
    xs, cs, number = "xyzu"[:count], "abcd"[:count], {2: "", 3: "three-", 4: "four-"}[count]
    name = {"Add": "shifted", "Mul": "scaled"}[op]
    rows = {x: T(2, 2 + i) for i, x in enumerate(xs)}
    values = {c: W(2 + i) for i, c in enumerate(cs)}
    return Rule(
        f"concat-of-{number}{name}",
        f"Concat({', '.join(f'{op}({x}, {c})' for x, c in zip(xs, cs, strict=True))}, axis=k)",
        f"{op}(Concat({', '.join(xs)}, axis=k), Concat({', '.join(cs)}, axis=k - x.rank + a.rank))",
        where=[
            Guard(
                f"{' and '.join(f'{c}.const' for c in cs)} and not x.const",
                "the second operands must be constants, so that their concatenation folds",
                kind="growth",
                counter={**rows, **values, "a": T(2), "k": 1},
            ),
            Guard(
                "all(c.rank == a.rank <= x.rank and k >= x.rank - a.rank"
                " and c.shape[k - x.rank + a.rank] == t.shape[k] and"
                " all(e in (1, t.shape[x.rank - a.rank + i]) for i, e in enumerate(c.shape))"
                f" for t, c in (({'), ('.join(f'{x}, {c}' for x, c in zip(xs, cs, strict=True))})))",
                "each constant must hold one value for each place along the axis",
                counter={**rows, **{c: W(1) for c in cs}, "k": 1},
            ),
        ],
        examples=[
            {**rows, **values, "k": 1},
            {**{x: T(3 + i, 5) for i, x in enumerate(xs)}, **{c: W(3 + i, 1) for i, c in enumerate(cs)}, "k": 0},
        ],
        source="TASO 76 and 77, in the other direction",
    )


RULES = [
    Rule(
        "common-factor",
        "Add(Mul(x, y), Mul(x, z))",
        "Mul(x, Add(y, z))",
        tag="range",
        examples=[
            {"x": T(2, 3), "y": T(2, 3), "z": T(2, 3)},
            {"x": T(2, 3), "y": W(3), "z": C(0.5)},
            {"x": C(0.25), "y": T(2, 1), "z": T(3)},
        ],
        source="TASO 36, 37, 40, 47, 57 and 58, in the other direction",
    ),
    Rule(
        "sum-with-own-product",
        "Add(x, Mul(x, y))",
        "Mul(x, Add(y, constant(np.ones(()), y.dtype)))",
        where=[
            Guard(
                "x.rank >= y.rank and all(e in (1, x.shape[x.rank - y.rank + i]) for i, e in enumerate(y.shape))",
                "y must be no larger than x",
                kind="growth",
                counter={"x": T(3), "y": T(2, 3)},
            ),
        ],
        tag="range",
        examples=[{"x": T(2, 3), "y": T(3)}, {"x": T(2, 3), "y": T(2, 3)}],
        source="TASO 38, 39, 45, 46 and 50; modulation by 1 + scale",
    ),
    *(rule for op in _BINARY for rule in _across(op)),
    *(_concatenated(op, count) for op in _COMMUTATIVE for count in (2, 3, 4)),
    Rule(
        "concat-of-concats",
        "Concat(Concat(a, b, axis=l), Concat(c, d, axis=l), axis=k)",
        "Concat(Concat(a, c, axis=k), Concat(b, d, axis=k), axis=l)",
        where=[
            Guard(
                "k < l",
                "the later axis is concatenated first: one of two equal forms is enough",
                kind="growth",
                counter={"a": T(2, 3), "b": T(5, 3), "c": T(2, 4), "d": T(5, 4), "k": 1, "l": 0},
            ),
            Guard(
                "a.shape[l] == c.shape[l] and b.shape[l] == d.shape[l]",
                "the seams must meet",
                counter={"a": T(2, 3), "b": T(2, 4), "c": T(5, 4), "d": T(5, 3), "k": 0, "l": 1},
            ),
        ],
        examples=[{"a": T(2, 3), "b": T(2, 4), "c": T(5, 3), "d": T(5, 4), "k": 0, "l": 1}],
        source="TASO 78",
    ),
]
