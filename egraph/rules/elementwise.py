"""Sums and products: constants brought together, identities, scalars moved to where they fold."""

from __future__ import annotations

from .language import C, Guard, Rule, T, W

_SAME_SHAPE = "the result must keep the operand's shape"
_CONSTANTS = "c and d must be constants, so that their combination folds; free associativity explodes"
_NEUTRAL = "x + 0 and x·1 are in the class of x, so neutral constants would be brought together without end"

RULES = [
    Rule(
        "add-constants",
        "Add(Add(x, c), d)",
        "Add(x, Add(c, d))",
        where=[
            Guard(
                "c.const and d.const and not x.const",
                _CONSTANTS,
                kind="growth",
                counter={"x": T(2, 3), "c": T(2, 3), "d": T(3)},
            ),
            Guard(
                "not (c.all_equal(0.0) or d.all_equal(0.0))",
                _NEUTRAL,
                kind="growth",
                counter={"x": T(2, 3), "c": W(3), "d": C(0.0)},
            ),
        ],
        examples=[{"x": T(2, 3), "c": W(3), "d": W(2, 1)}, {"x": T(5), "c": W(5), "d": C(0.5)}],
    ),
    Rule(
        "multiply-constants",
        "Mul(Mul(x, c), d)",
        "Mul(x, Mul(c, d))",
        where=[
            Guard(
                "c.const and d.const and not x.const",
                _CONSTANTS,
                kind="growth",
                counter={"x": T(2, 3), "c": T(2, 3), "d": T(3)},
            ),
            Guard(
                "not (c.all_equal(1.0) or d.all_equal(1.0))",
                _NEUTRAL,
                kind="growth",
                counter={"x": T(2, 3), "c": W(3), "d": C(1.0)},
            ),
        ],
        tag="range",
        examples=[{"x": T(2, 3), "c": W(3), "d": W(2, 1)}, {"x": T(5), "c": C(0.25), "d": C(3.0)}],
    ),
    Rule(
        "add-zero",
        "Add(x, c)",
        "x",
        where=[
            Guard("c.all_equal(0.0)", "c must be zero everywhere", counter={"x": T(2, 3), "c": C([0.0, 0.0, 1.0])}),
            Guard(
                "c.rank <= x.rank and all(e in (1, x.shape[x.rank - c.rank + i]) for i, e in enumerate(c.shape))",
                _SAME_SHAPE,
                counter={"x": T(1, 3), "c": C([[0.0] * 3] * 2)},
            ),
        ],
        examples=[{"x": T(2, 3), "c": C([0.0, 0.0, 0.0])}, {"x": T(4), "c": C(0.0)}],
    ),
    Rule(
        "multiply-one",
        "Mul(x, c)",
        "x",
        where=[
            Guard("c.all_equal(1.0)", "c must be one everywhere", counter={"x": T(2, 3), "c": C([1.0, 1.0, 1.5])}),
            Guard(
                "c.rank <= x.rank and all(e in (1, x.shape[x.rank - c.rank + i]) for i, e in enumerate(c.shape))",
                _SAME_SHAPE,
                counter={"x": T(1, 3), "c": C([[1.0] * 3] * 2)},
            ),
        ],
        examples=[{"x": T(2, 3), "c": C([1.0, 1.0, 1.0])}],
    ),
    Rule(
        "divide-by-constant",
        "Div(x, c)",
        "Mul(x, Div(constant(np.ones(()), c.dtype), c))",
        where=[
            Guard(
                "c.const and not x.const",
                "only a constant divisor's reciprocal folds",
                kind="growth",
                counter={"x": T(2, 3), "c": T(3)},
            ),
            Guard(
                "x.dtype in ('float32', 'float64', 'float16', 'bfloat16')",
                "integer division rounds",
                counter={"x": T(2, 3, dtype="int64"), "c": C([2.0, 3.0, 4.0], dtype="int64")},
            ),
        ],
        tag="range",
        examples=[{"x": T(2, 3), "c": C(8.0)}, {"x": T(2, 3), "c": C([2.0, -0.5, 7.0])}],
    ),
    Rule(
        "scale-sum",
        "Mul(Add(x, b), s)",
        "Add(Mul(x, s), Mul(b, s))",
        where=[
            Guard(
                "b.const and s.const and s.elements == 1 and not x.const",
                "b and s must be constants and s one number, so that b·s folds without growing",
                kind="growth",
                counter={"x": T(2, 3), "b": W(3), "s": W(3)},
            )
        ],
        tag="range",
        examples=[{"x": T(2, 3), "b": W(3), "s": C(0.125)}, {"x": T(5, 1), "b": W(1, 7), "s": C([3.0])}],
    ),
]
