"""Slices moved to the front: what only a part of a result is read of is computed for that part only.

The class token of a vision transformer needs the last layer for one token; so does the last token of a decoder.
"""

from __future__ import annotations

from typing import Any

from .language import Guard, Rule, T, W

_FUNCTIONS: dict[str, dict[str, Any] | None] = {
    "Relu": None, "Sigmoid": None, "Tanh": None, "Erf": None, "Gelu": {"approximate": "tanh"}, "Swish": {"alpha": 1.5},
}  # fmt: skip
_BINARY = ("Add", "Sub", "Mul", "Div")
_PARTLY = "other operators read the whole result, or its slices nearly all of it"
_A = {"a": (1,), "b": (2,), "e": (3,)}
_HALF = {"a": (1,), "b": (0,), "e": (4,)}


def _partly(counter: dict[str, Any]) -> Guard:
    return Guard("share(y) <= 0.5", _PARTLY, kind="growth", counter=counter)


def _of_function(op: str, attrs: dict[str, Any] | None) -> Rule:
    more, extra = ("", {}) if attrs is None else (", **p", {"p": attrs})
    return Rule(
        f"slice-of-{op.lower()}",
        f"y = {op}(x{more}); root = Slice(y, axes=a, starts=b, ends=e)",
        f"root = {op}(Slice(x, axes=a, starts=b, ends=e){more})",
        where=[_partly({"x": T(3, 5), **_HALF, **extra})],
        examples=[{"x": T(3, 5), **_A, **extra}, {"x": T(7, 2, 3), "a": (0, 2), "b": (1, 0), "e": (4, 2), **extra}],
    )


def _of_binary(op: str) -> Rule:
    return Rule(
        f"slice-of-{op.lower()}",
        f"y = {op}(x, z); root = Slice(y, axes=a, starts=b, ends=e)",
        f"""
p, q = piece(x.shape, y.rank, a, b, e), piece(z.shape, y.rank, a, b, e)
root = {op}(Slice(x, **p) if p['axes'] else x, Slice(z, **q) if q['axes'] else z)
""",
        where=[_partly({"x": T(3, 5), "z": T(3, 5), **_HALF})],
        examples=[
            {"x": T(3, 5), "z": T(3, 5), **_A},
            {"x": T(3, 1), "z": W(5), **_A},
            {"x": T(2, 7, 3), "z": T(7, 1), "a": (1, 2), "b": (1, 1), "e": (3, 2)},
        ],
    )


_NORMS = {
    "softmax": ("Softmax(x, axis=k)", {}),
    "layer-norm": ("LayerNormalization(x, g, h, axis=k, epsilon=d)", {"g": W(5), "h": W(5), "d": 2.0**-16}),
    "plain-layer-norm": ("LayerNormalization(x, g, axis=k, epsilon=d)", {"g": W(5), "d": 2.0**-16}),
    "rms-norm": ("RMSNormalization(x, g, axis=k, epsilon=d)", {"g": W(5), "d": 2.0**-16}),
}


def _of_norm(name: str, text: str, values: dict[str, Any]) -> Rule:
    inside = "i != k" if name == "softmax" else "i < k"
    return Rule(
        f"slice-of-{name}",
        f"y = {text}; root = Slice(y, axes=a, starts=b, ends=e)",
        f"root = {text.replace('(x', '(Slice(x, axes=a, starts=b, ends=e)')}",
        where=[
            Guard(
                f"all({inside} for i in a)",
                "a part of the axis that is normalised has another norm",
                counter={"x": T(3, 5), "k": 1, **values, **({"g": W(1), "h": W(1)} if "h" in values else {}), **({"g": W(1)} if "g" in values else {}), "a": (1,), "b": (0,), "e": (2,)},
            ),
            _partly({"x": T(3, 5), "k": 1, **values, "a": (0,), "b": (0,), "e": (2,)}),
        ],
        examples=[
            {"x": T(3, 5), "k": 1, **values, "a": (0,), "b": (1,), "e": (2,)},
            {"x": T(2, 7, 5), "k": 2, **values, "a": (0, 1), "b": (1, 2), "e": (2, 5)},
        ],
    )  # fmt: skip


RULES = [
    *(_of_function(op, attrs) for op, attrs in _FUNCTIONS.items()),
    *map(_of_binary, _BINARY),
    *(_of_norm(name, text, values) for name, (text, values) in _NORMS.items()),
    Rule(
        "slice-of-matmul",
        "y = MatMul(x, w); root = Slice(y, axes=a, starts=b, ends=e)",
        """
p, q = without(x.last, piece(x.shape, y.rank, a, b, e)), without(w.rank - 2, piece(w.shape, y.rank, a, b, e))
root = MatMul(Slice(x, **p) if p['axes'] else x, Slice(w, **q) if q['axes'] else w)
""",
        where=[
            Guard(
                "x.rank >= 2 and w.rank >= 2",
                "a vector's axis is none of the result's",
                counter={"x": T(5), "w": T(2, 5, 3), "a": (0,), "b": (1,), "e": (2,)},
            ),
            _partly({"x": T(3, 5), "w": T(5, 7), **_HALF}),
        ],
        examples=[
            {"x": T(7, 5), "w": W(5, 3), "a": (0,), "b": (2,), "e": (3,)},
            {"x": T(2, 7, 5), "w": T(2, 5, 11), "a": (0, 1, 2), "b": (0, 1, 2), "e": (1, 3, 7)},
            {"x": T(7, 1), "w": T(2, 1, 11), "a": (1, 2), "b": (1, 0), "e": (3, 1)},
        ],
    ),
    Rule(
        "slice-of-reshape",
        "y = Reshape(x, shape=n); root = Slice(y, axes=a, starts=b, ends=e)",
        """
part = Slice(x, axes=[kept(x.shape, n, i) for i in a], starts=b, ends=e)
root = Reshape(part, shape=[e[a.index(i)] - b[a.index(i)] if i in a else d for i, d in enumerate(n)])
""",
        where=[
            Guard(
                "all(kept(x.shape, n, i) is not None for i in a)",
                "the reshape must leave the axis whole",
                counter={"x": T(6, 5), "n": (3, 10), "a": (0,), "b": (0,), "e": (1,)},
            ),
            _partly({"x": T(3, 5), "n": (3, 1, 5), "a": (0,), "b": (0,), "e": (2,)}),
        ],
        examples=[
            {"x": T(2, 7, 15), "n": (2, 7, 3, 5), "a": (1,), "b": (3,), "e": (4,)},
            {"x": T(7, 3, 5), "n": (7, 15), "a": (0,), "b": (0,), "e": (3,)},
        ],
    ),
]
