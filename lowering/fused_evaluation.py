"""The fused operators (`egraph.fused`) spelled out in other core operators, for whatever evaluates those."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np

from ..egraph.fused import ACTIVATIONS

Node = Callable[[str, Mapping[str, Any], Sequence[Any]], Any]
"""Evaluates a core operator: its name, attributes and operands."""


class Speller:
    """Evaluates fused operators by `node`; `constant` makes an operand of numbers, `shape` tells its extents."""

    def __init__(
        self, node: Node, constant: Callable[[np.ndarray], Any], shape: Callable[[Any], Sequence[int]]
    ) -> None:
        self.node, self.constant, self.shape = node, constant, shape

    def __call__(self, op: str, attrs: Mapping[str, Any], xs: Sequence[Any]) -> Any:
        return _SPELLINGS[op](self, attrs, list(xs))

    def do(self, op: str, *xs: Any, **attrs: Any) -> Any:
        return self.node(op, attrs, xs)

    def scaled(self, x: Any, factor: float) -> Any:
        return x if factor == 1 else self.do("Mul", x, self.constant(np.array(factor)))

    def swapped(self, x: Any) -> Any:
        """The last two axes exchanged."""
        n = len(self.shape(x))
        return self.do("Transpose", x, perm=(*range(n - 2), n - 1, n - 2))


def _attention(s: Speller, a: Mapping[str, Any], xs: list[Any]) -> Any:
    q = xs[0]
    k, v = (_repeated(s, x, s.shape(q)[1]) for x in xs[1:3])
    scores = s.scaled(s.do("MatMul", q, s.swapped(k)), a["scale"])
    if len(xs) == 4:
        scores = s.do("Add", scores, xs[3])
    if a["causal"]:
        future = np.triu(np.ones(tuple(s.shape(scores)[2:]), bool), 1)
        scores = s.do("Add", scores, s.constant(np.where(future, -np.inf, 0.0)))
    return s.do("MatMul", s.do("Softmax", scores, axis=3), v)


def _repeated(s: Speller, x: Any, heads: int) -> Any:
    """Each head as often as it takes for `heads`."""
    b, g, t, d = s.shape(x)
    if g == heads:
        return x
    spread = s.do("Expand", s.do("Reshape", x, shape=(b, g, 1, t, d)), shape=(b, g, heads // g, t, d))
    return s.do("Reshape", spread, shape=(b, heads, t, d))


def _multi_head(s: Speller, a: Mapping[str, Any], xs: list[Any]) -> Any:
    parts = []
    for x in xs[:3]:
        shape = (*s.shape(x)[:2], a["heads"], s.shape(x)[2] // a["heads"])
        parts.append(s.do("Transpose", s.do("Reshape", x, shape=shape), perm=(0, 2, 1, 3)))
    found = s.do("Transpose", _attention(s, a, [*parts, *xs[3:]]), perm=(0, 2, 1, 3))
    extents = s.shape(found)
    return s.do("Reshape", found, shape=(*extents[:2], prod(extents[2:])))


def _rotary(s: Speller, a: Mapping[str, Any], xs: list[Any]) -> Any:
    b, h, n, d = s.shape(xs[0])
    cos, sin = (s.do("Reshape", x, shape=(b, 1, n, d // 2, 1)) for x in xs[1:])
    # the halves of a pair side by side along a last axis
    pairs = s.do("Reshape", xs[0], shape=(b, h, n, d // 2, 2) if a["interleaved"] else (b, h, n, 2, d // 2))
    pairs = pairs if a["interleaved"] else s.swapped(pairs)
    x, y = (s.do("Slice", pairs, axes=(4,), starts=(i,), ends=(i + 1,)) for i in range(2))
    first = s.do("Sub", s.do("Mul", x, cos), s.do("Mul", y, sin))
    second = s.do("Add", s.do("Mul", y, cos), s.do("Mul", x, sin))
    turned = s.do("Concat", first, second, axis=4)
    return s.do("Reshape", turned if a["interleaved"] else s.swapped(turned), shape=(b, h, n, d))


def _matmul(s: Speller, a: Mapping[str, Any], xs: list[Any]) -> Any:
    x = s.swapped(xs[0]) if a["transA"] else xs[0]
    y = s.swapped(xs[1]) if a["transB"] else xs[1]
    return s.scaled(s.do("MatMul", x, y), a["alpha"])


def _activated(s: Speller, a: Mapping[str, Any], x: Any) -> Any:
    name = a["activation"]
    return s.do(name, x, **dict(zip(ACTIVATIONS[name], a["parameters"], strict=True))) if name else x


def _conv(s: Speller, a: Mapping[str, Any], xs: list[Any]) -> Any:
    out = s.node("Conv", a, xs[:3])
    return _activated(s, a, s.do("Add", out, xs[3]) if len(xs) == 4 else out)


def _normalised_sum(op: str, scales: int) -> Callable[[Speller, Mapping[str, Any], list[Any]], Any]:
    def spelling(s: Speller, a: Mapping[str, Any], xs: list[Any]) -> Any:
        total = s.do("Add", xs[0], xs[1])
        if len(xs) > 2 + scales:
            total = s.do("Add", total, xs[2 + scales])
        out = s.do(op, total, *xs[2 : 2 + scales], axis=len(s.shape(total)) - 1, epsilon=a["epsilon"])
        return (out, total) if a["sum"] else out

    return spelling


def _gelu(approximate: str) -> Callable[[Speller, Mapping[str, Any], list[Any]], Any]:
    return lambda s, a, xs: s.do("Gelu", s.do("Add", *xs), approximate=approximate)


_SPELLINGS: dict[str, Callable[[Speller, Mapping[str, Any], list[Any]], Any]] = {
    "Attention": _attention,
    "RotaryEmbedding": _rotary,
    "MultiHeadAttention": _multi_head,
    "FusedMatMul": _matmul,
    "FusedGemm": lambda s, a, xs: _activated(s, a, s.node("Gemm", a, xs)),
    "FusedConv": _conv,
    "BiasGelu": _gelu("none"),
    "FastGelu": _gelu("tanh"),
    "SkipLayerNormalization": _normalised_sum("LayerNormalization", 2),
    "SkipSimplifiedLayerNormalization": _normalised_sum("RMSNormalization", 1),
}
