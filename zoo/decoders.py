"""Decoders and encoder–decoders as exporters write them: fused projections, relative positions, cross attention."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from .builder import OPSET, Builder, Size, outline
from .transformers import MASKED, attend, attention, divides, llama, rms_norm

if TYPE_CHECKING:
    from onnx import ModelProto


def gpt2(
    layers: int = 12, hidden: int = 768, heads: int = 12, tokens: int = 128, batch: Size = 1, vocab: int = 50257,
    seed: int = 0, opset: int = OPSET,
) -> ModelProto:  # fmt: skip
    """GPT-2 (Radford et al., 2019; the small one by default) on a full sequence, as PyTorch's older exporter writes it.

    Queries, keys and values come from one Gemm over all tokens, whose result is split; a Where with a constant triangle
    hides what is to come; GELU is its tanh form; the scores are a product with the transposed embedding.
    Input: `input_ids` int64 [batch, tokens]. Output: `logits` [batch, tokens, vocab].
    """
    divides(hidden, heads, "hidden", "heads")
    size = hidden // heads
    b = Builder("gpt2", seed, opset)
    ids = b.input("input_ids", (batch, tokens), "int64")
    table = b.weight((vocab, hidden), 0.3, name="wte")
    x = b.op("Add", b.op("Gather", table, ids), b.weight((1, tokens, hidden), 0.3, name="wpe"))
    allowed = b.constant(np.tri(tokens, dtype=bool)[None, None], "causal", "bool")
    least = b.constant(MASKED, "least")

    def fused(x: str, width_in: int, width_out: int, name: str, gain: float = 1.0) -> str:
        """The linear layer over all tokens as rows, by Gemm with a weight that is not transposed."""
        with b.scope(name):
            rows = b.reshape(x, (-1, width_in))
            weight = b.weight((width_in, width_out), gain * width_in**-0.5)
            y = b.op("Gemm", rows, weight, b.weight((width_out,), 0.1, name="bias"))
            return b.reshape(y, (-1, tokens, width_out) if isinstance(batch, str) else (batch, tokens, width_out))

    for layer in range(layers):
        with b.scope(f"h.{layer}"):
            normed = b.layer_norm(x, hidden, "ln_1", 1e-5)
            with b.scope("attn"):
                parts = b.split(fused(normed, hidden, 3 * hidden, "c_attn"), 2, [hidden] * 3)
                q, k, v = (
                    b.op("Transpose", b.reshape(part, (batch, tokens, heads, size)), perm=perm)
                    for part, perm in zip(parts, ((0, 2, 1, 3), (0, 2, 3, 1), (0, 2, 1, 3)), strict=True)
                )
                scores = b.op("Div", b.op("MatMul", q, k), b.constant(math.sqrt(size), "sqrt_size"))
                scores = b.op("Softmax", b.op("Where", allowed, scores, least), axis=-1)
                context = b.op("Transpose", b.op("MatMul", scores, v), perm=[0, 2, 1, 3])
                context = b.reshape(context, (batch, tokens, hidden))
                x = b.op("Add", fused(context, hidden, hidden, "c_proj"), x)
            normed = b.layer_norm(x, hidden, "ln_2", 1e-5)
            with b.scope("mlp"):
                inner = gelu_tanh(b, fused(normed, hidden, 4 * hidden, "c_fc"))
                x = b.op("Add", x, fused(inner, 4 * hidden, hidden, "c_proj"))
    x = b.layer_norm(x, hidden, "ln_f", 1e-5)
    return b.build({"logits": b.op("MatMul", x, b.op("Transpose", table, perm=[1, 0]))})


def gelu_tanh(b: Builder, x: str) -> str:
    """x / 2 · (1 + tanh(√(2/π) · (x + 0.044715 x³))), by elementary operators."""
    with b.scope("gelu"):
        cube = b.op("Mul", b.op("Pow", x, b.constant(3.0, "three")), b.constant(0.044715, "factor"))
        inner = b.op("Mul", b.op("Add", x, cube), b.constant(math.sqrt(2 / math.pi), "sqrt_2_pi"))
        gate = b.op("Add", b.op("Tanh", inner), b.constant(1.0, "one"))
        return b.op("Mul", b.op("Mul", x, b.constant(0.5, "half")), gate)


def t5(
    layers: int = 6, hidden: int = 512, heads: int = 8, intermediate: int = 2048, tokens: int = 64, targets: int = 32,
    batch: Size = 1, vocab: int = 32128, buckets: int = 32, distance: int = 128, gated: bool = False, seed: int = 0,
    opset: int = OPSET,
) -> ModelProto:  # fmt: skip
    """T5 (Raffel et al., 2020; the small one by default): RMS norms, unscaled scores, biases by relative position.

    The biases are read from a table [buckets, heads] by constant indices, transposed, and shared by all layers of a
    stack. `gated` multiplies the Relu of one product with another, as T5 1.1 does with GELU.
    Inputs: `input_ids` int64 [batch, tokens], `decoder_input_ids` int64 [batch, targets]; `attention_mask` float32
    [batch, 1, 1, tokens], added to the scores. Output: `logits` [batch, targets, vocab].
    """
    divides(hidden, heads, "hidden", "heads")
    b = Builder("t5", seed, opset)
    sources = b.input("input_ids", (batch, tokens), "int64")
    wanted = b.input("decoder_input_ids", (batch, targets), "int64")
    mask = b.input("attention_mask", (batch, 1, 1, tokens))
    table = b.weight((vocab, hidden), name="shared")

    def bias(count: int, causal: bool) -> str:
        with b.scope("relative_attention_bias"):
            places = b.constant(_buckets(count, buckets, distance, causal), "buckets", "int64")
            found = b.op("Gather", b.weight((buckets, heads), 0.5), places)
            return b.op("Unsqueeze", b.op("Transpose", found, perm=[2, 0, 1]), b.constant([0], "axes", "int64"))

    def forward(x: str) -> str:
        normed = rms_norm(b, x, hidden, "norm", 1e-6)
        inner = b.op("Relu", b.linear(normed, hidden, intermediate, "wi", bias=False, gain=1.4))
        if gated:
            inner = b.op("Mul", inner, b.linear(normed, hidden, intermediate, "wi_1", bias=False))
        return b.op("Add", x, b.linear(inner, intermediate, hidden, "wo", bias=False))

    def attended(x: str, count: int, mask: str, memory: str | None = None) -> str:
        normed = rms_norm(b, x, hidden, "norm", 1e-6)
        name, length = ("cross", tokens) if memory else ("self", count)
        return b.op(
            "Add", x, attention(b, normed, batch, count, hidden, heads, mask, memory, length, False, False, name)
        )

    x = b.op("Gather", table, sources)
    with b.scope("encoder"):
        both = b.op("Add", bias(tokens, False), mask)
        for layer in range(layers):
            with b.scope(f"layer.{layer}"):
                x = forward(attended(x, tokens, both))
        memory = rms_norm(b, x, hidden, "norm", 1e-6)
    y = b.op("Gather", table, wanted)
    with b.scope("decoder"):
        causal = b.constant(np.triu(np.full((targets, targets), MASKED), 1)[None, None], "causal")
        both = b.op("Add", bias(targets, True), causal)
        for layer in range(layers):
            with b.scope(f"layer.{layer}"):
                y = attended(attended(y, targets, both), targets, mask, memory)
                y = forward(y)
        y = b.op("Mul", rms_norm(b, y, hidden, "norm", 1e-6), b.constant(hidden**-0.5, "rescale"))
    return b.build({"logits": b.linear(y, hidden, vocab, "lm_head", bias=False, gain=hidden**0.5)})


def _buckets(count: int, buckets: int, distance: int, causal: bool) -> np.ndarray:
    """For each query and key the bucket of their distance: exact when near, logarithmic up to `distance`."""
    offset = np.arange(count)[None, :] - np.arange(count)[:, None]
    found = np.zeros_like(offset)
    if not causal:
        buckets //= 2
        found += buckets * (offset > 0)
        offset = np.abs(offset)
    else:
        offset = np.maximum(-offset, 0)
    near = buckets // 2
    scale = np.log(np.maximum(offset, 1) / max(near, 1)) / math.log(distance / max(near, 1))
    far = near + (scale * (buckets - near)).astype(np.int64)
    return found + np.where(offset < near, offset, np.minimum(far, buckets - 1))


def whisper(
    layers: int = 4, hidden: int = 384, heads: int = 6, mels: int = 80, frames: int = 3000, targets: int = 32,
    batch: Size = 1, vocab: int = 51865, seed: int = 0, opset: int = OPSET,
) -> ModelProto:  # fmt: skip
    """Whisper (Radford et al., 2023; the tiny one by default): two 1-D convolutions, encoder, decoder across it.

    Queries are scaled before the scores; keys have no bias; the scores of words are a product with the transposed
    embedding.
    Inputs: `input_features` float32 [batch, mels, frames], frames even; `decoder_input_ids` int64 [batch, targets].
    Output: `logits` [batch, targets, vocab].
    """
    divides(hidden, heads, "hidden", "heads")
    divides(frames, 2, "frames", "2")
    size, length = hidden // heads, frames // 2
    b = Builder("whisper", seed, opset)
    sound = b.input("input_features", (batch, mels, frames))
    ids = b.input("decoder_input_ids", (batch, targets), "int64")

    def conv(x: str, channels: int, stride: int, name: str) -> str:
        with b.scope(name):
            weight = b.weight((hidden, channels, 3), (2 / (3 * channels)) ** 0.5)
            bias = b.weight((hidden,), 0.1, name="bias")
            return b.gelu(b.op("Conv", x, weight, bias, kernel_shape=[3], strides=[stride], pads=[1, 1]))

    def head(x: str, count: int) -> str:
        return b.op("Transpose", b.reshape(x, (batch, count, heads, size)), perm=[0, 2, 1, 3])

    def attended(x: str, count: int, name: str, memory: str | None = None, mask: str | None = None) -> str:
        with b.scope(name):
            normed = b.layer_norm(x, hidden, "norm", 1e-5)
            source, width = (memory, length) if memory else (normed, count)
            scaled = b.op("Mul", b.linear(normed, hidden, hidden, "q_proj"), b.constant(size**-0.5, "scaling"))
            k = head(b.linear(source, hidden, hidden, "k_proj", bias=False), width)
            v = head(b.linear(source, hidden, hidden, "v_proj"), width)
            context = b.op("Transpose", attend(b, head(scaled, count), k, v, None, mask), perm=[0, 2, 1, 3])
            return b.op("Add", x, b.linear(b.reshape(context, (batch, count, hidden)), hidden, hidden, "out_proj"))

    def forward(x: str) -> str:
        inner = b.gelu(b.linear(b.layer_norm(x, hidden, "norm", 1e-5), hidden, 4 * hidden, "fc1"))
        return b.op("Add", x, b.linear(inner, 4 * hidden, hidden, "fc2"))

    with b.scope("encoder"):
        x = conv(conv(sound, mels, 1, "conv1"), hidden, 2, "conv2")
        x = b.op("Add", b.op("Transpose", x, perm=[0, 2, 1]), b.weight((length, hidden), 0.3, name="positions"))
        for layer in range(layers):
            with b.scope(f"layer.{layer}"):
                x = forward(attended(x, length, "self_attn"))
        memory = b.layer_norm(x, hidden, "norm", 1e-5)
    with b.scope("decoder"):
        table = b.weight((vocab, hidden), 0.5, name="embed_tokens")
        y = b.op("Add", b.op("Gather", table, ids), b.weight((targets, hidden), 0.3, name="positions"))
        causal = b.constant(np.triu(np.full((targets, targets), MASKED), 1)[None, None], "causal")
        for layer in range(layers):
            with b.scope(f"layer.{layer}"):
                y = attended(y, targets, "self_attn", mask=causal)
                y = forward(attended(y, targets, "encoder_attn", memory))
        y = b.layer_norm(y, hidden, "norm", 1e-5)
    return b.build({"logits": b.op("MatMul", y, b.op("Transpose", table, perm=[1, 0]))})


def deep_decoder(
    operators: int = 2000, hidden: int = 32, heads: int = 4, kv_heads: int = 2, intermediate: int = 48, tokens: int = 8,
    batch: Size = 1, vocab: int = 64, seed: int = 0, opset: int = OPSET,
) -> ModelProto:  # fmt: skip
    """`llama` with narrow layers, as many as make at least `operators` operators; for measuring how searches scale.

    Input: `input_ids` int64 [batch, tokens]. Output: `logits` [batch, tokens, vocab].
    """
    if operators < 1:
        raise ValueError(f"operators ({operators}) must be at least 1")

    def made(layers: int) -> ModelProto:
        return llama(layers, hidden, heads, kv_heads, intermediate, tokens, batch, vocab, seed=seed, opset=opset)

    with outline():
        one, two = len(made(1).graph.node), len(made(2).graph.node)
    return made(max(1, 1 - (one - operators) // (two - one)))
