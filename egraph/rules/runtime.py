"""Target forms: operators that only one runtime has, and back, so that a model that has them can be rewritten, too.

All of them are ONNX Runtime's. They are open only where that is the target (`lowering.onnx_forms.available`).
"""

from __future__ import annotations

from typing import Any

from ..fused import ACTIVATIONS
from .language import C, Example, Guard, Rule, T, W

_SOURCE = "ONNX Runtime's ContribOperators.md"


def _runs(name: str, counter: Example) -> Guard:
    """ONNX Runtime has the kernels in float32, and runs float16 by way of it."""
    return Guard(
        f"{name}.dtype in ('float32', 'float16')",
        "ONNX Runtime's CPU has the kernel in float32, for float16 by way of it",
        kind="growth",
        counter=counter,
    )


def _wide(example: Example) -> Example:
    """The example in float64."""

    def change(value: Any) -> Any:
        free = type(T(1))
        if isinstance(value, list):
            return [change(v) for v in value]
        if not isinstance(value, free):
            return value
        return free(type(value.type)(value.type.shape, "float64"), value.kind, value.values)

    return {name: change(value) for name, value in example.items()}


# Normalised sums


def _normalised_sums(norm: str, fused: str, names: str, scales: Example) -> list[Rule]:
    """x + y, normalised, in one operator; where the sum is used besides, it is the operator's second result."""
    base: Example = {"x": T(2, 3, 5), "y": T(2, 3, 5), **scales, "k": 2, "e": 1e-3}
    flat: Example = {"x": T(3, 5), "y": T(3, 5), **scales, "k": 1, "e": 1e-5}
    known = {k: v for k, v in base.items() if k != "k"}
    label = "layer-norm" if norm == "LayerNormalization" else "rms-norm"
    guards = [
        Guard(
            "x.shape == y.shape and x.rank in (2, 3)",
            "the operator knows two tensors of one shape, of two or three axes",
            counter={**base, "y": T(5)},
        ),
        Guard("k == x.last", "the operator normalises along the last axis", counter={**base, "x": T(2, 3, 5), "k": 1, **_square(scales)}),
        Guard(
            f"all(s.rank == 1 and s.shape == x.shape[-1:] for s in ({names},))",
            "scale and shift must be vectors, one value for each column",
            counter={**base, "g": C(2.0)},
        ),
        _runs("x", _wide(base)),
    ]  # fmt: skip
    bias = Guard(
        "c.rank == 1 and c.shape == x.shape[-1:] and x.shape == y.shape",
        "the further addend must be a vector, one value for each column",
        counter={**known, "c": T(2, 3, 5)},
    )
    return [
        Rule(
            f"add-{label}",
            f"{norm}(Add(x, y), {names}, axis=k, epsilon=e)",
            f"{fused}(x, y, {names}, epsilon=e, sum=0)",
            where=guards,
            examples=[base, flat],
            source=_SOURCE,
        ),
        Rule(
            f"add-{label}-and-sum",
            f"s = Add(x, y); n = {norm}(s, {names}, axis=k, epsilon=e)",
            f"t = {fused}(x, y, {names}, epsilon=e, sum=1); n = t[0]; s = t[1]",
            where=guards,
            examples=[base, flat],
            source=_SOURCE,
        ),
        Rule(
            f"bias-add-{label}",
            f"{fused}(Add(x, c), y, {names}, epsilon=e, sum=0)",
            f"{fused}(x, y, {names}, c, epsilon=e, sum=0)",
            where=[bias],
            examples=[{**known, "c": W(5)}],
            source=_SOURCE,
        ),
        Rule(
            f"add-bias-{label}",
            f"{fused}(y, Add(x, c), {names}, epsilon=e, sum=0)",
            f"{fused}(x, y, {names}, c, epsilon=e, sum=0)",
            where=[bias],
            examples=[{**known, "c": W(5)}],
            source=_SOURCE,
        ),
        Rule(
            f"bias-add-{label}-and-sum",
            f"t = {fused}(Add(x, c), y, {names}, epsilon=e, sum=1); n = t[0]; s = t[1]",
            f"u = {fused}(x, y, {names}, c, epsilon=e, sum=1); n = u[0]; s = u[1]",
            where=[bias],
            examples=[{**known, "c": W(5)}],
            source=_SOURCE,
        ),
        Rule(
            f"add-bias-{label}-and-sum",
            f"t = {fused}(y, Add(x, c), {names}, epsilon=e, sum=1); n = t[0]; s = t[1]",
            f"u = {fused}(x, y, {names}, c, epsilon=e, sum=1); n = u[0]; s = u[1]",
            where=[bias],
            examples=[{**known, "c": W(5)}],
            source=_SOURCE,
        ),
        Rule(
            f"{label}-of-skip",
            f"{fused}(x, y, {names}, epsilon=e, sum=0)",
            f"{norm}(Add(x, y), {names}, axis=x.last, epsilon=e)",
            examples=[known],
            source=_SOURCE,
        ),
        Rule(
            f"{label}-of-biased-skip",
            f"{fused}(x, y, {names}, c, epsilon=e, sum=0)",
            f"{norm}(Add(Add(x, c), y), {names}, axis=x.last, epsilon=e)",
            examples=[{**known, "c": W(5)}],
            source=_SOURCE,
        ),
        Rule(
            f"{label}-of-skip-and-sum",
            f"t = {fused}(x, y, {names}, epsilon=e, sum=1); n = t[0]; s = t[1]",
            f"s = Add(x, y); n = {norm}(s, {names}, axis=x.last, epsilon=e)",
            examples=[known],
            source=_SOURCE,
        ),
        Rule(
            f"{label}-of-biased-skip-and-sum",
            f"t = {fused}(x, y, {names}, c, epsilon=e, sum=1); n = t[0]; s = t[1]",
            f"s = Add(Add(x, c), y); n = {norm}(s, {names}, axis=x.last, epsilon=e)",
            examples=[{**known, "c": W(5)}],
            source=_SOURCE,
        ),
    ]


def _square(scales: Example) -> Example:
    """For a normalisation along two axes of a tensor [2, 3, 5]."""
    return {name: W(3, 5) for name in scales}


# Products

_PLAIN = "alpha=1.0, transA=0, transB=0"
_SWAP = "the permutation must exchange the last two axes and nothing else"
_FOLDS = "a constant operand is transposed, or scaled, beforehand"


def _scaled(left: str, right: str, name: str, names: Example, result: str) -> Rule:
    """A product with one number at some place, which becomes the operator's factor."""
    return Rule(
        name,
        left,
        right,
        where=[
            Guard("s.uniform is not None and one(s.elements)", "s must be one number that is known", counter={**names, "s": T(1)}),
            Guard(f"s.rank <= {result}.rank", "s must not give the product more axes", counter={**names, "s": C([[[0.5]]])}),
            Guard("not x.const and not y.const", _FOLDS, kind="growth", counter={**names, "s": C(0.5), "y": W(5, 7)}),
            _runs("x", _wide({**names, "s": C(0.5)})),
        ],
        tag="range",
        examples=[{**names, "s": C(-0.125)}],
        source=_SOURCE,
    )  # fmt: skip


_XY: Example = {"x": T(3, 5), "y": T(5, 7)}
_BATCH: Example = {"x": T(2, 3, 5), "y": T(2, 5, 7)}
_A: Example = {"a": -0.5, "t": 0, "u": 0}
_FACTORED = "alpha=a, transA=t, transB=u"

_PRODUCTS = [
    Rule(
        "matmul-transposed-right",
        "MatMul(x, Transpose(y, perm=p))",
        "FusedMatMul(x, y, alpha=1.0, transA=0, transB=1)",
        where=[
            Guard("tuple(p) == swapped(y.rank)", _SWAP, counter={"x": T(3, 3, 3), "y": T(3, 3, 3), "p": (1, 0, 2)}),
            Guard("x.rank >= 2", "a vector has no two axes", counter={"x": T(5), "y": T(2, 7, 5), "p": (0, 2, 1)}),
            Guard("not y.const", _FOLDS, kind="growth", counter={"x": T(3, 5), "y": W(7, 5), "p": (1, 0)}),
            _runs("x", _wide({"x": T(3, 5), "y": T(7, 5), "p": (1, 0)})),
        ],
        examples=[{"x": T(3, 5), "y": T(7, 5), "p": (1, 0)}, {"x": T(2, 3, 5), "y": T(2, 7, 5), "p": (0, 2, 1)}],
        source=_SOURCE,
    ),
    Rule(
        "matmul-transposed-left",
        "MatMul(Transpose(x, perm=p), y)",
        "FusedMatMul(x, y, alpha=1.0, transA=1, transB=0)",
        where=[
            Guard("tuple(p) == swapped(x.rank)", _SWAP, counter={"x": T(3, 3, 3), "y": T(3, 3, 3), "p": (1, 0, 2)}),
            Guard("y.rank >= 2", "a vector has no two axes", counter={"x": T(2, 5, 3), "y": T(5), "p": (0, 2, 1)}),
            Guard("not x.const", _FOLDS, kind="growth", counter={"x": W(5, 3), "y": T(5, 7), "p": (1, 0)}),
            _runs("x", _wide({"x": T(5, 3), "y": T(5, 7), "p": (1, 0)})),
        ],
        examples=[{"x": T(5, 3), "y": T(5, 7), "p": (1, 0)}, {"x": T(2, 5, 3), "y": T(2, 5, 7), "p": (0, 2, 1)}],
        source=_SOURCE,
    ),
    Rule(
        "fused-matmul-transposed-right",
        f"FusedMatMul(x, Transpose(y, perm=p), {_FACTORED})",
        "FusedMatMul(x, y, alpha=a, transA=t, transB=1 - u)",
        where=[
            Guard("tuple(p) == swapped(y.rank)", _SWAP, counter={"x": T(3, 3, 3), "y": T(3, 3, 3), "p": (1, 0, 2), **_A}),
            Guard("not y.const", _FOLDS, kind="growth", counter={"x": T(3, 5), "y": W(7, 5), "p": (1, 0), **_A}),
        ],
        examples=[{"x": T(3, 5), "y": T(7, 5), "p": (1, 0), **_A}],
        source=_SOURCE,
    ),
    Rule(
        "fused-matmul-transposed-left",
        f"FusedMatMul(Transpose(x, perm=p), y, {_FACTORED})",
        "FusedMatMul(x, y, alpha=a, transA=1 - t, transB=u)",
        where=[
            Guard("tuple(p) == swapped(x.rank)", _SWAP, counter={"x": T(3, 3, 3), "y": T(3, 3, 3), "p": (1, 0, 2), **_A}),
            Guard("not x.const", _FOLDS, kind="growth", counter={"x": W(5, 3), "y": T(5, 7), "p": (1, 0), **_A}),
        ],
        examples=[{"x": T(5, 3), "y": T(5, 7), "p": (1, 0), **_A}],
        source=_SOURCE,
    ),
    _scaled("m = MatMul(x, y); r = Mul(m, s)", "r = FusedMatMul(x, y, alpha=float(s.uniform), transA=0, transB=0)", "matmul-scaled", _XY, "m"),
    _scaled("MatMul(Mul(x, s), y)", "FusedMatMul(x, y, alpha=float(s.uniform), transA=0, transB=0)", "matmul-scaled-left", _XY, "x"),
    _scaled("MatMul(x, Mul(y, s))", "FusedMatMul(x, y, alpha=float(s.uniform), transA=0, transB=0)", "matmul-scaled-right", _XY, "y"),
    _scaled(f"m = FusedMatMul(x, y, {_FACTORED}); r = Mul(m, s)", "r = FusedMatMul(x, y, alpha=a * float(s.uniform), transA=t, transB=u)",
            "fused-matmul-scaled", {**_XY, **_A}, "m"),
    _scaled(f"FusedMatMul(Mul(x, s), y, {_FACTORED})", "FusedMatMul(x, y, alpha=a * float(s.uniform), transA=t, transB=u)",
            "fused-matmul-scaled-left", {**_XY, **_A}, "x"),
    _scaled(f"FusedMatMul(x, Mul(y, s), {_FACTORED})", "FusedMatMul(x, y, alpha=a * float(s.uniform), transA=t, transB=u)",
            "fused-matmul-scaled-right", {**_XY, **_A}, "y"),
    Rule(
        "matmul-of-fused",
        f"FusedMatMul(x, y, {_FACTORED})",
        """
left = Transpose(x, perm=swapped(x.rank)) if t else x
right = Transpose(y, perm=swapped(y.rank)) if u else y
m = MatMul(left, right)
root = m if a == 1 else Mul(m, constant(np.array(a), x.dtype))
""",
        tag="range",
        examples=[{**_XY, **_A}, {"x": T(2, 5, 3), "y": T(7, 5), "a": 1.0, "t": 1, "u": 1}],
        source=_SOURCE,
    ),
]  # fmt: skip


# Products with an activation

_WINDOW = {"strides": (1, 2), "dilations": (1, 1), "pads": (1, 0, 1, 0), "group": 1}
_GEMM = {"alpha": 0.5, "beta": 2.0, "transA": 0, "transB": 1}
_VALUES = {"alpha": 0.25, "beta": 0.5, "min": -0.5, "max": 1.5}
_IMAGE: Example = {"x": T(2, 3, 7, 9), "w": W(4, 3, 3, 3)}


def _activated(op: str) -> list[Rule]:
    """A convolution or Gemm and the activation behind it, in one operator."""
    names, low = ACTIVATIONS[op], op.lower()
    bound = "".join(f", {n}=f{n}" for n in names)
    parameters = f"({''.join(f'f{n}, ' for n in names)})"
    back = "".join(f", {n}=p[{i}]" for i, n in enumerate(names))
    values = {f"f{n}": _VALUES[n] for n in names}
    given = tuple(_VALUES[n] for n in names)
    ends = f"activation='{op}', parameters={parameters}"
    rules = []
    for more, operands in (("", ""), ("-bias", ", b")):
        image = {**_IMAGE, "a": _WINDOW, **({"b": W(4)} if more else {})}
        matrix = {"x": T(3, 5), "w": W(7, 5), "a": _GEMM, **({"b": W(7)} if more else {})}
        fixed = f"activation='{op}', parameters=p"
        rules += [
            Rule(
                f"conv{more}-{low}",
                f"{op}(Conv(x, w{operands}, **a){bound})",
                f"FusedConv(x, w{operands}, **a, {ends})",
                where=[_runs("x", _wide({**image, **values}))],
                examples=[{**image, **values}],
                source=_SOURCE,
            ),
            Rule(
                f"{low}-of-fused-conv{more}",
                f"FusedConv(x, w{operands}, strides=s, dilations=d, pads=q, group=g, {fixed})",
                f"{op}(Conv(x, w{operands}, strides=s, dilations=d, pads=q, group=g){back})",
                examples=[
                    {**{k: v for k, v in image.items() if k != "a"}, "p": given,
                     "s": (1, 2), "d": (1, 1), "q": (1, 0, 1, 0), "g": 1},
                ],
                source=_SOURCE,
            ),
        ]  # fmt: skip
        if op != "Clip":
            rules += [
                Rule(
                    f"gemm{more}-{low}",
                    f"{op}(Gemm(x, w{operands}, **a){bound})",
                    f"FusedGemm(x, w{operands}, **a, {ends})",
                    where=[_runs("x", _wide({**matrix, **values}))],
                    examples=[{**matrix, **values}],
                    source=_SOURCE,
                ),
                Rule(
                    f"{low}-of-fused-gemm{more}",
                    f"FusedGemm(x, w{operands}, alpha=s, beta=d, transA=q, transB=g, {fixed})",
                    f"{op}(Gemm(x, w{operands}, alpha=s, beta=d, transA=q, transB=g){back})",
                    examples=[
                        {**{k: v for k, v in matrix.items() if k != "a"}, "p": given,
                         "s": 0.5, "d": 2.0, "q": 0, "g": 1},
                    ],
                    source=_SOURCE,
                ),
            ]  # fmt: skip
    image = {**_IMAGE, "b": W(4), "z": T(2, 4, 7, 4), "a": _WINDOW, **values}
    return [
        *rules,
        Rule(
            f"conv-add-{low}",
            f"c = Conv(x, w, b, **a); root = {op}(Add(c, z){bound})",
            f"root = FusedConv(x, w, b, z, **a, {ends})",
            where=[
                Guard(
                    "z.shape == c.shape",
                    "the operator adds a tensor of the result's own shape",
                    counter={**image, "z": T(4, 1, 1)},
                ),
                _runs("x", _wide(image)),
            ],
            examples=[image],
            source=_SOURCE,
        ),
        Rule(
            f"{low}-of-fused-conv-add",
            f"FusedConv(x, w, b, z, strides=s, dilations=d, pads=q, group=g, activation='{op}', parameters=p)",
            f"{op}(Add(Conv(x, w, b, strides=s, dilations=d, pads=q, group=g), z){back})",
            examples=[
                {**_IMAGE, "b": W(4), "z": T(2, 4, 7, 4), "p": given,
                 "s": (1, 2), "d": (1, 1), "q": (1, 0, 1, 0), "g": 1},
            ],
            source=_SOURCE,
        ),
    ]  # fmt: skip


# Activations with a bias


def _biased(fused: str, approximate: str, label: str) -> list[Rule]:
    gelu = f"Gelu(Add(x, b), approximate='{approximate}')"
    example: Example = {"x": T(2, 3, 5), "b": W(5)}
    return [
        Rule(
            f"add-{label}",
            gelu,
            f"{fused}(x, b)",
            where=[
                Guard(
                    "b.rank == 1 and x.rank >= 1 and b.shape == x.shape[-1:]",
                    "the addend must be a vector, one value for each column",
                    counter={"x": T(2, 3, 5), "b": T(3, 1)},
                ),
                _runs("x", _wide(example)),
            ],
            examples=[example, {"x": T(7), "b": T(7)}],
            source=_SOURCE,
        ),
        Rule(f"{label}-of-biased", f"{fused}(x, b)", gelu, examples=[example], source=_SOURCE),
    ]


# Attention

_HEADS: Example = {"q": T(2, 3, 5, 4), "k": T(2, 3, 7, 4), "v": T(2, 3, 7, 2), "c": 0.5, "u": 0}
_FLAT: Example = {"q": T(2, 5, 12), "k": T(2, 7, 12), "v": T(2, 7, 6), "h": 3, "c": 0.5, "u": 0}


def _mask(queries: str, keys: str) -> str:
    """The mask m with an axis for batches, heads, queries and keys each, the last two of them whole."""
    whole = f"({queries}, {keys})"
    shape = "((1,) * (4 - m.rank) + tuple(m.shape))"
    return f"m if m.rank == 4 and tuple(m.shape[2:]) == {whole} else Expand(Reshape(m, shape={shape}), shape={shape}[:2] + {whole})"


_REPEATED: Example = {
    "y": T(2, 1, 1, 7, 4), "a": (2, 1, 3, 7, 4), "n": (2, 3, 7, 4),
    "z": T(2, 1, 1, 7, 2), "b": (2, 1, 3, 7, 2), "o": (2, 3, 7, 2),
}  # fmt: skip


def _attention(mask: bool) -> list[Rule]:
    more, name = (", m", "masked-") if mask else ("", "")
    flat = ", ".join(
        f"Reshape(Transpose({t}, perm=(0, 2, 1, 3)), shape=({t}.shape[0], {t}.shape[2], {t}.shape[1] * {t}.shape[3]))"
        for t in "qkv"
    )
    parts = ", ".join(
        f"Transpose(Reshape({t}, shape=({t}.shape[0], {t}.shape[1], h, {t}.shape[2] // h)), perm=(0, 2, 1, 3))"
        for t in "qkv"
    )
    examples = [{**_HEADS, "m": m} for m in (T(2, 1, 5, 7), T(5, 7), T(1, 1, 1, 7))] if mask else [_HEADS]
    turned: list[Example] = [{**e, **{n: _turned(e[n]) for n in "qkv"}, "p": (0, 2, 1, 3)} for e in examples]
    known = [{k: e for k, e in example.items() if k not in "kv"} for example in examples]
    repeated: list[Example] = [{**e, **_REPEATED} for e in known]
    columns = ", ".join(f"Reshape({t}, shape=({t}.shape[0], {t}.shape[1], {t}.shape[2] * {t}.shape[3]))" for t in "qkv")
    own_heads = "each head must have its own keys and values"
    return [
        Rule(
            f"{name}attention-as-columns",
            f"Attention(Transpose(q, perm=p), Transpose(k, perm=p), Transpose(v, perm=p){more}, scale=c, causal=u)",
            f"""
r = MultiHeadAttention({columns}{f", {_mask('q.shape[1]', 'k.shape[1]')}" if mask else ""}, heads=q.shape[2], scale=c, causal=u)
root = Transpose(Reshape(r, shape=(q.shape[0], q.shape[1], q.shape[2], v.shape[3])), perm=p)
""",
            where=[
                Guard(
                    "tuple(p) == (0, 2, 1, 3)",
                    "the permutation must exchange heads and positions",
                    counter={
                        **turned[0],
                        **{n: T(*(_turned(turned[0][n]).type.shape)) for n in "qkv"},
                        "p": (0, 1, 2, 3),
                    },
                ),
                Guard("q.shape[2] == k.shape[2]", own_heads, counter={**turned[0], "q": T(2, 5, 6, 4)}),
                _runs("q", _wide(turned[0])),
            ],
            examples=turned,
            source=_SOURCE,
        ),
        Rule(
            f"{name}attention-of-repeated-heads-as-columns",
            f"k = Reshape(Expand(y, shape=a), shape=n); v = Reshape(Expand(z, shape=b), shape=o); root = Attention(q, k, v{more}, scale=c, causal=u)",
            f"""
r = MultiHeadAttention({flat}{f", {_mask('q.shape[2]', 'k.shape[2]')}" if mask else ""}, heads=q.shape[1], scale=c, causal=u)
root = Transpose(Reshape(r, shape=(q.shape[0], q.shape[2], q.shape[1], v.shape[3])), perm=(0, 2, 1, 3))
""",
            where=[
                Guard("q.shape[1] == k.shape[1]", own_heads, counter={**repeated[0], "q": T(2, 6, 5, 4)}),
                _runs("q", _wide(repeated[0])),
            ],
            examples=repeated,
            source=_SOURCE,
        ),
        Rule(
            f"{name}attention-of-columns-as-heads",
            f"MultiHeadAttention(q, k, v{more}, heads=h, scale=c, causal=u)",
            f"r = Attention({parts}{more}, scale=c, causal=u); "
            "root = Reshape(Transpose(r, perm=(0, 2, 1, 3)), shape=(q.shape[0], q.shape[1], v.shape[2]))",
            examples=[{**_FLAT, "m": T(2, 1, 5, 7)} if mask else _FLAT],
            source=_SOURCE,
            undoes=(f"{name}attention-of-repeated-heads-as-columns", f"{name}attention-as-columns"),
        ),
    ]


def _turned(free: Any) -> Any:
    """The example's tensor with its second and third axes exchanged."""
    b, h, n, d = free.type.shape
    return T(b, n, h, d)


RULES = [
    *_normalised_sums("LayerNormalization", "SkipLayerNormalization", "g, b", {"g": W(5), "b": W(5)}),
    *_normalised_sums("RMSNormalization", "SkipSimplifiedLayerNormalization", "g", {"g": W(5)}),
    *_PRODUCTS,
    *(rule for op in ACTIVATIONS if op for rule in _activated(op)),
    *_biased("BiasGelu", "none", "bias-gelu"),
    *_biased("FastGelu", "tanh", "bias-tanh-gelu"),
    *_attention(mask=False),
    *_attention(mask=True),
]
