"""Transformer models as exporters write them: separate q, k and v, biases, masks, norms, exact GELU, rotary positions.

BERT and ViT default to their published base sizes; the `-tiny` entries of the registry shrink every extent and keep
the structure.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from .builder import OPSET, Builder, Size

if TYPE_CHECKING:
    from onnx import ModelProto

MASKED = float(np.finfo(np.float32).min)
"""What exporters write where a causal mask forbids attention."""


def bert(
    layers: int = 12, hidden: int = 768, heads: int = 12, intermediate: int | None = None, tokens: Size = 128,
    batch: Size = 1, vocab: int = 30522, positions: int = 512, seed: int = 0, opset: int = OPSET,
) -> ModelProto:  # fmt: skip
    """BERT encoder (Devlin et al., 2019; BERT-base by default).

    Where `tokens` is a symbol the position embeddings are a table of `positions` rows, of which the first are taken.

    Inputs: `input_ids` and `token_type_ids` int64 [batch, tokens]; `attention_mask` float32 [batch, 1, 1, tokens],
    added to the attention scores (0 keeps a token, a large negative value hides it).
    Outputs: `last_hidden_state` [batch, tokens, hidden], `pooler_output` [batch, hidden].
    """
    divides(hidden, heads, "hidden", "heads")
    intermediate = intermediate or 4 * hidden
    b = Builder("bert", seed, opset)
    ids = b.input("input_ids", (batch, tokens), "int64")
    kinds = b.input("token_type_ids", (batch, tokens), "int64")
    mask = b.input("attention_mask", (batch, 1, 1, tokens))
    with b.scope("embeddings"):
        words = b.op("Gather", b.weight((vocab, hidden), name="word"), ids)
        segments = b.op("Gather", b.weight((2, hidden), 0.3, name="token_type"), kinds)
        places = b.weight((1, positions if isinstance(tokens, str) else tokens, hidden), 0.3, name="position")
        if isinstance(tokens, str):
            places = b.prefix(places, 1, b.extent(ids, 1))
        summed = b.op("Add", b.op("Add", words, segments), places)
        x = b.layer_norm(summed, hidden)
    for layer in range(layers):
        with b.scope(f"layer.{layer}"):
            attended = attention(b, x, batch, tokens, hidden, heads, mask)
            x = b.layer_norm(b.op("Add", attended, x), hidden, "attention_norm")
            inner = b.gelu(b.linear(x, hidden, intermediate, "intermediate"))
            x = b.layer_norm(b.op("Add", b.linear(inner, intermediate, hidden, "output"), x), hidden, "output_norm")
    with b.scope("pooler"):
        first = b.op("Gather", x, b.constant(0, "first", "int64"), axis=1)
        pooled = b.op("Tanh", b.linear(first, hidden, hidden, "dense"))
    return b.build({"last_hidden_state": x, "pooler_output": pooled})


def vit(
    layers: int = 12, hidden: int = 768, heads: int = 12, intermediate: int | None = None, image: int = 224,
    patch: int = 16, batch: Size = 1, classes: int = 1000, seed: int = 0, opset: int = OPSET,
) -> ModelProto:  # fmt: skip
    """Vision transformer (Dosovitskiy et al., 2021; ViT-Base/16 by default), with pre-norm blocks and a class token.

    Input: `pixel_values` float32 [batch, 3, image, image]. Output: `logits` [batch, classes].
    """
    divides(hidden, heads, "hidden", "heads")
    divides(image, patch, "image", "patch")
    intermediate = intermediate or 4 * hidden
    patches = (image // patch) ** 2
    tokens = patches + 1
    b = Builder("vit", seed, opset)
    pixels = b.input("pixel_values", (batch, 3, image, image))
    with b.scope("embeddings"):
        grid = b.conv(pixels, 3, hidden, patch, stride=patch, pad=0, name="patch")
        sequence = b.op("Transpose", b.reshape(grid, (batch, hidden, patches)), perm=[0, 2, 1])
        token = b.weight((1, 1, hidden), 0.3, name="class_token")
        if batch != 1:
            token = b.expand(token, (batch, 1, hidden), pixels)
        x = b.op("Concat", token, sequence, axis=1)
        x = b.op("Add", x, b.weight((1, tokens, hidden), 0.3, name="position"))
    for layer in range(layers):
        with b.scope(f"layer.{layer}"):
            normed = b.layer_norm(x, hidden, "norm_before")
            x = b.op("Add", attention(b, normed, batch, tokens, hidden, heads, None), x)
            inner = b.gelu(b.linear(b.layer_norm(x, hidden, "norm_after"), hidden, intermediate, "intermediate"))
            x = b.op("Add", b.linear(inner, intermediate, hidden, "output"), x)
    first = b.op("Gather", b.layer_norm(x, hidden, "norm"), b.constant(0, "first", "int64"), axis=1)
    return b.build({"logits": b.linear(first, hidden, classes, "classifier")})


def llama(
    layers: int = 8, hidden: int = 512, heads: int = 8, kv_heads: int | None = 4, intermediate: int = 1376,
    tokens: Size = 128, batch: Size = 1, vocab: int = 32000, theta: float = 10000.0, positions: int = 512,
    seed: int = 0, opset: int = OPSET,
) -> ModelProto:  # fmt: skip
    """Llama-like decoder (Touvron et al., 2023) on a full sequence, without a cache.

    RMSNorm and rotary positions by elementary operators, SwiGLU, a causal mask constant, and grouped-query attention
    when `kv_heads` is less than `heads` (None means equal). The defaults make a small one of about 60 million weights.
    Where `tokens` is a symbol, angles and mask are parts of tables for `positions` tokens.
    Input: `input_ids` int64 [batch, tokens]. Output: `logits` [batch, tokens, vocab].
    """
    kv_heads = kv_heads or heads
    divides(hidden, 2 * heads, "hidden", "twice the heads")
    divides(heads, kv_heads, "heads", "kv_heads")
    size = hidden // heads
    b = Builder("llama", seed, opset)
    ids = b.input("input_ids", (batch, tokens), "int64")
    x = b.op("Gather", b.weight((vocab, hidden), name="embed_tokens"), ids)
    rows = positions if isinstance(tokens, str) else tokens
    angles = np.outer(np.arange(rows), theta ** (-np.arange(0, size, 2) / size))
    angles = np.concatenate([angles, angles], axis=-1)[None, None]
    cos, sin = b.constant(np.cos(angles), "cos"), b.constant(np.sin(angles), "sin")
    mask = b.constant(np.triu(np.full((rows, rows), MASKED), 1)[None, None], "causal_mask")
    if isinstance(tokens, str):
        count = b.extent(ids, 1)
        cos, sin = b.prefix(cos, 2, count), b.prefix(sin, 2, count)
        mask = b.prefix(b.prefix(mask, 2, count), 3, count)

    def head(x: str, count: int, name: str) -> str:
        y = b.linear(x, hidden, count * size, name, bias=False)
        return b.op("Transpose", b.reshape(y, (batch, tokens, count, size)), perm=[0, 2, 1, 3])

    def rotate(x: str, name: str) -> str:
        with b.scope(name):
            low, high = b.slice(x, 3, 0, size // 2), b.slice(x, 3, size // 2, size)
            turned = b.op("Concat", b.op("Neg", high), low, axis=-1)
            return b.op("Add", b.op("Mul", x, cos), b.op("Mul", turned, sin))

    def repeat(x: str) -> str:
        if kv_heads == heads:
            return x
        groups = heads // kv_heads
        x = b.op("Unsqueeze", x, b.constant([2], "axes", "int64"))
        # Expand broadcasts both ways, so 1 says: as it is.
        shape = [1 if isinstance(d, str) else d for d in (batch, kv_heads, groups, tokens, size)]
        x = b.op("Expand", x, b.constant(shape, "shape", "int64"))
        return b.reshape(x, (batch, heads, -1 if isinstance(tokens, str) else tokens, size))

    for layer in range(layers):
        with b.scope(f"layer.{layer}"):
            normed = rms_norm(b, x, hidden, "input_norm")
            with b.scope("attention"):
                q = rotate(head(normed, heads, "query"), "rotary_query")
                k = repeat(rotate(head(normed, kv_heads, "key"), "rotary_key"))
                v = repeat(head(normed, kv_heads, "value"))
                context = attend(b, q, k, v, size, mask)
                merged = b.reshape(b.op("Transpose", context, perm=[0, 2, 1, 3]), (batch, tokens, hidden))
                x = b.op("Add", x, b.linear(merged, hidden, hidden, "output", bias=False))
            normed = rms_norm(b, x, hidden, "post_norm")
            with b.scope("mlp"):
                gate = b.linear(normed, hidden, intermediate, "gate", bias=False)
                up = b.linear(normed, hidden, intermediate, "up", bias=False)
                inner = b.op("Mul", b.op("Mul", gate, b.op("Sigmoid", gate)), up)
                x = b.op("Add", x, b.linear(inner, intermediate, hidden, "down", bias=False))
    return b.build({"logits": b.linear(rms_norm(b, x, hidden, "norm"), hidden, vocab, "lm_head", bias=False)})


def attention(
    b: Builder, x: str, batch: Size, tokens: Size, hidden: int, heads: int, mask: str | None, memory: str | None = None,
    memory_tokens: Size | None = None, bias: bool = True, scaled: bool = True, name: str = "attention",
) -> str:  # fmt: skip
    """Multi-head attention of BERT and ViT: projections, scores divided by √d if `scaled`, output projection.

    Keys and values are those of `memory` [batch, memory_tokens, hidden], by default of `x` [batch, tokens, hidden].
    Where the scores are not divided the weights of the queries are so much smaller.
    """
    size = hidden // heads
    own, other = (x, tokens, "query"), (memory or x, memory_tokens or tokens)
    with b.scope(name):
        split = []
        for source, count, part in (own, (*other, "key"), (*other, "value")):
            gain = 1.0 if scaled or part != "query" else size**-0.5
            y = b.linear(source, hidden, hidden, part, bias, gain)
            split.append(b.reshape(y, (batch, count, heads, size)))
        q, k, v = (b.op("Transpose", part, perm=[0, 2, 1, 3]) for part in split)
        context = attend(b, q, k, v, size if scaled else None, mask)
        merged = b.reshape(b.op("Transpose", context, perm=[0, 2, 1, 3]), (batch, tokens, hidden))
        return b.linear(merged, hidden, hidden, "output", bias)


def attend(b: Builder, q: str, k: str, v: str, size: int | None, mask: str | None) -> str:
    """softmax(q kᵀ / √size + mask) v, for operands [batch, heads, tokens, size]; not divided without `size`."""
    scores = b.op("MatMul", q, b.op("Transpose", k, perm=[0, 1, 3, 2]))
    if size is not None:
        scores = b.op("Div", scores, b.constant(math.sqrt(size), "sqrt_size"))
    if mask is not None:
        scores = b.op("Add", scores, mask)
    return b.op("MatMul", b.op("Softmax", scores, axis=-1), v)


def rms_norm(b: Builder, x: str, width: int, name: str, epsilon: float = 1e-5) -> str:
    """x / √(mean x² + ε), scaled, by elementary operators."""
    with b.scope(name):
        square = b.mean(b.op("Pow", x, b.constant(2.0, "two")), -1)
        root = b.op("Sqrt", b.op("Add", square, b.constant(epsilon, "epsilon")))
        normed = b.op("Mul", x, b.op("Div", b.constant(1.0, "one"), root))
        return b.op("Mul", b.weight((width,), 0.1, 1.0, "scale"), normed)


def divides(whole: int, part: int, whole_name: str, part_name: str) -> None:
    """Raise ValueError unless `part` goes into `whole`."""
    if part < 1 or whole % part:
        raise ValueError(f"{whole_name} ({whole}) must be a multiple of {part_name} ({part})")
