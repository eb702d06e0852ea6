"""The reference evaluator's rules of the fused operators (`egraph.fused`), in torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from ..egraph.fused import ACTIVATIONS

Tensor = torch.Tensor
Value = Tensor | tuple[Tensor, ...]
_Rule = Callable[[dict[str, Any], list[Tensor]], Value]


def _core(op: str, attrs: dict[str, Any], xs: Sequence[Tensor]) -> Tensor:
    from .evaluation import evaluate_node

    found = evaluate_node(op, attrs, xs)
    assert isinstance(found, Tensor)
    return found


def _attention(attrs: dict[str, Any], xs: list[Tensor]) -> Tensor:
    q, k, v = xs[:3]
    k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v))
    scores = q @ k.transpose(2, 3) * attrs["scale"]
    if len(xs) == 4:
        scores = scores + xs[3]
    if attrs["causal"]:
        future = torch.ones(scores.shape[2:], dtype=torch.bool).triu(1)
        scores = scores.masked_fill(future, float("-inf"))
    return torch.softmax(scores, 3) @ v


def _multi_head(attrs: dict[str, Any], xs: list[Tensor]) -> Tensor:
    parts = [x.reshape(*x.shape[:2], attrs["heads"], -1).transpose(1, 2) for x in xs[:3]]
    return _attention(attrs, [*parts, *xs[3:]]).transpose(1, 2).flatten(2)


def _rotary(attrs: dict[str, Any], xs: list[Tensor]) -> Tensor:
    x, cos, sin = xs[0], xs[1].unsqueeze(1), xs[2].unsqueeze(1)
    if attrs["interleaved"]:
        a, b = x[..., ::2], x[..., 1::2]
        return torch.stack((a * cos - b * sin, b * cos + a * sin), -1).reshape(x.shape)
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


def _matmul(attrs: dict[str, Any], xs: list[Tensor]) -> Tensor:
    a = xs[0].transpose(-1, -2) if attrs["transA"] else xs[0]
    b = xs[1].transpose(-1, -2) if attrs["transB"] else xs[1]
    return a @ b * attrs["alpha"]


def _activated(attrs: dict[str, Any], x: Tensor) -> Tensor:
    name = attrs["activation"]
    return _core(name, dict(zip(ACTIVATIONS[name], attrs["parameters"], strict=True)), [x]) if name else x


def _conv(attrs: dict[str, Any], xs: list[Tensor]) -> Tensor:
    out = _core("Conv", attrs, xs[:3])
    return _activated(attrs, out + xs[3] if len(xs) == 4 else out)


def _normalised_sum(op: str, scales: int) -> _Rule:
    def rule(attrs: dict[str, Any], xs: list[Tensor]) -> Value:
        total = xs[0] + xs[1]
        if len(xs) > 2 + scales:
            total = total + xs[2 + scales]
        axis = {"axis": total.dim() - 1, "epsilon": attrs["epsilon"]}
        out = _core(op, axis, [total, *xs[2 : 2 + scales]])
        return (out, total) if attrs["sum"] else out

    return rule


RULES: dict[str, _Rule] = {
    "Attention": _attention,
    "RotaryEmbedding": _rotary,
    "MultiHeadAttention": _multi_head,
    "FusedMatMul": _matmul,
    "FusedGemm": lambda a, x: _activated(a, _core("Gemm", a, x)),
    "FusedConv": _conv,
    "BiasGelu": lambda a, x: F.gelu(x[0] + x[1]),
    "FastGelu": lambda a, x: F.gelu(x[0] + x[1], approximate="tanh"),
    "SkipLayerNormalization": _normalised_sum("LayerNormalization", 2),
    "SkipSimplifiedLayerNormalization": _normalised_sum("RMSNormalization", 1),
}
