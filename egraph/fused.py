"""Type rules of the fused operators: those of newer opsets, and those that only ONNX Runtime has.

| operator | inputs | attributes |
|---|---|---|
| Attention | q [B,H,S,D], k [B,G,T,D], v [B,G,T,E], [mask, added to the scores] | scale (float), causal (0/1) |
| RotaryEmbedding | x [B,H,S,D], cos [B,S,D/2], sin [B,S,D/2] | interleaved (0/1) |
| MultiHeadAttention | q [B,S,H·D], k [B,T,H·D], v [B,T,H·E], [mask [1 or B,1 or H,S,T]] | heads, scale, causal (0/1) |
| FusedMatMul | x, y | alpha, transA, transB (0/1: the last two axes exchanged) |
| FusedGemm | a, b, [c] | those of Gemm, activation, parameters |
| FusedConv | x, w, [b, [z, added before the activation]] | those of Conv, activation, parameters |
| BiasGelu | x, b, giving Gelu(x + b) | |
| FastGelu | x, b, giving Gelu(x + b) in the form with tanh | |
| SkipLayerNormalization | x, y, scale, bias, [b], giving LayerNormalization(x + y + b) | epsilon, sum (0/1) |
| SkipSimplifiedLayerNormalization | x, y, scale, [b], giving RMSNormalization(x + y + b) | epsilon, sum (0/1) |

H is a multiple of G: each head of k and v serves H/G consecutive heads of q. With `causal`, query i sees keys 0 to i.
With `sum`, an operator is tuple-valued: its second part is x + y + b. `activation` is a core operator's name ("" for
none) and `parameters` are its attributes' values in the order of `ACTIVATIONS`.

Semantics: https://onnx.ai/onnx/operators/ (opset 23) and ONNX Runtime's ContribOperators.md. The names are those of
the domain com.microsoft, where an operator takes more; `lowering.onnx_fused` says what fits.
"""

from __future__ import annotations

from typing import Any

from .graph import TensorType, TupleType, Type
from .registry import IllTyped, broadcast, infer, same_dtype, shape_of, typed

ACTIVATIONS: dict[str, tuple[str, ...]] = {
    "": (), "Relu": (), "Sigmoid": (), "Tanh": (), "LeakyRelu": ("alpha",), "HardSigmoid": ("alpha", "beta"),
    "Clip": ("min", "max"),
}  # fmt: skip
"""What fused products may end with, and the attributes of it that `parameters` gives."""

CONTRIB = (
    "MultiHeadAttention", "FusedMatMul", "FusedGemm", "FusedConv", "BiasGelu", "FastGelu", "SkipLayerNormalization",
    "SkipSimplifiedLayerNormalization",
)  # fmt: skip
"""Operators that only ONNX Runtime has, on its CPU in float32."""

FUSED = ("Attention", "RotaryEmbedding", *CONTRIB)


@typed("Attention")
def _attention(attrs: dict[str, Any], xs: list[TensorType]) -> Type:
    q, k, v = (shape_of(x) for x in xs[:3])
    wrong = IllTyped(f"Attention of {', '.join(map(str, xs))}")
    if not len(q) == len(k) == len(v) == 4:
        raise wrong
    heads, groups = q[1], k[1]
    if not isinstance(heads, int) or not isinstance(groups, int) or groups < 1 or heads % groups:
        raise wrong
    if not q[0] == k[0] == v[0] or k[1] != v[1] or q[3] != k[3] or k[2] != v[2]:
        raise wrong
    if len(xs) == 4:
        scores = (q[0], heads, q[2], k[2])
        mask = shape_of(xs[3])
        # with a narrower last axis the operator would pad the mask
        if not mask or mask[-1] != k[2] or broadcast(mask, scores) != scores:
            raise wrong
    return TensorType((q[0], heads, q[2], v[3]), same_dtype("Attention", *xs))


@typed("RotaryEmbedding")
def _rotary(attrs: dict[str, Any], xs: list[TensorType]) -> Type:
    x, cos, sin = (shape_of(t) for t in xs)
    if len(x) != 4 or not isinstance(x[3], int) or x[3] % 2 or cos != (x[0], x[2], x[3] // 2) or sin != cos:
        raise IllTyped(f"RotaryEmbedding of {', '.join(map(str, xs))}")
    return TensorType(x, same_dtype("RotaryEmbedding", *xs))


@typed("MultiHeadAttention")
def _multi_head(attrs: dict[str, Any], xs: list[TensorType]) -> Type:
    q, k, v = (shape_of(x) for x in xs[:3])
    heads = attrs["heads"]
    wrong = IllTyped(f"MultiHeadAttention with {heads} heads of {', '.join(map(str, xs))}")
    if not len(q) == len(k) == len(v) == 3 or not q[0] == k[0] == v[0] or k[1] != v[1] or q[2] != k[2]:
        raise wrong
    if any(not isinstance(d, int) or d % heads for d in (q[2], v[2])):
        raise wrong
    if len(xs) == 4:
        mask = shape_of(xs[3])
        if len(mask) != 4 or mask[0] not in (1, q[0]) or mask[1] not in (1, heads) or mask[2:] != (q[1], k[1]):
            raise wrong
    return TensorType((q[0], q[1], v[2]), same_dtype("MultiHeadAttention", *xs))


@typed("FusedMatMul")
def _matmul(attrs: dict[str, Any], xs: list[TensorType]) -> Type:
    a, b = shape_of(xs[0]), shape_of(xs[1])
    if len(a) < 2 or len(b) < 2:
        raise IllTyped("FusedMatMul of a vector")
    a = (*a[:-2], a[-1], a[-2]) if attrs["transA"] else a
    b = (*b[:-2], b[-1], b[-2]) if attrs["transB"] else b
    return infer("MatMul", (), [TensorType(a, xs[0].dtype), TensorType(b, xs[1].dtype)])


def _activated(attrs: dict[str, Any], op: str) -> None:
    """Refuse an activation that is none, or not all of its parameters."""
    names = ACTIVATIONS.get(attrs["activation"])
    if names is None or len(names) != len(attrs["parameters"]):
        raise IllTyped(f"{op} with {attrs['activation']}{attrs['parameters']}")


@typed("FusedGemm")
def _gemm(attrs: dict[str, Any], xs: list[TensorType]) -> Type:
    _activated(attrs, "FusedGemm")
    return infer("Gemm", tuple(attrs.items()), xs)


@typed("FusedConv")
def _conv(attrs: dict[str, Any], xs: list[TensorType]) -> Type:
    _activated(attrs, "FusedConv")
    out = infer("Conv", tuple(attrs.items()), xs[:3])
    if len(xs) == 4 and xs[3] != out:
        raise IllTyped(f"FusedConv adds {xs[3]} to {out}")
    return out


@typed("BiasGelu", "FastGelu")
def _bias_gelu(attrs: dict[str, Any], xs: list[TensorType]) -> Type:
    x, b = (shape_of(t) for t in xs)
    if not x or b != x[-1:]:
        raise IllTyped(f"a bias {xs[1]} for {xs[0]}")
    return TensorType(x, same_dtype("BiasGelu", *xs))


@typed("SkipLayerNormalization", "SkipSimplifiedLayerNormalization")
def _skip(attrs: dict[str, Any], xs: list[TensorType]) -> Type:
    x = shape_of(xs[0])
    if len(x) not in (2, 3) or xs[1] != xs[0] or any(shape_of(p) != x[-1:] for p in xs[2:]):
        raise IllTyped(f"a normalised sum of {', '.join(map(str, xs))}")
    same_dtype("SkipLayerNormalization", *xs)
    return TupleType((xs[0], xs[0])) if attrs["sum"] else xs[0]
