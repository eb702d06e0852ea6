"""Searched convolutional cells: NASNet-A, faithful and as TASO codes it, and random cells that never repeat."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from .builder import OPSET, Builder, Size

if TYPE_CHECKING:
    from onnx import ModelProto


def nasnet_coded(
    channels: int = 128, cells: int = 5, image: int | None = None, stem: bool = False, batch: Size = 1, seed: int = 0,
    opset: int = OPSET,
) -> ModelProto:  # fmt: skip
    """NASNet-A (Zoph et al., 2018) as TASO's script codes it: three times `cells` normal cells and a reduction.

    No batch normalisation, no Relu before a convolution; a separable convolution is one depthwise and one pointwise.
    Input: `x` [batch, channels, image, image], image 56 by default. With `stem` (TENSAT's graph) [batch, 3, image,
    image], image 224 by default; a 7×7 convolution with stride 2 and a pool to half of that make 64 channels of it.
    Output: `features`.
    """
    image = image or (224 if stem else 56)
    b = Builder("nasnet", seed, opset)
    if stem:
        x, width = b.op("Relu", b.conv(b.input("x", (batch, 3, image, image)), 3, 64, 7, 2, bias=False)), 64
        x, extent = b.pool("MaxPool", x, 3, 2, 1), -(-image // 4)
    else:
        x, width, extent = b.input("x", (batch, channels, image, image)), channels, image
        x = b.pool("MaxPool", x, 1, 1)
    for stage in range(3):
        previous = current = (x, width, extent)
        for cell in range(cells + 1):
            reducing = cell == cells
            channels *= 2 if reducing else 1
            with b.scope(f"stage.{stage}.{'reduction' if reducing else cell}"):
                here = (_squeezed(b, current[0], current[1], channels), channels, current[2])
                if previous[2] == current[2]:
                    before = _squeezed(b, previous[0], previous[1], channels)
                else:
                    before = b.op("Relu", b.conv(previous[0], previous[1], channels, 3, 2, bias=False, name="fit"))
                join = _coded_reduction if reducing else _coded_cell
                x, width = join(b, before, here[0], channels)
                extent = -(-extent // 2) if reducing else extent
                previous, current = current, (x, width, extent)
    return b.build({"features": x})


def _squeezed(b: Builder, x: str, channels_in: int, channels_out: int) -> str:
    # Sums of two branches would double the variance from cell to cell.
    return b.op("Relu", b.conv(x, channels_in, channels_out, bias=False, name="squeeze", gain=0.8))


def _coded_separable(b: Builder, x: str, channels: int, kernel: int, stride: int = 1) -> str:
    with b.numbered("separable"):
        y = b.conv(x, channels, channels, kernel, stride, group=channels, bias=False, name="depthwise", gain=0.7)
        return b.conv(y, channels, channels, bias=False, name="pointwise", gain=0.7)


def _coded_cell(b: Builder, prev: str, cur: str, channels: int) -> tuple[str, int]:
    def average(x: str) -> str:
        return b.pool("AveragePool", x, 3, 1, 1)

    def separable(x: str) -> str:
        return _coded_separable(b, x, channels, 3)

    sums = [
        b.op("Add", separable(cur), cur),
        b.op("Add", separable(prev), separable(cur)),
        b.op("Add", average(cur), prev),
        b.op("Add", average(prev), average(prev)),
        b.op("Add", separable(prev), separable(prev)),
    ]
    return b.op("Concat", *sums, axis=1), 5 * channels


def _coded_reduction(b: Builder, prev: str, cur: str, channels: int) -> tuple[str, int]:
    def separable(x: str, kernel: int, stride: int = 2) -> str:
        return _coded_separable(b, x, channels, kernel, stride)

    first = b.op("Add", separable(prev, 7), separable(cur, 5))
    second = b.op("Add", b.pool("MaxPool", cur, 3, 2, 1), separable(prev, 7))
    third = b.op("Add", b.pool("AveragePool", cur, 3, 2, 1), separable(prev, 5))
    fourth = b.op("Add", b.pool("MaxPool", cur, 3, 2, 1), separable(first, 3, 1))
    fifth = b.op("Add", b.pool("AveragePool", first, 3, 1, 1), second)
    return b.op("Concat", first, second, third, fourth, fifth, axis=1), 5 * channels


def nasnet(
    repeats: int = 4, filters: int = 44, stem: int = 32, stages: int = 3, image: int = 224, batch: Size = 1,
    classes: int = 1000, seed: int = 0, opset: int = OPSET,
) -> ModelProto:  # fmt: skip
    """NASNet-A (Zoph et al., 2018): batch normalisation, Relu before every convolution, separable convolutions twice.

    The mobile one by default; `repeats=6, filters=168, stem=96, image=331` is the large one. A state of another extent
    is fitted by two shifted paths. `stages` times `repeats` normal cells, with a reduction before each but the first.
    Input: `x` [batch, 3, image, image]. Output: `logits` [batch, classes].
    """
    if image < 32:
        raise ValueError(f"image ({image}) must be at least 32")
    b = Builder("nasnet", seed, opset)
    net = _Cells(b)
    x = b.input("x", (batch, 3, image, image))
    x = b.batch_norm(b.conv(x, 3, stem, 3, 2, pad=0, bias=False, name="stem"), stem)
    states = [(x, stem, (image - 3) // 2 + 1)] * 2
    plan = [("stem", filters // 4, True), ("stem", filters // 2, True)]
    for stage in range(stages):
        if stage:
            plan.append((f"stage.{stage}", filters * 2**stage, True))
        plan += [(f"stage.{stage}", filters * 2**stage, False)] * repeats
    for name, width, reducing in plan:
        with b.numbered(name):
            states = [states[1], net.cell(states[0], states[1], width, reducing)]
    return b.build({"logits": b.classifier(b.op("Relu", states[1][0]), batch, states[1][1], classes)})


State = tuple[str, int, int]
"""A value, its channels and the extent of its picture."""


class _Cells:
    """The cells of NASNet-A."""

    def __init__(self, b: Builder) -> None:
        self.b = b

    def adjusted(self, state: State, width: int) -> str:
        """A state brought to `width` channels: Relu, pointwise convolution, normalisation."""
        b = self.b
        with b.numbered("adjust"):
            return b.batch_norm(b.conv(b.op("Relu", state[0]), state[1], width, bias=False), width)

    def fitted(self, state: State, width: int, extent: int) -> str:
        """A state brought to half its extent: two paths of every second pixel, one shifted by a pixel, side by side."""
        if state[2] == extent:
            return self.adjusted(state, width)
        b, (x, channels, _) = self.b, state
        with b.numbered("fit"):
            y = b.op("Relu", x)
            shifted = b.op("Pad", y, b.constant([0, 0, 0, 0, 0, 0, 1, 1], "pads", "int64"))
            for axis in (2, 3):
                shifted = b.slice(shifted, axis, 1, np.iinfo(np.int64).max)
            halves = []
            for path, part in ((y, width // 2), (shifted, width - width // 2)):
                halves.append(b.conv(b.pool("AveragePool", path, 1, 2), channels, part, bias=False))
            return b.batch_norm(b.op("Concat", *halves, axis=1), width)

    def separable(self, x: str, width: int, kernel: int, stride: int = 1) -> str:
        """Twice Relu, depthwise and pointwise convolution, normalisation; the first has the stride."""
        b = self.b
        with b.numbered("separable"):
            for step in (stride, 1):
                x = b.op("Relu", x)
                x = b.conv(x, width, width, kernel, step, group=width, bias=False, name="depthwise")
                x = b.batch_norm(b.conv(x, width, width, bias=False, name="pointwise", gain=0.7), width)
            return x

    def cell(self, before: State, now: State, width: int, reducing: bool) -> State:
        b = self.b
        prev, cur = self.fitted(before, width, now[2]), self.adjusted(now, width)
        stride = 2 if reducing else 1

        def separable(x: str, kernel: int, stride: int = stride) -> str:
            return self.separable(x, width, kernel, stride)

        def average(x: str, stride: int = stride) -> str:
            return b.pool("AveragePool", x, 3, stride, 1, count_include_pad=0)

        def largest(x: str) -> str:
            return b.pool("MaxPool", x, 3, 2, 1)

        if reducing:
            first = b.op("Add", separable(prev, 7), separable(cur, 5))
            second = b.op("Add", largest(cur), separable(prev, 7))
            third = b.op("Add", average(cur), separable(prev, 5))
            fourth = b.op("Add", second, average(first, 1))
            fifth = b.op("Add", separable(first, 3, 1), largest(cur))
            parts = [second, third, fourth, fifth]
        else:
            parts = [
                prev,
                b.op("Add", separable(cur, 3), cur),
                b.op("Add", separable(prev, 3), separable(cur, 5)),
                b.op("Add", average(cur), prev),
                b.op("Add", average(prev), average(prev)),
                b.op("Add", separable(prev, 5), separable(prev, 3)),
            ]
        extent = -(-now[2] // 2) if reducing else now[2]
        return b.op("Concat", *parts, axis=1), len(parts) * width, extent


Unit = Callable[[Builder, str, int], str]


def _unit(kernel: int | tuple[int, int], op: str = "Relu", group: bool = False) -> Unit:
    def make(b: Builder, x: str, width: int) -> str:
        y = b.conv(x, width, width, kernel, group=width if group else 1, bias=False)
        return b.op(op, b.batch_norm(y, width))

    return make


def _two(first: Unit, second: Unit) -> Unit:
    return lambda b, x, width: second(b, first(b, x, width), width)


UNITS: dict[str, Unit] = {
    "identity": lambda b, x, width: x,
    "1x1": _unit(1),
    "3x3": _unit(3),
    "1x3-3x1": _two(_unit((1, 3)), _unit((3, 1))),
    "separable 3x3": _two(_unit(3, group=True), _unit(1)),
    "separable 5x5": _two(_unit(5, group=True), _unit(1)),
    "bottleneck": _two(_unit(1), _unit(3)),
    "average 3x3": lambda b, x, width: b.pool("AveragePool", x, 3, 1, 1, count_include_pad=0),
    "max 3x3": lambda b, x, width: b.pool("MaxPool", x, 3, 1, 1),
    "sigmoid gate": lambda b, x, width: b.op("Mul", x, b.op("Sigmoid", _unit(1)(b, x, width))),
}
"""What a node of a random cell may do to a state."""


def nas_cells(
    operators: int = 5000, nodes: int = 5, width: int = 4, image: Size = 8, batch: Size = 1, classes: int = 10,
    seed: int = 0, opset: int = OPSET,
) -> ModelProto:  # fmt: skip
    """Random cells, no two alike, until there are at least `operators` of them; for measuring how searches scale.

    A cell has `nodes` nodes, each the sum of two units (`UNITS`) of earlier states: those of the two cells before it
    and its own nodes. What no node reads is concatenated and brought back to `width` channels. Structure and weights
    follow from the seed. The scores are read from the last cell and from every eighth, or the first would show in
    nothing.
    Input: `x` [batch, 3, image, image]. Output: `logits` [batch, classes].
    """
    if nodes < 1 or width < 1 or operators < 1:
        raise ValueError("operators, nodes and width must be at least 1")
    b = Builder("nas_cells", seed, opset)
    # Apart from the generator of the weights, so that an outline has the same cells.
    random = np.random.default_rng([seed, 1])
    names = list(UNITS)
    x = _unit(3)(b, b.conv(b.input("x", (batch, 3, image, image)), 3, width, 1, bias=False, name="stem"), width)
    before, now = x, x
    seen: set[tuple[int, ...]] = set()
    heads: list[str] = []
    cell = 0
    different = math.prod(((2 + n) * len(names)) ** 2 for n in range(nodes))
    while len(b.nodes) < operators - 4:
        if len(seen) == different:
            raise ValueError(f"there are only {different} cells of {nodes} nodes, too few for {operators} operators")
        choice: tuple[int, ...] = ()
        while not choice or choice in seen:
            picks = [(random.integers(2 + n), random.integers(len(names))) for n in range(nodes) for _ in range(2)]
            choice = tuple(int(v) for pick in picks for v in pick)
        seen.add(choice)
        states, read = [before, now], {0, 1}
        with b.scope(f"cell.{cell}"):
            for node in range(nodes):
                terms = []
                for source, unit in (choice[4 * node : 4 * node + 2], choice[4 * node + 2 : 4 * node + 4]):
                    read.add(source)
                    with b.scope(f"node.{node}"):
                        terms.append(UNITS[names[unit]](b, states[source], width))
                states.append(b.op("Add", *terms))
            loose = [s for i, s in enumerate(states) if i not in read]
            joined = b.op("Concat", *loose, axis=1) if len(loose) > 1 else loose[0]
            before, now = now, _narrowed(b, joined, len(loose) * width, width)
        cell += 1
        if cell % 8 == 1:
            heads.append(now)
    if now not in heads:
        heads.append(now)
    joined = b.op("Concat", *heads, axis=1) if len(heads) > 1 else now
    return b.build({"logits": b.classifier(joined, batch, width * len(heads), classes)})


def _narrowed(b: Builder, x: str, channels_in: int, channels_out: int) -> str:
    # Tanh keeps a thousand cells in range.
    y = b.conv(x, channels_in, channels_out, bias=False, name="narrow", gain=0.5)
    return b.op("Tanh", b.batch_norm(y, channels_out))
