"""Inception by construction: single blocks of one kind, and InceptionV3 whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .builder import OPSET, Builder, Size

if TYPE_CHECKING:
    from onnx import ModelProto


def inception(
    blocks: int = 3, channels: int = 192, image: Size = 35, width: int = 64, batch: Size = 1, classes: int = 1000,
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
    return b.build({"logits": b.classifier(x, batch, channels, classes)})


def inception_block(
    channels: int = 192, image: Size = 35, width: int = 64, batch: Size = 1, seed: int = 0, opset: int = OPSET
) -> ModelProto:
    """One block of `inception`, with its classifier."""
    return inception(1, channels, image, width, batch, seed=seed, opset=opset)


def inception_v3(
    as_coded: bool = False, image: Size = 299, batch: Size = 1, classes: int = 1000, shrink: int = 1,
    blocks: tuple[int, ...] = (3, 4, 2), seed: int = 0, opset: int = OPSET,
) -> ModelProto:  # fmt: skip
    """InceptionV3 (Szegedy et al., 2016), 94 convolutions.

    Faithful: batch normalisation after each convolution, averages that leave the padding out, global average and
    linear classifier. `as_coded` is the graph of TASO's and X-RLflow's scripts: Conv and Relu only, no bias, averages
    as their SAME pools, and at the end, where the classifier would be, an average over windows of 1 × 1.
    `shrink` divides all channel counts (which are multiples of 16, so 1, 2, 4, 8 or 16); `blocks` says how many blocks
    there are between the reductions, at most as many as by default.
    Input: `x` [batch, 3, image, image]. Output: `logits` [batch, classes], as coded `features` [batch, 2048, …].
    """
    if shrink not in (1, 2, 4, 8, 16):
        raise ValueError(f"shrink ({shrink}) must be 1, 2, 4, 8 or 16")
    if isinstance(image, int) and image < 75:
        raise ValueError(f"image ({image}) must be at least 75")
    if len(blocks) != 3 or any(not 1 <= n <= most for n, most in zip(blocks, (3, 4, 2), strict=True)):
        raise ValueError(f"blocks {blocks} must be three numbers up to 3, 4 and 2")
    b = Builder("inception_v3", seed, opset)
    net = _Inception(b, as_coded, shrink)
    x = b.input("x", (batch, 3, image, image))
    with b.scope("stem"):
        x = net.unit(x, 32, 3, stride=2, pad=0)
        x = net.unit(x, 32, 3, pad=0)
        x = net.unit(x, 64, 3)
        x = b.pool("MaxPool", x, 3, 2)
        x = net.unit(net.unit(net.like(x, 64), 80), 192, 3, pad=0)
        x = net.like(b.pool("MaxPool", x, 3, 2), 192)
    for block, features in enumerate((32, 64, 64)[: blocks[0]]):
        with b.scope(f"a.{block}"):
            x = net.joined(
                net.unit(x, 64),
                net.chain(x, (48, 1), (64, 5)),
                net.chain(x, (64, 1), (96, 3), (96, 3)),
                net.unit(net.average(x), features),
            )
    with b.scope("b"):
        x = net.joined(
            net.unit(x, 384, 3, stride=2, pad=0),
            net.unit(net.chain(x, (64, 1), (96, 3)), 96, 3, stride=2, pad=0),
            net.like(b.pool("MaxPool", x, 3, 2), net.width(x)),
        )
    for block, inner in enumerate((128, 160, 160, 192)[: blocks[1]]):
        with b.scope(f"c.{block}"):
            x = net.joined(
                net.unit(x, 192),
                net.chain(x, (inner, 1), (inner, (1, 7)), (192, (7, 1))),
                net.chain(x, (inner, 1), (inner, (7, 1)), (inner, (1, 7)), (inner, (7, 1)), (192, (1, 7))),
                net.unit(net.average(x), 192),
            )
    with b.scope("d"):
        x = net.joined(
            net.unit(net.unit(x, 192), 320, 3, stride=2, pad=0),
            net.unit(net.chain(x, (192, 1), (192, (1, 7)), (192, (7, 1))), 192, 3, stride=2, pad=0),
            net.like(b.pool("MaxPool", x, 3, 2), net.width(x)),
        )
    for block in range(blocks[2]):
        with b.scope(f"e.{block}"):
            single, double = net.unit(x, 384), net.chain(x, (448, 1), (384, 3))
            x = net.joined(
                net.unit(x, 320),
                net.unit(single, 384, (1, 3)),
                net.unit(single, 384, (3, 1)),
                net.unit(double, 384, (1, 3)),
                net.unit(double, 384, (3, 1)),
                net.unit(net.average(x), 192),
            )
    if as_coded:
        return b.build({"features": b.pool("AveragePool", x, 1, 1)})
    return b.build({"logits": b.classifier(x, batch, net.channels[x], classes)})


class _Inception:
    """The units of InceptionV3; they remember how many channels each value has. Widths are told before shrinking."""

    def __init__(self, b: Builder, as_coded: bool, shrink: int) -> None:
        self.b, self.as_coded, self.shrink = b, as_coded, shrink
        self.channels: dict[str, int] = {}

    def width(self, x: str) -> int:
        return self.channels[x] * self.shrink

    def like(self, x: str, width: int) -> str:
        """Say that `x` has so many channels."""
        self.channels[x] = width // self.shrink
        return x

    def unit(
        self, x: str, width: int, kernel: int | tuple[int, int] = 1, stride: int = 1, pad: int | None = None
    ) -> str:
        """Convolution, batch normalisation unless as coded, Relu."""
        channels, b = width // self.shrink, self.b
        with b.numbered("unit"):
            y = b.conv(x, self.channels.get(x, 3), channels, kernel, stride, pad, bias=False)
            return self.like(b.op("Relu", y if self.as_coded else b.batch_norm(y, channels)), width)

    def chain(self, x: str, *units: tuple[int, int | tuple[int, int]]) -> str:
        for width, kernel in units:
            x = self.unit(x, width, kernel)
        return x

    def average(self, x: str) -> str:
        return self.like(self.b.pool("AveragePool", x, 3, 1, 1, count_include_pad=0), self.width(x))

    def joined(self, *parts: str) -> str:
        return self.like(self.b.op("Concat", *parts, axis=1), sum(map(self.width, parts)))
