"""Graphs of matrix products and cheap element-wise operators: searched recurrent cells and parallel towers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .builder import OPSET, Builder, Size

if TYPE_CHECKING:
    from onnx import ModelProto


def nasrnn(
    steps: int = 5, hidden: int = 512, batch: Size = 1, shared: bool = False, as_coded: bool = False, seed: int = 0,
    opset: int = OPSET,
) -> ModelProto:  # fmt: skip
    """The recurrent cell of Zoph and Le (2017), unrolled; the graph that TASO and TENSAT call NasRNN.

    Eight gates, each x W + h U, joined pairwise by a tree of activations. Those systems give every step its own weights
    (the default); `shared` uses one set, as a trained cell does. `as_coded` makes the first state a weight, as there.
    Inputs: `x0`, `x1`, … and, unless as coded, `h` [batch, hidden]. Output: `state` [batch, hidden].
    """
    b = Builder("nasrnn", seed, opset)
    xs = [b.input(f"x{t}", (batch, hidden)) for t in range(steps)]
    if as_coded and isinstance(batch, str):
        raise ValueError("a state that is a weight needs a batch that is a number")
    state = b.weight((int(batch), hidden), name="h") if as_coded else b.input("h", (batch, hidden))
    std = hidden**-0.5
    pairs: list[tuple[str, str]] = []
    for step, x in enumerate(xs):
        with b.scope(f"step.{step}"):
            if step == 0 or not shared:
                pairs = [
                    (b.weight((hidden, hidden), std, name="w"), b.weight((hidden, hidden), std, name="u"))
                    for _ in range(8)
                ]
            gates = [b.op("Add", b.op("MatMul", x, w), b.op("MatMul", state, u)) for w, u in pairs]
            values = [
                b.op(join, b.op(left, gates[i]), b.op(right, gates[j])) for join, left, i, right, j in _FIRST_JOINS
            ]
            # `values` grows while the tree is walked, so that later joins read earlier ones.
            for join, left, i, right, j in _LATER_JOINS:
                values.append(b.op(join, b.op(left, values[i]), b.op(right, values[j])))
            state = b.op("Tanh", values[-1])
    return b.build({"state": state})


_FIRST_JOINS = (
    ("Add", "Relu", 0, "Sigmoid", 3),
    ("Add", "Sigmoid", 1, "Tanh", 2),
    ("Mul", "Sigmoid", 4, "Tanh", 5),
    ("Mul", "Sigmoid", 6, "Relu", 7),
)
_LATER_JOINS = (("Add", "Sigmoid", 1, "Tanh", 2), ("Mul", "Tanh", 0, "Tanh", 3), ("Mul", "Tanh", 4, "Tanh", 5))


def nas_cell(steps: int = 5, hidden: int = 512, batch: Size = 1, seed: int = 0, opset: int = OPSET) -> ModelProto:
    """The recurrent cell of Zoph and Le (2017) with its memory, unrolled as TensorFlow's `NASCell` computes it.

    One set of weights for all steps, one product for all eight gates, biases; every state has a memory beside it.
    Inputs: `x` [steps, batch, hidden], `h` and `c` [batch, hidden]. Outputs: `state` and `memory` [batch, hidden].
    """
    b = Builder("nas_cell", seed, opset)
    sequence = b.input("x", (steps, batch, hidden))
    state, memory = b.input("h", (batch, hidden)), b.input("c", (batch, hidden))
    std = hidden**-0.5
    w = b.weight((hidden, 8 * hidden), std, name="w")
    u, bias = b.weight((hidden, 8 * hidden), std, name="u"), b.weight((8 * hidden,), 0.1, name="bias")
    for step in range(steps):
        with b.scope(f"step.{step}"):
            x = b.op("Gather", sequence, b.constant(step, "step", "int64"), axis=0)
            xs = b.split(b.op("MatMul", x, w), 1, [hidden] * 8)
            hs = b.split(b.op("Add", b.op("MatMul", state, u), bias), 1, [hidden] * 8)
            gates = [b.op(act, b.op("Mul" if i == 3 else "Add", xs[i], hs[i])) for i, act in enumerate(_GATES)]
            pairs = [b.op(join, gates[2 * i], gates[2 * i + 1]) for i, join in enumerate(("Mul", "Add", "Mul", "Add"))]
            first, second, third = (b.op("Tanh", pair) for pair in pairs[:3])
            memory = b.op("Mul", b.op("Tanh", b.op("Add", first, memory)), second)
            last = b.op("Tanh", b.op("Add", third, b.op("Sigmoid", pairs[3])))
            state = b.op("Tanh", b.op("Mul", memory, last))
    return b.build({"state": state, "memory": memory})


_GATES = ("Sigmoid", "Relu", "Sigmoid", "Relu", "Tanh", "Sigmoid", "Tanh", "Sigmoid")


def mlp_tower(
    towers: int = 4, layers: int = 3, width: int = 256, batch: Size = 32, seed: int = 0, opset: int = OPSET
) -> ModelProto:
    """`towers` parallel perceptrons over one input, concatenated and projected: sibling products at every depth.

    Input: `x` [batch, width]. Output: `y` [batch, width].
    """
    b = Builder("mlp_tower", seed, opset)
    x = b.input("x", (batch, width))
    tops = []
    for tower in range(towers):
        y = x
        with b.scope(f"tower.{tower}"):
            for layer in range(layers):
                y = b.op("Relu", b.linear(y, width, width, f"layer.{layer}"))
        tops.append(y)
    joined = b.op("Concat", *tops, axis=1) if towers > 1 else tops[0]
    return b.build({"y": b.linear(joined, towers * width, width, "projection")})
