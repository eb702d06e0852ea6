"""Convolutional blocks by construction: parallel branches, grouped convolutions, residual sums."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .builder import OPSET, Builder

if TYPE_CHECKING:
    from onnx import ModelProto


def inception(
    blocks: int = 3, channels: int = 192, image: int = 35, width: int = 64, batch: int = 1, classes: int = 1000,
    norm: bool = False, seed: int = 0, opset: int = OPSET,
) -> ModelProto:  # fmt: skip
    """Inception-A blocks (Szegedy et al., 2016): 1×1, 5×5, double 3×3 and pooled branches over one input, concatenated.

    `width` is the channel count of the widest branch (64 in the paper); `norm` puts batch normalisation after each
    convolution, which then has no bias. Input: `x` [batch, channels, image, image]. Output: `logits` [batch, classes].
    """
    if width < 8 or width % 8:
        raise ValueError(f"width ({width}) must be a multiple of 8")
    b = Builder("inception", seed, opset)
    x = b.input("x", (batch, channels, image, image))

    def unit(x: str, channels_in: int, channels_out: int, kernel: int, name: str) -> str:
        with b.scope(name):
            y = b.conv(x, channels_in, channels_out, kernel, bias=not norm)
            return b.op("Relu", b.batch_norm(y, channels_out) if norm else y)

    for block in range(blocks):
        with b.scope(f"block.{block}"):
            wide, middle, narrow = width, 3 * width // 4, width // 2
            one = unit(x, channels, wide, 1, "branch1x1")
            five = unit(unit(x, channels, middle, 1, "branch5x5_reduce"), middle, wide, 5, "branch5x5")
            three = unit(x, channels, wide, 1, "branch3x3_reduce")
            three = unit(
                unit(three, wide, wide + narrow, 3, "branch3x3a"), wide + narrow, wide + narrow, 3, "branch3x3b"
            )
            pooled = b.op("AveragePool", x, kernel_shape=[3, 3], strides=[1, 1], pads=[1] * 4, count_include_pad=1)
            pooled = unit(pooled, channels, narrow, 1, "branch_pool")
            x = b.op("Concat", one, five, three, pooled, axis=1)
            channels = 2 * wide + (wide + narrow) + narrow
    return b.build({"logits": _classifier(b, x, batch, channels, classes)})


def inception_block(channels: int = 192, image: int = 35, width: int = 64, seed: int = 0) -> ModelProto:
    """One block of `inception`, with its classifier."""
    return inception(blocks=1, channels=channels, image=image, width=width, seed=seed)


def resnext(
    stages: tuple[int, ...] = (3, 4, 6, 3), cardinality: int = 32, width: int = 4, image: int = 224, stem: int = 64,
    batch: int = 1, classes: int = 1000, norm: bool = True, seed: int = 0, opset: int = OPSET,
) -> ModelProto:  # fmt: skip
    """ResNeXt (Xie et al., 2017; ResNeXt-50 32×4d by default): bottlenecks whose 3×3 convolution is grouped.

    `stages` are the numbers of blocks at each resolution, `cardinality` the number of groups, `width` the channels
    of a group in the first stage.
    Input: `x` [batch, 3, image, image]. Output: `logits` [batch, classes].
    """
    b = Builder("resnext", seed, opset)
    x = b.input("x", (batch, 3, image, image))

    def unit(
        x: str, channels_in: int, channels_out: int, kernel: int, name: str, stride: int = 1, group: int = 1,
        gain: float = 1.0,
    ) -> str:  # fmt: skip
        with b.scope(name):
            y = b.conv(x, channels_in, channels_out, kernel, stride, group=group, bias=not norm)
            return b.batch_norm(y, channels_out, gain) if norm else y

    x = b.op("Relu", unit(x, 3, stem, 7, "stem", stride=2))
    x = b.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    channels = stem
    for stage, blocks in enumerate(stages):
        inner = cardinality * width * 2**stage
        outer = 4 * stem * 2**stage
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            with b.scope(f"stage.{stage}.{block}"):
                y = b.op("Relu", unit(x, channels, inner, 1, "reduce"))
                y = b.op("Relu", unit(y, inner, inner, 3, "grouped", stride, cardinality))
                # A small last gain keeps the residual sums from growing with depth.
                y = unit(y, inner, outer, 1, "expand", gain=0.3)
                skip = x if channels == outer and stride == 1 else unit(x, channels, outer, 1, "shortcut", stride)
                x = b.op("Relu", b.op("Add", y, skip))
                channels = outer
    return b.build({"logits": _classifier(b, x, batch, channels, classes)})


def _classifier(b: Builder, x: str, batch: int, channels: int, classes: int) -> str:
    with b.scope("classifier"):
        flat = b.reshape(b.op("GlobalAveragePool", x), (batch, channels))
        return b.op(
            "Gemm",
            flat,
            b.weight((classes, channels), channels**-0.5),
            b.weight((classes,), 0.1, name="bias"),
            transB=1,
        )
