"""Convolutional nets of today by construction: depthwise convolutions, gates, channels last, layer norms."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .builder import OPSET, Builder, Size

if TYPE_CHECKING:
    from onnx import ModelProto

MOBILENET = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""MobileNetV2's stages: expansion, channels, blocks, stride."""


def mobilenet_v2(
    blocks: tuple[int, ...] | None = None, shrink: int = 1, head: int = 1280, image: Size = 224, batch: Size = 1,
    classes: int = 1000, seed: int = 0, opset: int = OPSET,
) -> ModelProto:  # fmt: skip
    """MobileNetV2 (Sandler et al., 2018): inverted residuals, depthwise convolutions, Clip to 0 … 6.

    `blocks` gives the number of blocks of each stage (fewer stages too), `shrink` divides the channels.
    Input: `x` [batch, 3, image, image]. Output: `logits` [batch, classes].
    """
    _shrinks(shrink)
    b = Builder("mobilenet_v2", seed, opset)
    low, high = b.constant(0.0, "min"), b.constant(6.0, "max")

    def unit(
        x: str, channels_in: int, channels_out: int, kernel: int, name: str, stride: int = 1, group: int = 1
    ) -> str:
        with b.scope(name):
            y = b.conv(x, channels_in, channels_out, kernel, stride, group=group, bias=False)
            return b.op("Clip", b.batch_norm(y, channels_out), low, high)

    channels = 32 // shrink
    x = unit(b.input("x", (batch, 3, image, image)), 3, channels, 3, "stem", stride=2)
    for stage, (expansion, width, count, first) in enumerate(MOBILENET[: len(blocks) if blocks else None]):
        for block in range(blocks[stage] if blocks else count):
            inner, outer, stride = channels * expansion, width // shrink, first if not block else 1
            with b.scope(f"stage.{stage}.{block}"):
                y = unit(x, channels, inner, 1, "expand") if expansion > 1 else x
                y = unit(y, inner, inner, 3, "depthwise", stride, group=inner)
                joins = stride == 1 and channels == outer
                with b.scope("project"):
                    y = b.batch_norm(b.conv(y, inner, outer, bias=False), outer, 0.3 if joins else 1.0)
                x, channels = b.op("Add", x, y) if joins else y, outer
    x = unit(x, channels, head, 1, "head")
    return b.build({"logits": b.classifier(x, batch, head, classes)})


EFFICIENTNET = (
    (1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 40, 2, 2, 5), (6, 80, 3, 2, 3), (6, 112, 3, 1, 5), (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)  # fmt: skip
"""EfficientNet-B0's stages: expansion, channels, blocks, stride, kernel."""


def efficientnet(
    blocks: tuple[int, ...] | None = None, shrink: int = 1, head: int = 1280, image: Size = 224, batch: Size = 1,
    classes: int = 1000, pool: bool = True, seed: int = 0, opset: int = OPSET,
) -> ModelProto:  # fmt: skip
    """EfficientNet-B0 (Tan and Le, 2019): inverted residuals with squeeze and excitation, SiLU as x · sigmoid(x).

    The gate's mean is GlobalAveragePool, without `pool` ReduceMean; both are written by exporters. `blocks` and
    `shrink` are those of `mobilenet_v2`.
    Input: `x` [batch, 3, image, image]. Output: `logits` [batch, classes].
    """
    _shrinks(shrink)
    b = Builder("efficientnet", seed, opset)

    def silu(x: str) -> str:
        return b.op("Mul", x, b.op("Sigmoid", x))

    def unit(
        x: str, channels_in: int, channels_out: int, kernel: int, name: str, stride: int = 1, group: int = 1
    ) -> str:
        with b.scope(name):
            y = b.conv(x, channels_in, channels_out, kernel, stride, group=group, bias=False)
            return silu(b.batch_norm(y, channels_out))

    def excited(x: str, channels: int, squeezed: int) -> str:
        with b.scope("excite"):
            mean = b.op("GlobalAveragePool", x) if pool else b.mean(x, 2, 3)
            inner = silu(b.conv(mean, channels, squeezed, name="reduce"))
            return b.op("Mul", b.op("Sigmoid", b.conv(inner, squeezed, channels, name="expand")), x)

    channels = 32 // shrink
    x = unit(b.input("x", (batch, 3, image, image)), 3, channels, 3, "stem", stride=2)
    for stage, (expansion, width, count, first, kernel) in enumerate(EFFICIENTNET[: len(blocks) if blocks else None]):
        for block in range(blocks[stage] if blocks else count):
            inner, outer, stride = channels * expansion, width // shrink, first if not block else 1
            with b.scope(f"stage.{stage}.{block}"):
                y = unit(x, channels, inner, 1, "expand") if expansion > 1 else x
                y = unit(y, inner, inner, kernel, "depthwise", stride, group=inner)
                y = excited(y, inner, max(1, channels // 4))
                joins = stride == 1 and channels == outer
                with b.scope("project"):
                    y = b.batch_norm(b.conv(y, inner, outer, bias=False), outer, 0.5 if joins else 2.0)
                x, channels = b.op("Add", y, x) if joins else y, outer
    x = unit(x, channels, head, 1, "head")
    return b.build({"logits": b.classifier(x, batch, head, classes)})


def convnext(
    depths: tuple[int, ...] = (3, 3, 9, 3), widths: tuple[int, ...] = (96, 192, 384, 768), image: Size = 224,
    batch: Size = 1, classes: int = 1000, seed: int = 0, opset: int = OPSET,
) -> ModelProto:  # fmt: skip
    """ConvNeXt (Liu et al., 2022; the tiny one by default): depthwise 7×7, layer norm, linear layers, GELU.

    Blocks work with channels last between two Transposes; the norms between stages do so too. Every branch has a
    learned scale for each channel.
    Input: `x` [batch, 3, image, image]. Output: `logits` [batch, classes].
    """
    if len(depths) != len(widths):
        raise ValueError(f"{len(depths)} depths and {len(widths)} widths")
    b = Builder("convnext", seed, opset)

    def last(x: str) -> str:
        return b.op("Transpose", x, perm=[0, 2, 3, 1])

    def first(x: str) -> str:
        return b.op("Transpose", x, perm=[0, 3, 1, 2])

    def normed(x: str, width: int) -> str:
        return first(b.layer_norm(last(x), width, epsilon=1e-6))

    x = b.conv(b.input("x", (batch, 3, image, image)), 3, widths[0], 4, 4, pad=0, name="stem")
    x = normed(x, widths[0])
    for stage, (depth, width) in enumerate(zip(depths, widths, strict=True)):
        with b.scope(f"stage.{stage}"):
            if stage:
                before = widths[stage - 1]
                x = b.conv(normed(x, before), before, width, 2, 2, pad=0, name="downsample")
            for block in range(depth):
                with b.scope(f"block.{block}"):
                    y = last(b.conv(x, width, width, 7, group=width, name="depthwise"))
                    y = b.linear(b.layer_norm(y, width, epsilon=1e-6), width, 4 * width, "expand")
                    y = b.linear(b.gelu(y), 4 * width, width, "project")
                    y = b.op("Mul", y, b.weight((width,), 0.05, 0.3, "layer_scale"))
                    x = b.op("Add", x, first(y))
    with b.scope("classifier"):
        pooled = b.layer_norm(b.mean(x, 2, 3, keepdims=0), widths[-1], epsilon=1e-6)
        return b.build({"logits": b.gemm(pooled, widths[-1], classes)})


def channels_last(
    blocks: int = 3, width: int = 64, image: Size = 56, batch: Size = 1, classes: int = 10, seed: int = 0,
    opset: int = OPSET,
) -> ModelProto:  # fmt: skip
    """A residual net with channels last as tf2onnx writes it: a Transpose before and after each convolution and pool.

    Biases, scales and Relu work on channels last; the mean does too.
    Input: `x` [batch, image, image, 3]. Output: `scores` [batch, classes], after a softmax.
    """
    b = Builder("channels_last", seed, opset)

    def last(x: str) -> str:
        return b.op("Transpose", x, perm=[0, 2, 3, 1])

    def first(x: str) -> str:
        return b.op("Transpose", x, perm=[0, 3, 1, 2])

    def conv(x: str, channels_in: int, channels_out: int, kernel: int, name: str, gain: float = 1.0) -> str:
        with b.scope(name):
            y = last(b.conv(first(x), channels_in, channels_out, kernel, bias=False, gain=gain))
            return b.op("Add", y, b.weight((channels_out,), 0.1, name="bias"))

    x = b.op("Relu", conv(b.input("x", (batch, image, image, 3)), 3, width, 3, "stem"))
    for block in range(blocks):
        with b.scope(f"block.{block}"):
            y = b.op("Relu", conv(x, width, width, 3, "first"))
            y = b.op("Mul", conv(y, width, width, 3, "second", 0.5), b.weight((width,), 0.1, 1.0, "scale"))
            x = b.op("Relu", b.op("Add", y, x))
    x = last(b.pool("MaxPool", first(x), 2, 2))
    with b.scope("classifier"):
        scores = b.linear(b.mean(x, 1, 2, keepdims=0), width, classes)
        return b.build({"scores": b.op("Softmax", scores, axis=-1)})


def _shrinks(shrink: int) -> None:
    if shrink not in (1, 2, 4, 8):
        raise ValueError(f"shrink ({shrink}) must be 1, 2, 4 or 8")
