"""Reshapes moved: behind sums, norms and products, out of transposes, in front of splits. A reshape moves no data."""

from __future__ import annotations

from ..operators import REDUCTIONS
from ..pointwise import BINARY
from .language import C, Guard, Rule, T, W

_FITS = "the operand must be whole or 1 along all axes that the reshape joins or splits, else it has no shape before it"
_WHOLE = "the axis must be one that the reshape leaves whole"
_TAIL = "the normalised axes, the last ones, must be left whole by the reshape"
_AXES = "work is done in the form with more axes, which other rules know best: in both, every operator is made twice"
_ORDERED = ("Sub", "Div", "Pow", "Min", "Max")


def _binary(op: str) -> list[Rule]:
    """A reshape of one operand moves behind an element-wise operator: the other is reshaped instead."""
    sides = [("reshape", "Reshape(x, shape=n), y", "x, {y}")]
    if op in _ORDERED:
        sides.append(("of-reshape", "y, Reshape(x, shape=n)", "{y}, x"))
    y = "(y if y.rank <= x.rank and alike(stripped(y.shape), e) else Reshape(y, shape=e))"
    return [
        Rule(
            f"{op.lower()}-{suffix}",
            f"{op}({left})",
            f"e = spread(y.shape, n, x.shape); root = Reshape({op}({right.format(y=y)}), shape=n)",
            where=[
                Guard("x.rank >= len(n)", _AXES, kind="growth", counter={"x": T(6, 5), "n": (2, 3, 5), "y": W(5)}),
                Guard(
                    "spread(y.shape, n, x.shape) is not None",
                    _FITS,
                    counter={"x": T(2, 6), "n": (2, 2, 3), "y": W(3)},
                ),
            ],
            examples=[
                {"x": T(2, 3, 5), "n": (6, 5), "y": W(5)},
                {"x": T(2, 3, 5, 7), "n": (6, 5, 7), "y": T(6, 5, 1)},
                {"x": T(2, 3, 5), "n": (6, 5), "y": C(0.25)},
                {"x": T(3, 10), "n": (15, 2), "y": T(15, 2)},
            ],
        )
        for suffix, left, right in sides
    ]


def _reduction(op: str) -> Rule:
    return Rule(
        f"{op.lower()}-reshape",
        f"{op}(Reshape(x, shape=n), axes=a, keepdims=d)",
        f"Reshape({op}(x, axes=sorted([kept(x.shape, n, i) for i in a]), keepdims=1), shape=root.shape)",
        where=[
            Guard("x.rank >= len(n)", _AXES, kind="growth", counter={"x": T(6, 5), "n": (2, 3, 5), "a": (2,), "d": 1}),
            Guard(
                "all(kept(x.shape, n, i) is not None for i in a)",
                _WHOLE,
                counter={"x": T(2, 6), "n": (4, 3), "a": (1,), "d": 1},
            ),
        ],
        examples=[
            {"x": T(2, 3, 5), "n": (6, 5), "a": (1,), "d": 1},
            {"x": T(2, 3, 5, 7), "n": (6, 5, 7), "a": (1, 2), "d": 0},
        ],
    )


RULES = [
    *(rule for op in BINARY for rule in _binary(op)),
    *(_reduction(op) for op in REDUCTIONS),
    Rule(
        "softmax-reshape",
        "Softmax(Reshape(x, shape=n), axis=k)",
        "Reshape(Softmax(x, axis=kept(x.shape, n, k)), shape=n)",
        where=[
            Guard("x.rank >= len(n)", _AXES, kind="growth", counter={"x": T(6, 5), "n": (2, 3, 5), "k": 2}),
            Guard("kept(x.shape, n, k) is not None", _WHOLE, counter={"x": T(2, 6), "n": (4, 3), "k": 1}),
        ],
        examples=[{"x": T(2, 3, 5), "n": (6, 5), "k": 1}, {"x": T(2, 1, 3, 5), "n": (2, 3, 5), "k": 1}],
    ),
    Rule(
        "layer-norm-reshape",
        "LayerNormalization(Reshape(x, shape=n), s, b, axis=k, epsilon=e)",
        "Reshape(LayerNormalization(x, s, b, axis=k + x.rank - len(n), epsilon=e), shape=n)",
        where=[
            Guard(
                "x.rank >= len(n)",
                _AXES,
                kind="growth",
                counter={"x": T(6, 5), "n": (2, 3, 5), "s": W(5), "b": W(5), "k": 2, "e": 1e-5},
            ),
            Guard(
                "all(kept(x.shape, n, i) == i + x.rank - len(n) for i in range(k, len(n)))",
                _TAIL,
                counter={"x": T(5, 6), "n": (10, 3), "s": W(3), "b": W(3), "k": 1, "e": 1e-5},
            ),
        ],
        examples=[{"x": T(2, 3, 5), "n": (6, 5), "s": W(5), "b": W(5), "k": 1, "e": 1e-5}],
    ),
    Rule(
        "rms-norm-reshape",
        "RMSNormalization(Reshape(x, shape=n), s, axis=k, epsilon=e)",
        "Reshape(RMSNormalization(x, s, axis=k + x.rank - len(n), epsilon=e), shape=n)",
        where=[
            Guard(
                "x.rank >= len(n)",
                _AXES,
                kind="growth",
                counter={"x": T(6, 5), "n": (2, 3, 5), "s": W(5), "k": 2, "e": 1e-5},
            ),
            Guard(
                "all(kept(x.shape, n, i) == i + x.rank - len(n) for i in range(k, len(n)))",
                _TAIL,
                counter={"x": T(5, 6), "n": (10, 3), "s": W(3), "k": 1, "e": 1e-5},
            ),
        ],
        examples=[{"x": T(2, 3, 5), "n": (6, 5), "s": W(5), "k": 1, "e": 1e-5}],
    ),
    Rule(
        "matmul-reshaped-rows",
        "MatMul(Reshape(x, shape=n), w)",
        "Reshape(MatMul(x, w), shape=root.shape)",
        where=[
            Guard(
                "w.rank == 2",
                "w must be one matrix for all rows: of several, each belongs to its batch",
                counter={"x": T(2, 1, 3, 5), "n": (2, 3, 5), "w": W(2, 5, 7)},
            ),
            Guard("x.rank >= len(n)", _AXES, kind="growth", counter={"x": T(6, 5), "n": (2, 3, 5), "w": W(5, 7)}),
            Guard(
                "x.rank > 1 and kept(x.shape, n, len(n) - 1) == x.rank - 1",
                "the last axis, along which the product sums, must be left whole",
                counter={"x": T(10, 3), "n": (6, 5), "w": W(5, 7)},
            ),
        ],
        examples=[{"x": T(2, 3, 5), "n": (6, 5), "w": W(5, 7)}, {"x": T(2, 3, 2, 5), "n": (6, 2, 5), "w": T(5, 4)}],
    ),
    Rule(
        "matmul-reshaped-batches",
        "MatMul(Reshape(x, shape=m), Reshape(y, shape=n))",
        "Reshape(MatMul(x, y), shape=root.shape)",
        where=[
            Guard(
                "x.rank >= len(m)",
                _AXES,
                kind="growth",
                counter={"x": T(6, 5, 7), "m": (2, 3, 5, 7), "y": T(6, 7, 4), "n": (2, 3, 7, 4)},
            ),
            Guard(
                "len(m) > 2 and len(n) > 2 and x.rank > 2 and x.rank == y.rank and alike(x.shape[-2:], m[-2:])"
                " and alike(y.shape[-2:], n[-2:])",
                "the axes of the matrices must stay: only batches may be joined or split",
                counter={"x": T(2, 6, 3), "m": (2, 3, 6), "y": T(2, 6, 7), "n": (2, 6, 7)},
            ),
            Guard(
                "alike(x.shape[:-2], y.shape[:-2]) and alike(m[:-2], n[:-2])",
                "batches must be joined or split alike, else they meet others than before",
                counter={"x": T(2, 3, 5, 7), "m": (6, 5, 7), "y": T(3, 2, 7, 4), "n": (6, 7, 4)},
            ),
        ],
        examples=[
            {"x": T(2, 3, 5, 7), "m": (6, 5, 7), "y": T(2, 3, 7, 4), "n": (6, 7, 4)},
            {"x": T(2, 1, 5, 7), "m": (2, 5, 7), "y": T(2, 1, 7, 4), "n": (2, 7, 4)},
        ],
    ),
    Rule(
        "transpose-of-reshape",
        "Transpose(Reshape(x, shape=n), perm=p)",
        "Reshape(Transpose(x, perm=moved(x.shape, n, p)), shape=root.shape)",
        where=[
            Guard(
                "moved(x.shape, n, p) is not None",
                "axes that the reshape joins or splits must move together and in order",
                counter={"x": T(5, 6), "n": (5, 2, 3), "p": (0, 2, 1)},
            ),
        ],
        examples=[
            {"x": T(2, 4, 5, 3), "n": (8, 5, 3), "p": (0, 2, 1)},
            {"x": T(5, 6), "n": (5, 2, 3), "p": (1, 2, 0)},
            {"x": T(2, 1, 15, 7), "n": (2, 3, 5, 1, 7), "p": (4, 1, 3, 2, 0)},
        ],
    ),
    Rule(
        "reshape-of-part",
        "s = Split(x, axis=k, sizes=n); root = Reshape(s[i], shape=m)",
        """
shape, axis, sizes = parted(x.shape, k, n, i, m)
root = Split(Reshape(x, shape=shape), axis=axis, sizes=sizes)[i]
""",
        where=[
            Guard(
                "parted(x.shape, k, n, i, m) is not None",
                "the parts' axis must come first among those that the reshape regroups, and every part be divisible",
                counter={"x": T(2, 6), "k": 1, "n": (4, 2), "i": 0, "m": (8,)},
            ),
        ],
        examples=[
            {"x": T(2, 3, 40), "k": 2, "n": (20, 10, 10), "i": 1, "m": (2, 3, 2, 5)},
            {"x": T(9, 2, 5), "k": 0, "n": (2, 7), "i": 0, "m": (4, 5)},
        ],
        source="heads of merged projections: one reshape for all of them",
    ),
]
