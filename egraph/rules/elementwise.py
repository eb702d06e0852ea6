"""Sums, products and powers: constants brought together, identities, scalars moved to where they fold."""

from __future__ import annotations

from .language import C, Guard, Rule, T, W

_SAME_SHAPE = "the result must keep the operand's shape"
_CONSTANTS = "c and d must be constants, so that their combination folds; free associativity explodes"
_NEUTRAL = "x + 0 and x·1 are in the class of x, so neutral constants would be brought together without end"

_FLOAT = "x.dtype in ('float32', 'float64', 'float16', 'bfloat16')"
_INTEGERS = "integers have no reciprocal"


def _power(name: str, exponent: float, right: str, reason: str) -> Rule:
    return Rule(
        name,
        "Pow(x, c)",
        right,
        where=[
            Guard(f"c.all_equal({exponent})", reason, counter={"x": T(2, 3), "c": C(1.5)}),
            Guard("c.fits(x)", _SAME_SHAPE, counter={"x": T(1, 3), "c": C([[exponent]] * 2)}),
        ],
        examples=[{"x": T(2, 3), "c": C(exponent)}, {"x": T(5, 2), "c": C([[exponent]])}],
    )


def _cancelled(name: str, left: str, right: str) -> Rule:
    return Rule(name, left, right, examples=[{"x": T(2, 3)}, {"x": T(5)}])


def _bound(op: str, right: str) -> Rule:
    """Max or Min with one number as Clip."""
    return Rule(
        f"{op.lower()}-as-clip",
        f"{op}(x, c)",
        right,
        where=[
            Guard("c.uniform is not None", "the bound must be one number", counter={"x": T(2, 3), "c": W(3)}),
            Guard("c.fits(x)", _SAME_SHAPE, counter={"x": T(1, 3), "c": C([[0.5]] * 2)}),
            Guard(_FLOAT, "Clip's bounds are floating-point numbers", kind="growth",
                  counter={"x": T(2, 3, dtype="int64"), "c": C(1.0, dtype="int64")}),
        ],
        examples=[{"x": T(2, 3), "c": C(0.5)}, {"x": T(5), "c": C([0.0])}, {"x": T(3, 1), "c": C([[-1.5]])}],
    )  # fmt: skip


_IDENTITIES = [
    Rule(
        "subtract-constant",
        "Sub(x, c)",
        "Add(x, Neg(c))",
        where=[
            Guard(
                "c.const and not x.const",
                "only a constant's negative folds",
                kind="growth",
                counter={"x": T(2, 3), "c": T(3)},
            ),
            Guard(
                _FLOAT,
                "unsigned integers have no negative",
                kind="growth",
                counter={"x": T(2, 3, dtype="int64"), "c": C([2.0, 3.0, 4.0], dtype="int64")},
            ),
        ],
        examples=[{"x": T(2, 3), "c": W(3)}, {"x": T(5, 1), "c": W(1, 7)}],
    ),
    Rule(
        "subtract-zero",
        "Sub(x, c)",
        "x",
        where=[
            Guard("c.all_equal(0.0)", "c must be zero everywhere", counter={"x": T(2, 3), "c": C([0.0, 0.0, 1.0])}),
            Guard("c.fits(x)", _SAME_SHAPE, counter={"x": T(1, 3), "c": C([[0.0] * 3] * 2)}),
        ],
        examples=[{"x": T(2, 3), "c": C([0.0, 0.0, 0.0])}, {"x": T(4, dtype="int64"), "c": C(0, dtype="int64")}],
    ),
    Rule(
        "add-negative",
        "Add(x, Neg(y))",
        "Sub(x, y)",
        where=[
            Guard("not y.const", "a constant's negative folds", kind="growth", counter={"x": T(2, 3), "y": W(3)}),
        ],
        examples=[{"x": T(2, 3), "y": T(3)}, {"x": T(1, 5), "y": T(7, 1)}],
    ),
    Rule(
        "subtract-negative",
        "Sub(x, Neg(y))",
        "Add(x, y)",
        examples=[{"x": T(2, 3), "y": T(3)}, {"x": T(1, 5), "y": T(7, 1)}],
    ),
    Rule(
        "scale-negative",
        "Mul(Neg(x), c)",
        "Mul(x, Neg(c))",
        where=[
            Guard(
                "c.const and not x.const",
                "only a constant's negative folds",
                kind="growth",
                counter={"x": T(2, 3), "c": T(3)},
            ),
        ],
        examples=[{"x": T(2, 3), "c": W(3)}, {"x": T(5, 1), "c": W(1, 7)}],
    ),
    _cancelled("negative-of-negative", "Neg(Neg(x))", "x"),
    _cancelled("relu-of-relu", "Relu(Relu(x))", "Relu(x)"),
    _cancelled("relu-of-sigmoid", "Relu(Sigmoid(x))", "Sigmoid(x)"),
    _cancelled("abs-of-abs", "Abs(Abs(x))", "Abs(x)"),
    _cancelled("abs-of-negative", "Abs(Neg(x))", "Abs(x)"),
    _cancelled("abs-of-relu", "Abs(Relu(x))", "Relu(x)"),
    _cancelled("relu-of-abs", "Relu(Abs(x))", "Abs(x)"),
    _cancelled("reciprocal-of-reciprocal", "Reciprocal(Reciprocal(x))", "x"),
    _cancelled("maximum-of-same", "Max(x, x)", "x"),
    _cancelled("minimum-of-same", "Min(x, x)", "x"),
    _power("square", 2.0, "Mul(x, x)", "the exponent must be 2"),
    _power("cube", 3.0, "Mul(Mul(x, x), x)", "the exponent must be 3"),
    _power("power-of-one", 1.0, "x", "the exponent must be 1"),
    _power("power-of-minus-one", -1.0, "Reciprocal(x)", "the exponent must be -1"),
    Rule(
        "divide-one",
        "Div(c, x)",
        "Reciprocal(x)",
        where=[
            Guard("c.all_equal(1.0)", "the dividend must be one", counter={"c": C(2.0), "x": T(2, 3)}),
            Guard("c.fits(x)", _SAME_SHAPE, counter={"c": C([[1.0]] * 2), "x": T(1, 3)}),
            Guard(_FLOAT, _INTEGERS, counter={"c": C(1, dtype="int64"), "x": T(2, dtype="int64")}),
        ],
        examples=[{"c": C(1.0), "x": T(2, 3)}, {"c": C([[1.0]]), "x": T(5, 7)}],
    ),
    Rule(
        "divide-by-one",
        "Div(x, c)",
        "x",
        where=[
            Guard("c.all_equal(1.0)", "c must be one everywhere", counter={"x": T(2, 3), "c": C([1.0, 1.0, 1.5])}),
            Guard("c.fits(x)", _SAME_SHAPE, counter={"x": T(1, 3), "c": C([[1.0] * 3] * 2)}),
        ],
        examples=[{"x": T(2, 3), "c": C([1.0, 1.0, 1.0])}, {"x": T(4, dtype="int64"), "c": C(1, dtype="int64")}],
    ),
    Rule(
        "multiply-reciprocal",
        "Mul(x, Reciprocal(y))",
        "Div(x, y)",
        where=[
            Guard(
                "not y.const",
                "a constant's reciprocal folds, and products are cheaper than quotients",
                kind="growth",
                counter={"x": T(2, 3), "y": W(3)},
            ),
        ],
        tag="range",
        examples=[{"x": T(2, 3), "y": T(3)}, {"x": T(1, 5), "y": T(7, 1)}, {"x": T(2, 5), "y": T(2, 1)}],
    ),
    _bound("Max", "Clip(x, min=c.uniform, max=float('inf'))"),
    _bound("Min", "Clip(x, min=float('-inf'), max=c.uniform)"),
    Rule(
        "clip-as-relu",
        "Clip(x, min=l, max=h)",
        "Relu(x)",
        where=[
            Guard("l == 0.0", "the lower bound must be zero", counter={"x": T(2, 3), "l": 0.5, "h": float("inf")}),
            Guard("h == float('inf')", "there must be no upper bound", counter={"x": T(2, 3), "l": 0.0, "h": 0.25}),
        ],
        examples=[{"x": T(2, 3), "l": 0.0, "h": float("inf")}],
    ),
    Rule(
        "clip-of-relu",
        "Clip(Relu(x), min=l, max=h)",
        "Clip(x, min=min(max(l, 0.0), h), max=h)",
        examples=[{"x": T(2, 3), "l": -1.0, "h": 0.5}, {"x": T(5), "l": 0.0, "h": 6.0}, {"x": T(9), "l": -2.0, "h": -1.0}],
    ),
    Rule(
        "clip-of-clip",
        "Clip(Clip(x, min=a, max=b), min=l, max=h)",
        "Clip(x, min=min(max(a, l), h), max=min(max(b, l), h))",
        examples=[
            {"x": T(2, 5), "a": -1.0, "b": 0.5, "l": -0.25, "h": 2.0},
            {"x": T(7), "a": 0.0, "b": float("inf"), "l": float("-inf"), "h": 1.0},
            {"x": T(7), "a": 1.0, "b": 2.0, "l": -1.0, "h": 0.5},
            {"x": T(9), "a": 0.5, "b": -0.5, "l": -1.0, "h": 0.25},
            {"x": T(9), "a": -3.0, "b": 3.0, "l": 0.5, "h": -0.5},
        ],
    ),
]  # fmt: skip

RULES = [
    *_IDENTITIES,
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
        innermost="x",
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
        innermost="x",
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
            Guard(
                "invertible(c)",
                "a divisor that may be 0 has an infinite reciprocal: x/0 is x·∞, but (x + b)·∞ is not x·∞ + b·∞",
                kind="growth",
                counter={"x": T(2, 3), "c": C([2.0, 0.0, 7.0])},
            ),
        ],
        tag="range",
        examples=[
            {"x": T(2, 3), "c": C(8.0)},
            {"x": T(2, 3), "c": C([2.0, -0.5, 7.0])},
            {"x": T(2, 3), "c": W(2, 1)},
        ],
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
