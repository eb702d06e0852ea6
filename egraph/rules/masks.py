"""Conditions, masks and casts: what exporters compute for each layer anew, or need not compute at all.

Not here: Where(IsNaN(p), 0, p) as p, p a softmax. It is wrong where a row is −∞ throughout, and whether one can be is
told by the numbers that a model gets, not by its graph. The guard is moved behind the product instead, where it is
smaller and no longer between the parts of an attention.
"""

from __future__ import annotations

from typing import Any

from .language import C, Free, Guard, Rule, T

_SAME_SHAPE = "the result must keep the operand's shape"
_KNOWN = "the condition must be known"


def B(*shape: int) -> Free:
    """A boolean input."""
    return T(*shape, dtype="bool")


def _neutral(op: str, constant: bool) -> Rule:
    """A logical operator with the constant that leaves the other operand as it is."""
    return Rule(
        f"{op.lower()}-{str(constant).lower()}",
        f"{op}(x, c)",
        "x",
        where=[
            Guard(
                f"c.all_equal({float(constant)})",
                f"the constant must be {str(constant).lower()}",
                counter={"x": B(3, 5), "c": C(not constant, "bool")},
            ),
            Guard("c.fits(x)", _SAME_SHAPE, counter={"x": B(1, 5), "c": C([[constant]] * 2, "bool")}),
        ],
        examples=[{"x": B(3, 5), "c": C([[constant] * 5] * 3, "bool")}, {"x": B(7), "c": C(constant, "bool")}],
    )


def _chosen(value: float, chosen: str, other: str) -> Rule:
    return Rule(
        f"where-{str(bool(value)).lower()}",
        "Where(c, x, y)",
        chosen,
        where=[
            Guard(
                f"c.all_equal({value})",
                _KNOWN,
                counter={"c": B(3, 5), "x": T(3, 5), "y": T(3, 5)},
            ),
            Guard(
                f"c.fits({chosen}) and {other}.fits({chosen})",
                _SAME_SHAPE,
                counter={"c": C([[value]] * 2, "bool"), "x": T(1, 5), "y": T(1, 5)},
            ),
        ],
        examples=[
            {"c": C(value, "bool"), "x": T(3, 5), "y": T(3, 5)},
            {"c": C([value], "bool"), chosen: T(2, 7), other: T(1, 7)},
        ],
    )


def _negated(op: str, other: str) -> Rule:
    """The negation of a comparison is the comparison the other way round, NaN aside: so for integers only."""
    return Rule(
        f"not-{op.lower()}",
        f"Not({op}(x, y))",
        f"{other}(y, x)",
        where=[
            Guard(
                "'int' in x.dtype",
                "no comparison with NaN is true",
                counter={"x": T(3, 5), "y": C([float("nan")] * 5)},
            )
        ],
        examples=[{"x": T(3, 5, dtype="int64"), "y": T(5, dtype="int64")}],
    )


_MOVES: dict[str, tuple[str, dict[str, Any]]] = {
    "Reshape": ("shape=n", {"n": (5, 6)}),
    "Transpose": ("perm=n", {"n": (2, 0, 1)}),
}


def _cast_moved(op: str) -> list[Rule]:
    """Elements are moved in the smaller of the two types."""
    attribute, values = _MOVES[op]
    bits = "(64 if '64' in {0} else 32 if '32' in {0} else 16 if '16' in {0} else 8)"
    example = {"x": T(2, 3, 5, dtype="int64"), "t": "float32", **values}
    wider = {"x": T(2, 3, 5), "t": "float64", **values}
    return [
        Rule(
            f"{op.lower()}-of-cast",
            f"{op}(Cast(x, to=t), {attribute})",
            f"Cast({op}(x, {attribute}), to=t)",
            where=[
                Guard(
                    f"{bits.format('x.dtype')} < {bits.format('t')}",
                    "the type that is moved must be the smaller one",
                    kind="growth",
                    counter=example,
                )
            ],
            examples=[wider],
        ),
        Rule(
            f"cast-of-{op.lower()}",
            f"Cast({op}(x, {attribute}), to=t)",
            f"{op}(Cast(x, to=t), {attribute})",
            where=[
                Guard(
                    f"{bits.format('x.dtype')} > {bits.format('t')}",
                    "the type that is moved must be the smaller one",
                    kind="growth",
                    counter=wider,
                )
            ],
            examples=[example],
        ),
    ]


_MASKED = C([[-float("inf")] * 3, [0.0, 1.0, 0.5]])

RULES = [
    Rule(
        "nan-guard-behind-product",
        "p = Softmax(x, axis=k); root = MatMul(Where(IsNaN(p), z, p), v)",
        "y = MatMul(p, v); root = Where(IsNaN(y), constant(np.zeros(()), y.dtype), y)",
        where=[
            Guard(
                "z.all_equal(0.0)",
                "only rows of zeros give rows of zeros",
                counter={"x": _MASKED, "k": 1, "z": C(1.0), "v": T(3, 5)},
            ),
            Guard(
                "k == x.last",
                "the rows of the softmax must be those of the product: then all of a row is NaN, or nothing",
                counter={"x": C([[-float("inf"), 0.0]] * 2), "k": 0, "z": C(0.0), "v": T(2, 5)},
            ),
            Guard(
                "z.fits(p)",
                "the result must keep the operand's shape",
                counter={"x": _MASKED, "k": 1, "z": C([[[0.0]]] * 2), "v": T(3, 5)},
            ),
        ],
        examples=[
            {"x": _MASKED, "k": 1, "z": C(0.0), "v": T(3, 5)},
            {"x": T(2, 3, 5, 7), "k": 3, "z": C([0.0]), "v": T(2, 1, 7, 2)},
        ],
        source="torch's exporter on scaled_dot_product_attention with a mask",
    ),
    Rule("not-of-not", "Not(Not(c))", "c", examples=[{"c": B(3, 5)}]),
    Rule("and-of-same", "And(c, c)", "c", examples=[{"c": B(3, 5)}]),
    Rule("or-of-same", "Or(c, c)", "c", examples=[{"c": B(3, 5)}]),
    _neutral("And", True),
    _neutral("Or", False),
    Rule(
        "where-not",
        "Where(Not(c), x, y)",
        "Where(c, y, x)",
        examples=[{"c": B(3, 5), "x": T(3, 5), "y": T(1)}, {"c": B(7, 1, 1), "x": T(5), "y": T(2, 1)}],
    ),
    Rule(
        "where-same",
        "Where(c, x, x)",
        "x",
        where=[Guard("c.fits(x)", _SAME_SHAPE, counter={"c": B(3, 5), "x": T(5)})],
        examples=[{"c": B(3, 5), "x": T(3, 5)}, {"c": B(1), "x": T(7, 2)}],
    ),
    _chosen(1.0, "x", "y"),
    _chosen(0.0, "y", "x"),
    Rule(
        "where-in-where",
        "Where(c, x, Where(c, y, z))",
        "Where(c, x, z)",
        where=[
            Guard(
                "y.fits(c) or y.fits(x) or y.fits(z)",
                "the operand that is never chosen must not give the result its shape",
                counter={"c": B(1), "x": T(5), "y": T(3, 5), "z": T(5)},
            )
        ],
        examples=[{"c": B(3, 5), "x": T(3, 5), "y": T(3, 5), "z": T(5)}],
    ),
    Rule(
        "where-in-where-first",
        "Where(c, Where(c, x, y), z)",
        "Where(c, x, z)",
        where=[
            Guard(
                "y.fits(c) or y.fits(x) or y.fits(z)",
                "the operand that is never chosen must not give the result its shape",
                counter={"c": B(1), "x": T(5), "y": T(3, 5), "z": T(5)},
            )
        ],
        examples=[{"c": B(3, 5), "x": T(3, 5), "y": T(3, 5), "z": T(5)}],
    ),
    Rule(
        "where-in-where-not",
        "Where(c, x, Where(Not(c), y, z))",
        "Where(c, x, y)",
        where=[
            Guard(
                "z.fits(c) or z.fits(x) or z.fits(y)",
                "the operand that is never chosen must not give the result its shape",
                counter={"c": B(1), "x": T(5), "y": T(5), "z": T(3, 5)},
            )
        ],
        examples=[{"c": B(3, 5), "x": T(3, 5), "y": T(5), "z": T(3, 5)}],
        source="shifted windows: masked_fill(m != 0).masked_fill(m == 0)",
    ),
    _negated("Less", "LessOrEqual"),
    _negated("Greater", "GreaterOrEqual"),
    _negated("LessOrEqual", "Less"),
    _negated("GreaterOrEqual", "Greater"),
    Rule(
        "greater-as-less",
        "Greater(x, y)",
        "Less(y, x)",
        examples=[{"x": T(3, 5), "y": T(5)}, {"x": T(7, 1, dtype="int64"), "y": T(2, dtype="int64")}],
    ),
    Rule(
        "greater-or-equal-as-less-or-equal",
        "GreaterOrEqual(x, y)",
        "LessOrEqual(y, x)",
        examples=[{"x": T(3, 5), "y": T(5)}, {"x": T(7, 1, dtype="int64"), "y": T(2, dtype="int64")}],
    ),
    Rule(
        "cast-identity",
        "Cast(x, to=t)",
        "x",
        where=[Guard("t == x.dtype", "the type must stay the same", counter={"x": T(3, 5), "t": "int64"})],
        examples=[{"x": T(3, 5), "t": "float32"}, {"x": T(7, dtype="int64"), "t": "int64"}],
    ),
    Rule(
        "cast-of-cast",
        "Cast(Cast(x, to=m), to=t)",
        "Cast(x, to=t)",
        where=[
            Guard(
                "holds(m, x.dtype)",
                "the type in the middle must hold every value of the first",
                counter={"x": T(3, 5), "m": "int64", "t": "float32"},
            )
        ],
        examples=[
            {"x": T(3, 5, dtype="float16"), "m": "float32", "t": "float16"},
            {"x": T(7, dtype="int32"), "m": "int64", "t": "float32"},
            {"x": B(2, 3), "m": "int64", "t": "float32"},
        ],
    ),
    *(rule for op in _MOVES for rule in _cast_moved(op)),
]
