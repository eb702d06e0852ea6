"""Attention: scales brought together, repeated key and value heads, decomposed and fused forms."""

from __future__ import annotations

from .language import C, Example, Guard, Rule, T, W

_RANKS = "Attention knows batches of heads: operands of rank 4 whose batches are the same"
_MASK = "the mask must fit the scores, and have a value for each key"
_NUMBER = "s must be one known number: it becomes an attribute"
_AXIS = "the softmax must be over the keys, the last axis"
_REPEATED = "each head must be repeated as a block, as Attention counts heads: axis 2 is the one that is expanded"

_Q, _K, _KT, _V = T(2, 3, 5, 7), T(2, 3, 4, 7), T(2, 3, 7, 4), T(2, 3, 4, 6)
_QKV: dict[str, object] = {"q": _Q, "t": _KT, "v": _V, "i": 3}


def _composed(name: str, scores: str, *, scaled: bool, masked: bool) -> Rule:
    """A product, a softmax and a product are one Attention."""
    more: dict[str, object] = {**({"s": C(0.25)} if scaled else {}), **({"m": T(2, 1, 5, 4)} if masked else {})}
    guards = [
        Guard(
            "q.rank == 4 and t.rank == 4 and v.rank == 4 and alike(q.shape[:2], t.shape[:2])"
            " and alike(q.shape[:2], v.shape[:2])",
            _RANKS,
            counter={**_QKV, **more, "v": T(2, 1, 4, 6)},
        ),
        Guard("i == 3", _AXIS, counter={**_QKV, **more, "i": 2}),
    ]
    if scaled:
        guards.append(
            Guard(
                "s.uniform is not None and s.elements == 1 and s.rank <= 4",
                _NUMBER,
                counter={**_QKV, **more, "s": W(4)},
            )
        )
    if masked:
        guards.append(
            Guard(
                "m.rank > 0 and same(m.shape[-1], t.shape[3]) and len(stripped(m.shape)) <= 4"
                " and all(one(e) or same(e, d) for e, d in zip(padded(m.shape, 4), (*q.shape[:3], t.shape[3])))",
                _MASK,
                counter={**_QKV, **more, "m": T(2, 1, 5, 1)},
            )
        )
    examples: list[Example] = [{**_QKV, **more}]
    if masked:
        examples.append({**_QKV, **more, "m": W(5, 4)})
    operands = "q, Transpose(t, perm=swapped(4)), v" + (", m" if masked else "")
    return Rule(
        name,
        f"MatMul(Softmax({scores}, axis=i), v)",
        f"Attention({operands}, scale={'float(s.uniform)' if scaled else '1.0'}, causal=0)",
        where=guards,
        examples=examples,
    )


def _scaled(name: str, operands: str, plain: str, example: Example) -> Rule:
    """A scale of queries or keys becomes Attention's own."""
    return Rule(
        name,
        f"Attention({operands}, scale=f, causal=c)",
        f"Attention({plain}, scale=f * float(s.uniform), causal=c)",
        where=[
            Guard(
                "s.uniform is not None and s.elements == 1 and s.rank <= 4",
                _NUMBER,
                counter={**example, "s": W(7)},
            )
        ],
        tag="range",
        examples=[example],
    )


def _decomposed(masked: bool) -> Rule:
    """Attention in plain operators; repeated heads are written as an expansion, which other rules take away."""
    mask = ", m" if masked else ""
    scores = "Add(p, m)" if masked else "p"
    example: Example = {"q": _Q, "k": _K, "v": _V, "f": 0.25, "c": 0, **({"m": T(2, 1, 5, 4)} if masked else {})}
    grouped: Example = {**example, "q": T(2, 6, 5, 7)}
    return Rule(
        "decompose-masked-attention" if masked else "decompose-attention",
        f"Attention(q, k, v{mask}, scale=f, causal=c)",
        f"""
b, g, t, d = k.shape
r = q.shape[1] // g
if r > 1:
    k, v = [Reshape(Expand(Reshape(x, shape=(b, g, 1, t, e)), shape=(b, g, r, t, e)), shape=(b, g * r, t, e))
            for x, e in [(k, d), (v, v.shape[3])]]
p = MatMul(q if f == 1.0 else Mul(q, constant(np.array(f), q.dtype)), Transpose(k, perm=swapped(4)))
root = MatMul(Softmax({scores}, axis=3), v)
""",
        where=[
            Guard(
                "c == 0",
                "what is causal needs a mask, which knows how many queries there are",
                counter={**example, "c": 1},
            ),
            Guard(
                "f == 1 or (q.dtype in ('float64', 'float32', 'float16') and float(np.array(f).astype(q.dtype)) == f)",
                "the scale must be a number of the operands' type: as a constant it would be rounded",
                counter={**example, "f": 1e39},
            ),
        ],
        tag="range",
        examples=[example, grouped],
    )


RULES = [
    _composed("attention", "MatMul(q, t)", scaled=False, masked=False),
    _composed("masked-attention", "Add(MatMul(q, t), m)", scaled=False, masked=True),
    _composed("scaled-attention", "Mul(MatMul(q, t), s)", scaled=True, masked=False),
    _composed("scaled-masked-attention", "Add(Mul(MatMul(q, t), s), m)", scaled=True, masked=True),
    _scaled(
        "attention-of-scaled-queries",
        "Mul(q, s), k, v",
        "q, k, v",
        {"q": _Q, "k": _K, "v": _V, "s": C(0.5), "f": 0.5, "c": 0},
    ),
    _scaled(
        "attention-of-scaled-keys",
        "q, Mul(k, s), v",
        "q, k, v",
        {"q": _Q, "k": _K, "v": _V, "s": C(0.5), "f": 0.5, "c": 1},
    ),
    _scaled(
        "masked-attention-of-scaled-queries",
        "Mul(q, s), k, v, m",
        "q, k, v, m",
        {"q": _Q, "k": _K, "v": _V, "m": T(5, 4), "s": C(0.5), "f": 0.5, "c": 0},
    ),
    _scaled(
        "masked-attention-of-scaled-keys",
        "q, Mul(k, s), v, m",
        "q, k, v, m",
        {"q": _Q, "k": _K, "v": _V, "m": T(5, 4), "s": C(0.5), "f": 0.5, "c": 0},
    ),
    *(
        Rule(
            name,
            f"Attention(q, Reshape(Expand(k, shape=a), shape=b), Reshape(Expand(v, shape=d), shape=e){mask}, **z)",
            "Attention(q, Reshape(k, shape=[a[0], a[1], a[3], a[4]]),"
            f" Reshape(v, shape=[d[0], d[1], d[3], d[4]]){mask}, **z)",
            where=[
                Guard(
                    "k.rank == 5 and v.rank == 5 and len(b) == 4 and len(e) == 4"
                    " and alike(k.shape, (a[0], a[1], 1, a[3], a[4])) and alike(b, (a[0], a[1] * a[2], a[3], a[4]))"
                    " and alike(v.shape, (d[0], d[1], 1, d[3], d[4])) and alike(e, (d[0], d[1] * d[2], d[3], d[4]))"
                    " and same(a[1], d[1])",
                    _REPEATED,
                    counter={
                        "q": T(2, 4, 5, 7),
                        "k": T(2, 1, 2, 3, 7),
                        "a": (2, 2, 2, 3, 7),
                        "b": (2, 4, 3, 7),
                        "v": T(2, 1, 2, 3, 6),
                        "d": (2, 2, 2, 3, 6),
                        "e": (2, 4, 3, 6),
                        "z": {"scale": 1.0, "causal": 0},
                        **({"m": T(5, 3)} if mask else {}),
                    },
                )
            ],
            examples=[
                {
                    "q": T(2, 6, 5, 7),
                    "k": T(2, 3, 1, 4, 7),
                    "a": (2, 3, 2, 4, 7),
                    "b": (2, 6, 4, 7),
                    "v": T(2, 3, 1, 4, 6),
                    "d": (2, 3, 2, 4, 6),
                    "e": (2, 6, 4, 6),
                    "z": {"scale": 0.5, "causal": 0},
                    **({"m": T(5, 4)} if mask else {}),
                }
            ],
        )
        for name, mask in (("attention-of-repeated-heads", ""), ("masked-attention-of-repeated-heads", ", m"))
    ),
    _decomposed(masked=False),
    _decomposed(masked=True),
    Rule(
        "product-with-repeated-heads",
        "MatMul(x, Reshape(Expand(y, shape=a), shape=b))",
        """
x = Reshape(x, shape=[a[0], a[1], a[2] * x.shape[2], x.shape[3]])
root = Reshape(MatMul(x, Reshape(y, shape=[a[0], a[1], a[3], a[4]])), shape=root.shape)
""",
        where=[
            Guard(
                "x.rank == 4 and y.rank == 5 and len(b) == 4 and alike(x.shape[:2], b[:2])"
                " and alike(y.shape, (a[0], a[1], 1, a[3], a[4])) and alike(b, (a[0], a[1] * a[2], a[3], a[4]))",
                _REPEATED,
                counter={"x": T(2, 4, 5, 7), "y": T(2, 1, 2, 7, 3), "a": (2, 2, 2, 7, 3), "b": (2, 4, 7, 3)},
            )
        ],
        examples=[{"x": T(2, 6, 5, 7), "y": T(2, 3, 1, 7, 4), "a": (2, 3, 2, 7, 4), "b": (2, 6, 7, 4)}],
        source="grouped queries: those of one group are rows of one matrix",
    ),
    Rule(
        "scale-of-second-factor",
        "MatMul(x, Mul(y, s))",
        "MatMul(Mul(x, s), y)",
        where=[
            Guard(
                "s.const and s.elements == 1 and s.rank <= x.rank and s.rank <= y.rank",
                "s must be one constant number: only that passes through a product",
                counter={"x": T(5, 5), "y": T(5, 5), "s": W(5)},
            ),
            Guard(
                "not x.const and not y.const",
                "with a weight among the factors, the weight takes the scale",
                kind="growth",
                counter={"x": W(3, 5), "y": T(5, 2), "s": C(2.0)},
            ),
        ],
        tag="range",
        examples=[{"x": T(2, 3, 5), "y": T(2, 5, 4), "s": C(0.5)}],
        source="exporters that scale queries and keys by a root of the scale",
    ),
    Rule(
        "scale-of-expand",
        "Mul(Expand(x, shape=n), s)",
        "Expand(Mul(x, s), shape=n)",
        where=[
            Guard(
                "s.const and s.elements == 1",
                "s must be one constant number, so that there is less to scale before the repetition",
                kind="growth",
                counter={"x": T(3, 1), "n": (3, 5), "s": W(5)},
            ),
            Guard("s.rank <= x.rank", "s must not add axes", counter={"x": T(5), "n": (5,), "s": C([[0.5]])}),
        ],
        examples=[{"x": T(2, 1, 5), "n": (2, 3, 5), "s": C(0.5)}],
    ),
    Rule(
        "scale-of-rotation",
        "Mul(Add(Mul(x, c), Mul(y, d)), s)",
        "Add(Mul(x, Mul(c, s)), Mul(y, Mul(d, s)))",
        where=[
            Guard(
                "s.const and s.elements == 1 and s.rank == 0",
                "one number scales every element alike, in whatever factor",
                kind="growth",
                counter={"x": T(2, 3), "c": T(1, 3), "y": T(2, 3), "d": T(1, 3), "s": W(3)},
            ),
            Guard(
                "x.rank > 2 and any(one(e) for e in c.shape[-3:]) and not any(one(e) for e in x.shape[-3:])",
                "only where the factors, cosines and sines of all heads and layers, are smaller than what they turn",
                kind="growth",
                counter={"x": T(2, 5, 3), "c": T(2, 5, 3), "y": T(2, 5, 3), "d": T(2, 5, 3), "s": C(0.5)},
            ),
        ],
        tag="range",
        examples=[{"x": T(2, 3, 5), "c": T(1, 3, 5), "y": T(2, 3, 5), "d": T(1, 3, 5), "s": C(0.25)}],
        source="rotary embeddings: the scale is taken over by what all layers share",
    ),
]
