"""The faithful twins of what X-RLflow calls DALL-E and T-T: with embeddings, norms, masks, scaling and softmax."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .builder import OPSET, Builder, Size
from .transformers import MASKED, attention, divides

if TYPE_CHECKING:
    from onnx import ModelProto


def dalle(
    layers: int = 8, hidden: int = 768, heads: int = 12, intermediate: int = 2048, tokens: int = 16, batch: Size = 1,
    vocab: int = 50264, seed: int = 0, opset: int = OPSET,
) -> ModelProto:  # fmt: skip
    """The text encoder of DALL-E mini (Dayma et al., 2021) at X-RLflow's sizes.

    Layer norms before and after attention and inside the gated perceptrons, GELU gates, no biases but the norms'.
    Inputs: `input_ids` int64 [batch, tokens]; `attention_mask` float32 [batch, 1, 1, tokens], added to the scores.
    Output: `last_hidden_state` [batch, tokens, hidden].
    """
    divides(hidden, heads, "hidden", "heads")
    b = Builder("dalle", seed, opset)
    ids = b.input("input_ids", (batch, tokens), "int64")
    mask = b.input("attention_mask", (batch, 1, 1, tokens))
    words = b.op("Gather", b.weight((vocab, hidden), name="embed_tokens"), ids)
    x = b.op("Add", words, b.weight((1, tokens, hidden), 0.3, name="embed_positions"))
    x = b.layer_norm(x, hidden, "norm_embedding", 1e-5)
    for layer in range(layers):
        with b.scope(f"layer.{layer}"):
            normed = b.layer_norm(x, hidden, "norm_before", 1e-5)
            context = attention(b, normed, batch, tokens, hidden, heads, mask, bias=False)
            x = b.op("Add", x, b.layer_norm(context, hidden, "norm_after", 1e-5))
            normed = b.layer_norm(x, hidden, "norm_gate", 1e-5)
            gate = b.gelu(b.linear(normed, hidden, intermediate, "gate", bias=False))
            inner = b.op("Mul", gate, b.linear(normed, hidden, intermediate, "up", bias=False))
            inner = b.layer_norm(inner, intermediate, "norm_inner", 1e-5)
            x = b.op("Add", x, b.linear(inner, intermediate, hidden, "down", bias=False))
    return b.build({"last_hidden_state": b.layer_norm(x, hidden, "norm", 1e-5)})


def transducer(
    audio_layers: int = 12, label_layers: int = 2, hidden: int = 512, heads: int = 8, intermediate: int = 2048,
    tokens: int = 80, labels: int = 10, features: int = 16, words: int = 10, left: int = 10, batch: Size = 1,
    seed: int = 0, opset: int = OPSET,
) -> ModelProto:  # fmt: skip
    """The transformer transducer (Zhang et al., 2020) at X-RLflow's sizes: audio and label encoder, joint network.

    Layer norms before attention and perceptron, biases, scaled softmax attention. Frames attend to `left` frames before
    them and to themselves, labels to all before them. The joint network adds a projection of every frame to one of
    every label.
    Inputs: `frames` float32 [batch, tokens, features], `labels` int64 [batch, labels].
    Output: `scores` [batch, tokens, labels, words], logarithms of probabilities.
    """
    divides(hidden, heads, "hidden", "heads")
    b = Builder("transducer", seed, opset)
    frames = b.input("frames", (batch, tokens, features))
    ids = b.input("labels", (batch, labels), "int64")

    def encoder(x: str, count: int, layers: int, reach: int) -> str:
        x = b.op("Add", x, b.weight((1, count, hidden), 0.3, name="positions"))
        offset = np.arange(count)[None, :] - np.arange(count)[:, None]
        mask = b.constant(np.where((offset > 0) | (offset < -reach), MASKED, 0.0)[None, None], "mask")
        for layer in range(layers):
            with b.scope(f"layer.{layer}"):
                normed = b.layer_norm(x, hidden, "norm_before", 1e-5)
                x = b.op("Add", x, attention(b, normed, batch, count, hidden, heads, mask))
                normed = b.layer_norm(x, hidden, "norm_after", 1e-5)
                inner = b.op("Relu", b.linear(normed, hidden, intermediate, "expand", gain=1.4))
                x = b.op("Add", x, b.linear(inner, intermediate, hidden, "project"))
        return b.layer_norm(x, hidden, "norm", 1e-5)

    def between(x: str, axis: int) -> str:
        return b.op("Unsqueeze", x, b.constant([axis], "axes", "int64"))

    with b.scope("audio"):
        audio = encoder(b.linear(frames, features, hidden, "embed"), tokens, audio_layers, left)
    with b.scope("label"):
        label = encoder(b.op("Gather", b.weight((words, hidden), name="embed"), ids), labels, label_layers, labels)
    with b.scope("joint"):
        one, two = b.linear(audio, hidden, hidden, "audio"), b.linear(label, hidden, hidden, "label")
        both = b.op("Tanh", b.op("Add", between(one, 2), between(two, 1)))
        scores = b.linear(both, hidden, words, "scores", gain=2.0)
        return b.build({"scores": b.op("LogSoftmax", scores, axis=-1)})
