"""Of what size the numbers of a constant are: kernels whose time depends on their arguments are timed on such ones."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from ..egraph.graph import TensorType, TupleType, Weight
from ..egraph.space import SearchSpace

SAMPLE = 4096
"""Elements of a weight that are looked at."""

SENSITIVE = frozenset(
    [
        "Erf",
        "Exp",
        "Tanh",
        "Sigmoid",
        "Softplus",
        "Gelu",
        "BiasGelu",
        "FastGelu",
        "Swish",
        "HardSwish",
        "Elu",
        "Pow",
        "Log",
        "Sin",
        "Cos",
        "Softmax",
    ]
)
"""Operators that compilers call a library function for, with branches of different length."""

MOVED = frozenset(["Reshape", "Transpose", "Slice", "Split", "Get", "Concat", "Expand", "Gather", "Cast"])
"""Operators whose results are elements of their first operand."""


class Spread(NamedTuple):
    """Mean, standard deviation and least element."""

    mean: float
    deviation: float
    least: float

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        """float64 array of such numbers."""
        return np.maximum(rng.normal(self.mean, self.deviation, shape), self.least)

    def scaled(self, factor: float) -> Spread:
        """The spread of so many times the numbers; of positive factors the least element is known."""
        least = self.least * factor if factor > 0 else (self.mean - 4 * self.deviation) * factor
        return Spread(self.mean * factor, self.deviation * abs(factor), min(least, self.mean * factor))

    def __str__(self) -> str:
        """Rounded: what is printed alike takes the same time, as do the like weights of all layers."""
        centre = self.mean if abs(self.mean) > self.deviation / 2 else 0.0
        return f"{centre:.1g}±{_power(self.deviation)}"


def _power(x: float) -> float:
    """The nearest power of two."""
    return 2.0 ** round(math.log2(x)) if x > 0 else 0.0


_known: dict[str, Spread | None] = {}


def spread_of_weight(weight: Weight) -> Spread | None:
    """Of a weight's elements; None for those that are no numbers."""
    if weight.digest not in _known:
        if len(_known) > 1 << 14:
            _known.clear()
        array = np.asarray(weight.load()).reshape(-1)
        found = None
        if array.dtype.kind == "f" and array.size:
            part = array[:: max(1, array.size // SAMPLE)].astype(np.float64)
            if np.isfinite(part).all():
                found = Spread(float(part.mean()), float(part.std()), float(part.min()))
        _known[weight.digest] = found
    return _known[weight.digest]


def spread_of(space: SearchSpace, c: int, depth: int = 8) -> Spread | None:
    """Of a constant class of floating-point numbers; None where it cannot be told without computing it."""
    from .cluster import number_of

    kind = space.types[c]
    first = kind.items[0] if isinstance(kind, TupleType) else kind
    real = isinstance(first, TensorType) and first.dtype in ("float16", "float32", "float64")
    if depth == 0 or not space.const[c] or not real:
        return None
    for i in space.nodes_of(c):
        op, kids = space.ops[i], space.child_lists[i]
        found = None
        if op == "Weight":
            weight = space.graph.weights.get(str(space.attrs(i)["digest"]))
            found = None if weight is None else spread_of_weight(weight)
        elif op in MOVED and kids:
            found = spread_of(space, kids[0], depth - 1)
        elif op in ("Mul", "Div"):
            factor = number_of(space, kids[1], depth - 1)
            if factor:
                found = spread_of(space, kids[0], depth - 1)
                found = found and found.scaled(factor if op == "Mul" else 1.0 / factor)
        if found is not None:
            return found
    return None
