"""Norms that exporters write in pieces, as one operator; their scales and biases moved to where they fold."""

from __future__ import annotations

from .language import C, Example, Guard, Rule, T, W

_TRAILING = "list(a) == list(range(a[0], x.rank))"
_TRAILING_REASON = "a norm is over the last axes, all of them from one on"
_EPSILON = "e.uniform is not None"
_EPSILON_REASON = "epsilon must be one constant number"
_KEPT = "e.fits(v)"
_KEPT_REASON = "epsilon must not broadcast the mean to a larger shape"
_ONES = "constant(np.ones(x.shape[a[0]:]), x.dtype)"


def _guards(**others: object) -> list[Guard]:
    """What a norm in pieces must be, given the other names of the pattern for the counter-examples."""
    return [
        Guard(_TRAILING, _TRAILING_REASON, counter={"x": T(3, 3), "a": (0,), "e": C(0.25), **others}),
        Guard(_EPSILON, _EPSILON_REASON, counter={"x": T(3, 5), "a": (1,), "e": T(1), **others}),
        Guard(_KEPT, _KEPT_REASON, counter={"x": T(1, 5), "a": (1,), "e": C([[0.25]] * 2), **others}),
    ]


_PIECES: list[Example] = [
    {"x": T(3, 5), "a": (1,), "e": C(0.25)},
    {"x": T(2, 3, 7), "a": (2,), "e": C([2.0**-17])},
    {"x": T(2, 3, 5), "a": (1, 2), "e": C(0.5)},
]


def _rounded(op: str) -> Rule:
    """A norm that is computed in float32 between two casts: the fused operators do that themselves."""
    return Rule(
        f"{_NAMES[op]}-between-casts",
        f"Cast({op}(Cast(x, to=m), s, axis=k, epsilon=e), to=t)",
        f"{op}(x, constant(np.ones(s.shape), t), axis=k, epsilon=e)",
        where=[
            Guard(
                "t == x.dtype",
                "the result must be of the operand's type",
                counter={"x": T(3, 5, dtype="float16"), "m": "float32", "s": C([1.0] * 5), "k": 1, "e": 0.5, "t": "float64"},
            ),
            Guard(
                "m == 'float32' and t in ('float16', 'bfloat16')",
                "the fused norm of a narrow type is computed in float32, of others in their own type",
                kind="growth",
                counter={"x": T(3, 5), "m": "float64", "s": C([1.0] * 5, "float64"), "k": 1, "e": 0.5, "t": "float32"},
            ),
            Guard(
                "s.all_equal(1.0)",
                "the scale is applied after the cast",
                counter={"x": T(3, 5, dtype="float16"), "m": "float32", "s": W(5), "k": 1, "e": 0.5, "t": "float16"},
            ),
        ],
        examples=[
            {"x": T(3, 5, dtype="float16"), "m": "float32", "s": C([1.0] * 5), "k": 1, "e": 0.5, "t": "float16"},
            {"x": T(2, 3, 7, dtype="bfloat16"), "m": "float32", "s": C([1.0] * 7), "k": 2, "e": 1e-5, "t": "bfloat16"},
        ],
        source="ONNX: the attribute stash_type of both norms is float by default",
    )  # fmt: skip


_NAMES = {"RMSNormalization": "rms-norm", "LayerNormalization": "layer-norm"}


def _scaled(op: str) -> Rule:
    """A product after a norm is the norm's scale."""
    return Rule(
        f"scale-of-{_NAMES[op]}",
        f"Mul({op}(x, s, axis=k, epsilon=e), g)",
        f"{op}(x, g if g.shape == s.shape else Mul(s, g), axis=k, epsilon=e)",
        where=[
            Guard(
                "g.const",
                "the scale must be a constant, else it is another tensor's product",
                kind="growth",
                counter={"x": T(3, 5), "s": C([1.0] * 5), "k": 1, "e": 0.5, "g": T(5)},
            ),
            Guard(
                "s.all_equal(1.0)",
                "a norm has one scale",
                counter={"x": T(3, 5), "s": W(5), "k": 1, "e": 0.5, "g": W(5)},
            ),
            Guard(
                "g.fits(s)",
                "a scale is one number for each place that the norm is taken over",
                counter={"x": T(5, 5), "s": C([1.0] * 5), "k": 1, "e": 0.5, "g": W(5, 1)},
            ),
        ],
        examples=[
            {"x": T(3, 5), "s": C([1.0] * 5), "k": 1, "e": 0.5, "g": W(5)},
            {"x": T(2, 3, 7), "s": C([1.0] * 7), "k": 2, "e": 1e-5, "g": C(3.0)},
            {"x": T(2, 3, 5), "s": C([[1.0] * 5] * 3), "k": 1, "e": 0.5, "g": W(3, 5)},
        ],
    )


def _siblings(op: str, left: str, right: str, g: dict[str, object], h: dict[str, object]) -> Rule:
    """Norms of one tensor that differ in their scales only: one norm, whose scales may fold further on."""
    common = {"x": T(3, 5), "k": 1, "e": 0.5}
    return Rule(
        f"sibling-{_NAMES[op]}s",
        left,
        right,
        where=[
            Guard(
                " and ".join(f"{n}.const" for n in (*g, *h)),
                "scales and biases must be constants",
                kind="growth",
                counter={**common, **dict.fromkeys((*g, *h), T(5))},
            ),
            Guard(
                "g.shape == h.shape",
                "the scales must be of one shape",
                kind="growth",
                counter={**common, "k": 0, **dict.fromkeys(g, W(3, 5)), **dict.fromkeys(h, W(5))},
            ),
            Guard(
                "g.key < h.key",
                "each pair once",
                kind="growth",
                counter={**h, **common, **g},
            ),
        ],
        tag="range",
        examples=[{**common, **g, **h}, {"x": T(2, 3, 5), "k": 2, "e": 1e-5, **g, **h}],
        source="parallel attention and feed-forward of GPT-NeoX and Falcon",
    )


RULES = [
    Rule(
        "rms-norm",
        "v = ReduceMean(Mul(x, x), axes=a, keepdims=1); root = Div(x, Sqrt(Add(v, e)))",
        f"root = RMSNormalization(x, {_ONES}, axis=a[0], epsilon=float(e.uniform))",
        where=_guards(),
        tag="range",
        examples=_PIECES,
    ),
    Rule(
        "rms-norm-by-power",
        "v = ReduceMean(Mul(x, x), axes=a, keepdims=1); root = Mul(x, Pow(Add(v, e), h))",
        f"root = RMSNormalization(x, {_ONES}, axis=a[0], epsilon=float(e.uniform))",
        where=[
            *_guards(h=C(-0.5)),
            Guard(
                "h.all_equal(-0.5) and h.fits(v)",
                "the power must be -½",
                counter={"x": T(3, 5), "a": (1,), "e": C(0.25), "h": C(-1.0)},
            ),
        ],
        tag="range",
        examples=[{**e, "h": C(-0.5)} for e in _PIECES],
        source="Gemma 3n",
    ),
    Rule(
        "layer-norm",
        """
d = Sub(x, ReduceMean(x, axes=a, keepdims=1))
v = ReduceMean(Mul(d, d), axes=a, keepdims=1)
root = Div(d, Sqrt(Add(v, e)))
""",
        f"root = LayerNormalization(x, {_ONES}, axis=a[0], epsilon=float(e.uniform))",
        where=_guards(),
        tag="range",
        examples=_PIECES,
    ),
    Rule(
        "rms-norm-of-centred",
        "RMSNormalization(Sub(x, ReduceMean(x, axes=a, keepdims=1)), s, axis=k, epsilon=e)",
        "LayerNormalization(x, s, axis=k, epsilon=e)",
        where=[
            Guard(
                "list(a) == list(range(k, x.rank))",
                "the mean must be over the axes of the norm",
                counter={"x": T(3, 3), "a": (0,), "k": 1, "e": 0.5, "s": W(3)},
            )
        ],
        examples=[
            {"x": T(3, 5), "a": (1,), "k": 1, "e": 0.5, "s": W(5)},
            {"x": T(2, 3, 5), "a": (1, 2), "k": 1, "e": 0.5, "s": W(3, 5)},
        ],
    ),
    *(_rounded(op) for op in _NAMES),
    *(_scaled(op) for op in _NAMES),
    Rule(
        "bias-of-layer-norm",
        "Add(LayerNormalization(x, s, axis=k, epsilon=e), b)",
        "LayerNormalization(x, s, b if b.shape == s.shape else Expand(b, shape=s.shape), axis=k, epsilon=e)",
        where=[
            Guard(
                "b.const and s.const",
                "the bias must be a constant, else it is another tensor's sum",
                kind="growth",
                counter={"x": T(3, 5), "s": W(5), "k": 1, "e": 0.5, "b": T(5)},
            ),
            Guard(
                "b.fits(s)",
                "a bias is one number for each place that the norm is taken over",
                counter={"x": T(5, 5), "s": W(5), "k": 1, "e": 0.5, "b": W(5, 1)},
            ),
        ],
        examples=[
            {"x": T(3, 5), "s": W(5), "k": 1, "e": 0.5, "b": W(5)},
            {"x": T(2, 3, 7), "s": W(7), "k": 2, "e": 1e-5, "b": C([0.5])},
        ],
    ),
    _siblings(
        "LayerNormalization",
        "y1 = LayerNormalization(x, g, b, axis=k, epsilon=e); y2 = LayerNormalization(x, h, c, axis=k, epsilon=e)",
        """
n = LayerNormalization(x, constant(np.ones(g.shape), g.dtype), axis=k, epsilon=e)
y1 = Add(Mul(n, g), b); y2 = Add(Mul(n, h), c)
""",
        {"g": W(5), "b": W(5)},
        {"h": W(5), "c": W(5)},
    ),
    _siblings(
        "RMSNormalization",
        "y1 = RMSNormalization(x, g, axis=k, epsilon=e); y2 = RMSNormalization(x, h, axis=k, epsilon=e)",
        """
n = RMSNormalization(x, constant(np.ones(g.shape), g.dtype), axis=k, epsilon=e)
y1 = Mul(n, g); y2 = Mul(n, h)
""",
        {"g": W(5)},
        {"h": W(5)},
    ),
    Rule(
        "scaled-matmul-operand",
        "MatMul(Mul(x, g), w)",
        "MatMul(x, Mul(w, Reshape(g, shape=[g.elements, 1])))",
        where=[
            Guard(
                "g.const and w.const and not x.const",
                "g and w must be constants, so that their product folds",
                kind="growth",
                counter={"x": T(3, 5), "g": T(5), "w": W(5, 2)},
            ),
            Guard(
                "w.rank == 2 and g.rank == 1 and g.elements in (1, w.shape[0])",
                "g must be one number, or one for each row of the matrix w",
                counter={"x": T(5, 5), "g": W(5, 1), "w": W(5, 5)},
            ),
            Guard("g.fits(x)", "x must have the shape of the product", counter={"x": T(3, 1), "g": W(5), "w": W(5, 2)}),
        ],
        tag="range",
        examples=[
            {"x": T(3, 5), "g": W(5), "w": W(5, 2)},
            {"x": T(2, 3, 5), "g": W(5), "w": W(5, 7)},
            {"x": T(3, 5), "g": C([0.25]), "w": W(5, 2)},
        ],
        source="a norm's scale folds into all products that read it",
    ),
    Rule(
        "concat-of-scaled-rows",
        "Concat(Mul(w, g), Mul(v, g), axis=k)",
        "Mul(Concat(w, v, axis=k), g)",
        where=[
            Guard(
                "g.const",
                "only a constant scale folds further",
                kind="growth",
                counter={"w": T(5, 2), "v": T(5, 3), "g": T(5, 1), "k": 1},
            ),
            Guard(
                "w.rank == v.rank and g.fits(w) and g.fits(v) and g.broadcasts_along(k, w.rank)",
                "the scale must be the same along the axis of the concatenation",
                counter={"w": T(5, 3), "v": T(5, 3), "g": W(5, 3), "k": 1},
            ),
        ],
        examples=[{"w": T(5, 2), "v": T(5, 3), "g": W(5, 1), "k": 1}, {"w": T(2, 7), "v": T(3, 7), "g": W(7), "k": 0}],
        folds=True,
        source="siblings that are merged before and after their operand's scale is folded are the same product",
    ),
    Rule(
        "shifted-matmul-operand",
        "MatMul(Add(x, b), w)",
        "Add(MatMul(x, w), MatMul(b, w))",
        where=[
            Guard(
                "b.const and w.const and not x.const",
                "b and w must be constants, so that their product folds",
                kind="growth",
                counter={"x": T(3, 5), "b": T(5), "w": W(5, 2)},
            ),
            Guard(
                "w.rank == 2 and b.rank == 1 and b.shape[0] == w.shape[0]",
                "b must be one row of the factor",
                counter={"x": T(5, 5), "b": W(1), "w": W(5, 5)},
            ),
            Guard("b.fits(x)", "x must have the shape of the sum", counter={"x": T(3, 1), "b": W(5), "w": W(5, 2)}),
            Guard(
                "not b.all_equal(0.0)",
                "x + 0 is in the class of x, and what 0 makes of the weight is not seen to be 0 and added again and again",
                kind="growth",
                counter={"x": T(3, 5), "b": C([0.0] * 5), "w": W(5, 2)},
            ),
        ],
        tag="range",
        examples=[{"x": T(3, 5), "b": W(5), "w": W(5, 2)}, {"x": T(2, 3, 5), "b": W(5), "w": W(5, 7)}],
        source="a norm's bias folds into the biases of the products that read it",
    ),
]
