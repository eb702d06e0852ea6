"""Transposes, reshapes, concatenations and splits: cancelled, flattened, and moved through what ignores them."""

from __future__ import annotations

from .language import C, Guard, Rule, T, W

_POINTWISE = ("Relu", "Sigmoid", "Tanh", "Erf")
_SCALAR = "s must be a constant of one element and of no higher rank than x, so that it acts alike everywhere"


def _through(op: str) -> list[Rule]:
    """An element-wise operator commutes with anything that only moves elements."""
    name = op.lower()
    return [
        Rule(
            f"{name}-transpose",
            f"{op}(Transpose(x, perm=p))",
            f"Transpose({op}(x), perm=p)",
            examples=[{"x": T(2, 3, 5), "p": (2, 0, 1)}],
        ),
        Rule(
            f"transpose-{name}",
            f"Transpose({op}(x), perm=p)",
            f"{op}(Transpose(x, perm=p))",
            examples=[{"x": T(2, 3, 5), "p": (1, 2, 0)}],
        ),
        Rule(
            f"{name}-reshape",
            f"{op}(Reshape(x, shape=n))",
            f"Reshape({op}(x), shape=n)",
            examples=[{"x": T(2, 3, 5), "n": (5, 6)}],
        ),
    ]


RULES = [
    Rule(
        "transpose-transpose",
        "Transpose(Transpose(x, perm=p), perm=q)",
        "Transpose(x, perm=composed(p, q))",
        examples=[{"x": T(2, 3, 5), "p": (2, 0, 1), "q": (0, 2, 1)}, {"x": T(2, 3), "p": (1, 0), "q": (1, 0)}],
    ),
    Rule(
        "transpose-identity",
        "Transpose(x, perm=p)",
        "x",
        where=[
            Guard(
                "list(p) == sorted(p)",
                "the permutation must move nothing",
                counter={"x": T(3, 3), "p": (1, 0)},
            )
        ],
        examples=[{"x": T(2, 3, 5), "p": (0, 1, 2)}],
    ),
    Rule(
        "reshape-reshape",
        "Reshape(Reshape(x, shape=m), shape=n)",
        "Reshape(x, shape=n)",
        examples=[
            {"x": T(2, 6), "m": (3, 4), "n": (12, 1)},
            {"x": T(4, 3), "m": (12,), "n": (4, 3)},
            {"x": T(5, 6), "m": (5, 2, 3), "n": (5, 3, 2)},
        ],
    ),
    Rule(
        "reshape-identity",
        "Reshape(x, shape=n)",
        "x",
        where=[
            Guard("tuple(n) == x.shape", "the shape must stay the same", counter={"x": T(2, 3), "n": (3, 2)}),
        ],
        examples=[{"x": T(2, 3, 5), "n": (2, 3, 5)}],
    ),
    Rule(
        "transpose-as-reshape",
        "Transpose(x, perm=p)",
        "Reshape(x, shape=[x.shape[i] for i in p])",
        where=[
            Guard(
                "[i for i in p if not one(x.shape[i])] == sorted(i for i in p if not one(x.shape[i]))",
                "only axes of extent 1 may move, else elements change their order",
                counter={"x": T(1, 3, 3), "p": (0, 2, 1)},
            )
        ],
        examples=[{"x": T(1, 3, 5), "p": (1, 0, 2)}, {"x": T(2, 1, 1, 7), "p": (0, 3, 1, 2)}],
    ),
    *(rule for op in _POINTWISE for rule in _through(op)),
    Rule(
        "scale-transpose",
        "Mul(Transpose(x, perm=p), s)",
        "Transpose(Mul(x, s), perm=p)",
        where=[
            Guard(
                "s.const and s.elements == 1 and s.rank <= x.rank",
                _SCALAR,
                counter={"x": T(3, 3), "p": (1, 0), "s": W(3)},
            ),
        ],
        examples=[{"x": T(2, 3, 5), "p": (2, 0, 1), "s": C(0.25)}, {"x": T(2, 3), "p": (1, 0), "s": C([[2.0]])}],
    ),
    Rule(
        "scale-reshape",
        "Mul(Reshape(x, shape=n), s)",
        "Reshape(Mul(x, s), shape=n)",
        where=[
            Guard(
                "s.const and s.elements == 1 and s.rank <= min(x.rank, len(n))",
                _SCALAR,
                counter={"x": T(4, 3), "n": (3, 4), "s": W(4)},
            ),
        ],
        examples=[{"x": T(2, 3, 5), "n": (6, 5), "s": C(0.25)}],
    ),
    Rule(
        "concat-of-concat",
        "Concat(Concat(*xs, axis=k), y, axis=k)",
        "Concat(*xs, y, axis=k)",
        examples=[{"xs": [T(2, 3), T(2, 1)], "y": T(2, 5), "k": 1}],
        folds=True,
    ),
    Rule(
        "concat-with-concat",
        "Concat(x, Concat(*ys, axis=k), axis=k)",
        "Concat(x, *ys, axis=k)",
        examples=[{"x": T(2, 3), "ys": [T(2, 5), T(2, 2)], "k": 1}],
        folds=True,
    ),
    Rule(
        "concat-of-split",
        "s = Split(x, axis=k, sizes=n); root = Concat(s[0], s[1], axis=k)",
        "root = x",
        where=[
            Guard(
                "len(n) == 2", "all parts of the split must come back", counter={"x": T(2, 6), "k": 1, "n": (1, 2, 3)}
            )
        ],
        examples=[{"x": T(2, 6), "k": 1, "n": (2, 4)}, {"x": T(5, 2), "k": 0, "n": (1, 4)}],
    ),
    Rule(
        "split-of-part",
        "s = Split(x, axis=k, sizes=n); y = Split(s[i], axis=k, sizes=m); root = y[j]",
        "root = Split(x, axis=k, sizes=[*n[:i], *m, *n[i + 1:]])[i + j]",
        examples=[{"x": T(2, 9), "k": 1, "n": (2, 7), "i": 1, "m": (3, 4), "j": 0}],
    ),
    Rule(
        "part-beside-split-part",
        "s = Split(x, axis=k, sizes=n); y = Split(s[i], axis=k, sizes=m); root = s[j]",
        "root = Split(x, axis=k, sizes=[*n[:i], *m, *n[i + 1:]])[j if j < i else j + len(m) - 1]",
        where=[
            Guard(
                "i != j",
                "the part that is split again is several parts now",
                counter={"x": T(2, 8), "k": 1, "n": (4, 4), "i": 0, "m": (2, 2), "j": 0},
            )
        ],
        examples=[
            {"x": T(2, 9), "k": 1, "n": (2, 7), "i": 1, "m": (3, 4), "j": 0},
            {"x": T(2, 9), "k": 1, "n": (7, 2), "i": 0, "m": (3, 4), "j": 1},
        ],
    ),
]
