"""Terms that share a weight become one batch: its bytes are read once."""

from __future__ import annotations

from .language import Guard, Rule, T, W

_ORDER = "terms on one weight merge in the order of their age, one after the other, where none needs another"
_A = {"strides": (1, 1), "dilations": (1, 1), "pads": (1, 1, 1, 1), "group": 1}
_OTHER = {"strides": (2, 1), "dilations": (1, 2), "pads": (0, 2, 1, 2), "group": 2}


def _convs(biased: bool) -> list[Rule]:
    kind, b = ("biased-convs", ", b") if biased else ("convs", "")
    own = {"b": W(4)} if biased else {}
    seen = {"x": T(2, 2, 5, 5), "y": T(3, 2, 5, 5), "w": W(4, 2, 3, 3), **own}
    grouped = {"x": T(1, 4, 5, 7), "y": T(1, 4, 5, 7), "w": W(4, 2, 3, 2), **own, "a": _OTHER}

    def concatenated(count: int, number: str) -> Rule:
        names = "xyzu"[:count]
        return Rule(
            f"concat-of-{number}{kind}-of-one-kernel",
            f"Concat({', '.join(f'Conv({n}, w{b}, **a)' for n in names)}, axis=0)",
            f"Conv(Concat({', '.join(names)}, axis=0), w{b}, **a)",
            examples=[
                {**{n: T(1 + i, 2, 5, 5) for i, n in enumerate(names)}, "w": W(4, 2, 3, 3), **own, "a": _A},
                {**{n: T(1 + i, 4, 5, 7) for i, n in enumerate(names)}, "w": W(4, 2, 3, 2), **own, "a": _OTHER},
            ],
            source="TASO 107",
        )

    return [
        concatenated(2, ""),
        concatenated(3, "three-"),
        concatenated(4, "four-"),
        Rule(
            f"merge-{kind}-of-one-kernel",
            f"y1 = Conv(x, w{b}, **a); y2 = Conv(y, w{b}, **a)",
            f"""
m = Split(Conv(Concat(x, y, axis=0), w{b}, **a), axis=0, sizes=[x.shape[0], y.shape[0]])
y1 = m[0]; y2 = m[1]
""",
            where=[
                Guard("next_user(w, x, y)", _ORDER, kind="growth", counter={"y": T(3, 2, 5, 5), **seen, "a": _A}),
            ],
            examples=[{**seen, "a": _A}, grouped],
            source="TASO's two-output conv merges; twin towers",
        ),
    ]


RULES = [
    Rule(
        "merge-matmuls-of-one-weight",
        "y1 = MatMul(x, w); y2 = MatMul(y, w)",
        "m = Split(MatMul(Concat(x, y, axis=0), w), axis=0, sizes=[x.shape[0], y.shape[0]]); y1 = m[0]; y2 = m[1]",
        where=[
            Guard(
                "w.rank == 2 and x.rank >= 2 and y.rank >= 2",
                "of higher ranks axis 0 is not an axis of the rows, and vectors have no rows",
                counter={"x": T(2, 3, 5), "y": T(2, 3, 5), "w": W(2, 5, 4)},
            ),
            Guard(
                "next_user(w, x, y)",
                _ORDER,
                kind="growth",
                counter={"y": T(3, 5), "x": T(2, 5), "w": W(5, 4)},
            ),
        ],
        examples=[{"x": T(2, 5), "y": T(3, 5), "w": W(5, 4)}, {"x": T(2, 3, 5), "y": T(1, 3, 5), "w": W(5, 2)}],
        source="TASO's two-output matmul merge; steps of an unrolled recurrence, twin towers",
    ),
    *(rule for biased in (False, True) for rule in _convs(biased)),
    Rule(
        "conv-of-narrow-sum",
        "Conv(Add(x, y), w, **a)",
        "Add(Conv(x, w, **a), Conv(y, w, **a))",
        where=[
            Guard(
                "x.shape == y.shape",
                "operands of different extents broadcast in the sum but not in their convolutions",
                counter={"x": T(1, 2, 5, 5), "y": T(1, 2, 1, 1), "w": W(4, 2, 3, 3), "a": _A},
            ),
            Guard(
                "not x.const and not y.const and x.shape[1] > 2 * w.shape[0]",
                "the results must be so narrow that their sum takes less than the sum before them",
                kind="growth",
                counter={"x": T(1, 2, 5, 5), "y": T(1, 2, 5, 5), "w": W(4, 2, 3, 3), "a": _A},
            ),
        ],
        tag="range",
        examples=[{"x": T(2, 11, 5, 5), "y": T(2, 11, 5, 5), "w": W(1, 11, 3, 3), "a": _A}],
        source="TASO 60 and 62",
    ),
    Rule(
        "conv-of-sum",
        "Add(Conv(x, w, **a), Conv(y, w, **a))",
        "Conv(Add(x, y), w, **a)",
        where=[
            Guard(
                "x.shape == y.shape",
                "operands of different extents broadcast in the sum of convolutions but not before them",
                counter={"x": T(1, 2, 5, 5), "y": T(1, 2, 1, 1), "w": W(4, 2, 3, 3), "a": _A},
            ),
        ],
        tag="range",
        examples=[
            {"x": T(2, 2, 5, 5), "y": T(2, 2, 5, 5), "w": W(4, 2, 3, 3), "a": _A},
            {"x": T(1, 4, 5, 7), "y": T(1, 4, 5, 7), "w": T(4, 2, 3, 2), "a": _OTHER},
        ],
        source="TASO 60 and 62, in the other direction",
    ),
]
