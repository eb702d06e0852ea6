"""Plain and residual convolutional nets by construction: VGG, SqueezeNet, ResNet, ResNeXt.

Each as PyTorch's exports have it, and `as_coded` as TASO's, TENSAT's and X-RLflow's scripts code such nets: Conv and
Relu, no bias and no batch normalisation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .builder import OPSET, Builder, Size

if TYPE_CHECKING:
    from onnx import ModelProto


def resnext(
    stages: tuple[int, ...] = (3, 4, 6, 3), cardinality: int = 32, width: int = 4, image: Size = 224, stem: int = 64,
    batch: Size = 1, classes: int = 1000, norm: bool = True, as_coded: bool = False, seed: int = 0, opset: int = OPSET,
) -> ModelProto:  # fmt: skip
    """ResNeXt (Xie et al., 2017; ResNeXt-50 32×4d by default): bottlenecks whose 3×3 convolution is grouped.

    `stages` are the numbers of blocks at each resolution, `cardinality` the number of groups, `width` the channels
    of a group in the first stage; 1 group of width 64 makes the ResNet (He et al., 2016), with the stride in the 3×3
    convolution. Without `norm` the convolutions have biases instead. `as_coded`: neither; shortcuts that convolve end
    in Relu, and the last sum is the output.
    Input: `x` [batch, 3, image, image]. Output: `logits` [batch, classes], as coded `features` [batch, 2048, …].
    """
    b = Builder("resnext" if cardinality > 1 else "resnet", seed, opset)
    x = b.input("x", (batch, 3, image, image))

    def unit(
        x: str, channels_in: int, channels_out: int, kernel: int, name: str, stride: int = 1, group: int = 1,
        gain: float = 1.0,
    ) -> str:  # fmt: skip
        with b.scope(name):
            if as_coded:
                return b.conv(x, channels_in, channels_out, kernel, stride, group=group, bias=False, gain=gain)
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
                skip = x
                if channels != outer or stride > 1:
                    skip = unit(x, channels, outer, 1, "shortcut", stride)
                    skip = b.op("Relu", skip) if as_coded else skip
                x = b.op("Relu", b.op("Add", y, skip))
                channels = outer
    if as_coded:
        return b.build({"features": x})
    return b.build({"logits": b.classifier(x, batch, channels, classes)})


VGG19 = (2, 2, 4, 4, 4)
"""Convolutions between the pools of VGG-19."""


def vgg(
    stages: tuple[int, ...] = VGG19, width: int = 64, hidden: int = 4096, image: int = 224, batch: Size = 1,
    classes: int = 1000, norm: bool = True, as_coded: bool = False, seed: int = 0, opset: int = OPSET,
) -> ModelProto:  # fmt: skip
    """VGG (Simonyan and Zisserman, 2015; VGG-19 by default): 3×3 convolutions, and three linear layers.

    `width` is the number of channels of the first stage, which doubles up to eight times itself; `norm` puts batch
    normalisation after each convolution. `as_coded`: neither that nor biases, in the linear layers neither.
    Input: `x` [batch, 3, image, image], image a multiple of 2 to the number of stages.
    Output: `logits` [batch, classes].
    """
    step = 2 ** len(stages)
    if image < step or image % step:
        raise ValueError(f"image ({image}) must be a multiple of {step}")
    b = Builder("vgg", seed, opset)
    x, channels = b.input("x", (batch, 3, image, image)), 3
    for stage, convolutions in enumerate(stages):
        with b.scope(f"stage.{stage}"):
            for _ in range(convolutions):
                wide = width * min(2**stage, 8)
                x = b.conv(x, channels, wide, 3, bias=not as_coded)
                x = b.op("Relu", b.batch_norm(x, wide) if norm and not as_coded else x)
                channels = wide
            x = b.pool("MaxPool", x, 2, 2)
    extent = channels * (image // step) ** 2
    x = b.reshape(x, (batch, extent))
    for layer, (size, gain) in enumerate(((hidden, 1.4), (hidden, 1.4), (classes, 1.0))):
        with b.scope(f"linear.{layer}"):
            if as_coded:
                x = b.linear(x, extent, size, "product", bias=False, gain=gain)
            else:
                x = b.gemm(x, extent, size, gain)
            x, extent = b.op("Relu", x) if layer < 2 else x, size
    return b.build({"logits": x})


FIRES = ((16, 64), (16, 64), (32, 128), (32, 128), (48, 192), (48, 192), (64, 256), (64, 256))
"""For each fire module of SqueezeNet the channels of its squeeze and of each of its two expansions."""


def squeezenet_coded(
    shrink: int = 1, image: Size = 224, batch: Size = 1, classes: int = 1000, seed: int = 0, opset: int = OPSET
) -> ModelProto:
    """SqueezeNet 1.1 (Iandola et al., 2016) in Conv and Relu without biases, up to the mean that gives the scores.

    The light model `squeezenet` is the published one, with biases and softmax. `shrink` divides the channels.
    Input: `x` [batch, 3, image, image]. Output: `scores` [batch, classes, 1, 1].
    """
    if shrink not in (1, 2, 4, 8, 16):
        raise ValueError(f"shrink ({shrink}) must be 1, 2, 4, 8 or 16")
    b = Builder("squeezenet", seed, opset)
    x, channels = b.input("x", (batch, 3, image, image)), 64 // shrink

    def unit(x: str, channels_in: int, channels_out: int, kernel: int, name: str) -> str:
        return b.op("Relu", b.conv(x, channels_in, channels_out, kernel, bias=False, name=name))

    x = b.op("Relu", b.conv(x, 3, channels, 3, stride=2, pad=0, bias=False, name="stem"))
    for module, (squeeze, expand) in enumerate(FIRES):
        if module in (0, 2, 4):
            x = b.pool("MaxPool", x, 3, 2)
        with b.scope(f"fire.{module}"):
            narrow, wide = squeeze // shrink, expand // shrink
            squeezed = unit(x, channels, narrow, 1, "squeeze")
            one, three = unit(squeezed, narrow, wide, 1, "expand1x1"), unit(squeezed, narrow, wide, 3, "expand3x3")
            x, channels = b.op("Concat", one, three, axis=1), 2 * wide
    return b.build({"scores": b.op("GlobalAveragePool", unit(x, channels, classes, 1, "scores"))})
