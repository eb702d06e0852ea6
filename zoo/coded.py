"""Transformers as X-RLflow's scripts code them (its BERT is TASO's and TENSAT's too), for comparison with its tables.

No softmax, no scaling, no norm, no bias, one sequence without a batch. `bert_coded` computes attention and then goes on
with a product of its input: the attention is an output of its own that nothing reads, and is paid for. BERT and ViT do
not transpose the keys, which needs as many tokens as a head has channels. The faithful ones are in `transformers` and
`encoders`.

The weights are small where values are multiplied with values, or the cube that such an attention is would explode.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .builder import OPSET, Builder, Size
from .transformers import divides

if TYPE_CHECKING:
    from onnx import ModelProto


def bert_coded(
    layers: int = 8, hidden: int = 1024, heads: int = 16, tokens: int = 64, seed: int = 0, opset: int = OPSET
) -> ModelProto:
    """BERT as coded: in every layer an attention that is not read, and a product of the layer's input.

    Input: `x` [tokens, hidden]. Outputs: `y` [tokens, hidden] and, of each layer, `attention_0`, … of the same shape.
    """
    _square(tokens, hidden, heads)
    b = Builder("bert_coded", seed, opset)
    x = b.op("Relu", b.input("x", (tokens, hidden)))
    outputs = {}
    for layer in range(layers):
        with b.scope(f"layer.{layer}"):
            outputs[f"attention_{layer}"] = _attended(b, x, tokens, hidden, heads, transposed=False)
            x = _product(b, x, hidden, hidden, "output")
    return b.build({**outputs, "y": x})


def vit_coded(
    layers: int = 12, hidden: int = 768, heads: int = 12, intermediate: int = 3072, tokens: int = 64, seed: int = 0,
    opset: int = OPSET,
) -> ModelProto:  # fmt: skip
    """ViT as coded: on 64 embedded patches, without an activation in its perceptrons.

    Input: `x` [tokens, hidden]. Output: `y` [tokens, hidden].
    """
    _square(tokens, hidden, heads)
    b = Builder("vit_coded", seed, opset)
    x = b.op("Relu", b.input("x", (tokens, hidden)))
    for layer in range(layers):
        with b.scope(f"layer.{layer}"):
            context = _attended(b, x, tokens, hidden, heads, transposed=False)
            x = b.op("Add", x, _product(b, context, hidden, hidden, "output", 0.3))
            inner = _product(b, x, hidden, intermediate, "expand")
            x = b.op("Add", x, _product(b, inner, intermediate, hidden, "project", 0.3))
    return b.build({"y": x})


def dalle_coded(
    layers: int = 8, hidden: int = 768, heads: int = 12, intermediate: int = 2048, tokens: int = 16, seed: int = 0,
    opset: int = OPSET,
) -> ModelProto:  # fmt: skip
    """The text encoder of DALL-E mini as coded: gated perceptrons with Relu; the mask is a weight of each layer.

    Eight inputs of the script that nothing reads are left out.
    Input: `x` [tokens, hidden]. Output: `y` [tokens, hidden].
    """
    divides(hidden, heads, "hidden", "heads")
    b = Builder("dalle_coded", seed, opset)
    x = b.op("Relu", b.input("x", (tokens, hidden)))
    for layer in range(layers):
        with b.scope(f"layer.{layer}"):
            mask = b.weight((heads, tokens, tokens), 0.2, name="mask")
            context = _attended(b, x, tokens, hidden, heads, mask=mask)
            x = b.op("Add", x, _product(b, context, hidden, hidden, "output", 0.3))
            gate = b.op("Relu", _product(b, x, hidden, intermediate, "gate"))
            inner = b.op("Mul", gate, _product(b, x, hidden, intermediate, "up", 0.3))
            x = b.op("Add", x, _product(b, inner, intermediate, hidden, "down", 0.3))
    return b.build({"y": x})


def transducer_coded(
    audio_layers: int = 12, label_layers: int = 2, hidden: int = 512, heads: int = 8, intermediate: int = 2048,
    tokens: Size = 80, features: int = 16, words: int = 10, seed: int = 0, opset: int = OPSET,
) -> ModelProto:  # fmt: skip
    """The transformer transducer (T-T) as coded: two encoders of one and the same input, and a joint network.

    The audio encoder's input is squeezed to `features` channels by one product and widened by another.
    Input: `x` [tokens, hidden]. Output: `scores` [tokens, words].
    """
    divides(hidden, heads, "hidden", "heads")
    b = Builder("transducer_coded", seed, opset)
    x = b.input("x", (tokens, hidden))

    def encoder(x: str, layers: int) -> str:
        for layer in range(layers):
            with b.scope(f"layer.{layer}"):
                # Tokens of few features are alike, so their products are large.
                context = _attended(b, x, tokens, hidden, heads, gain=0.03)
                x = b.op("Add", x, _product(b, context, hidden, hidden, "output", 0.3))
                inner = b.op("Relu", _product(b, x, hidden, intermediate, "expand"))
                x = b.op("Add", x, _product(b, inner, intermediate, hidden, "project", 0.3))
        return x

    with b.scope("audio"):
        squeezed = _product(b, x, hidden, features, "squeeze")
        audio = encoder(_product(b, squeezed, features, hidden, "widen"), audio_layers)
    with b.scope("label"):
        label = encoder(x, label_layers)
    with b.scope("joint"):
        both = b.op("Concat", audio, label, axis=1)
        inner = b.op("Relu", _product(b, both, 2 * hidden, hidden, "first"))
        return b.build({"scores": _product(b, inner, hidden, words, "second")})


def _product(b: Builder, x: str, width_in: int, width_out: int, name: str, gain: float = 1.0) -> str:
    return b.linear(x, width_in, width_out, name, bias=False, gain=gain)


def _attended(
    b: Builder, x: str, tokens: Size, hidden: int, heads: int, transposed: bool = True, mask: str = "",
    gain: float = 0.3,
) -> str:  # fmt: skip
    """(q kᵀ [+ mask]) v for every head, [tokens, hidden]; k instead of kᵀ if not `transposed`."""
    size = hidden // heads
    with b.scope("attention"):
        rows = [
            b.reshape(_product(b, x, hidden, hidden, name, factor), (tokens, heads, size))
            for name, factor in (("query", gain), ("key", 0.3 * size**-0.5), ("value", 0.5))
        ]
        q, v = (b.op("Transpose", rows[i], perm=[1, 0, 2]) for i in (0, 2))
        k = b.op("Transpose", rows[1], perm=[1, 2, 0] if transposed else [1, 0, 2])
        scores = b.op("MatMul", q, k)
        if mask:
            scores = b.op("Add", scores, mask)
        context = b.op("Transpose", b.op("MatMul", scores, v), perm=[1, 0, 2])
        return b.reshape(context, (tokens, hidden))


def _square(tokens: int, hidden: int, heads: int) -> None:
    divides(hidden, heads, "hidden", "heads")
    if tokens != hidden // heads:
        raise ValueError(f"tokens ({tokens}) must be hidden / heads ({hidden // heads}): the keys are not transposed")
