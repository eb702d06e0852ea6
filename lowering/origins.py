"""Which of a graph's inputs a value comes from, and how far it was scaled and shifted on the way."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from onnx import TensorProto, numpy_helper

from ..egraph.graph import SMALL, TensorType

Shift: TypeAlias = tuple[float, float, float]
"""scale (infinite: not known, -inf: a constant less the value), least and most shift of a value against its input."""


@dataclass(frozen=True)
class Value:
    """A value on its way: the inputs that it comes from, its type, its content if it is a small constant."""

    origins: Mapping[str, Shift] = field(default_factory=dict)
    type: TensorType | None = None
    content: np.ndarray | None = None
    added: Mapping[str, Shift] = field(default_factory=dict)
    """Inputs that were added to it last: masks, if a softmax follows."""


NOTHING = Value()


def constant(tensor: TensorProto) -> Value:
    """The value of a constant inside a body."""
    kind = TensorType(tuple(tensor.dims), "constant")
    small = math.prod(tensor.dims) <= SMALL and not tensor.external_data and tensor.data_type != TensorProto.STRING
    return Value({}, kind, numpy_helper.to_array(tensor) if small else None)


def plain(x: Value) -> bool:
    """Whether it is an input as it came, moved at most."""
    return bool(x.origins) and all(s == (1.0, 0.0, 0.0) for s in x.origins.values())


def joined(a: Mapping[str, Shift], b: Mapping[str, Shift]) -> dict[str, Shift]:
    """The inputs of both, each with all that either says."""
    out = dict(a)
    for name, (scale, least, most) in b.items():
        s, lo, hi = out.get(name, (scale, least, most))
        out[name] = (max(s, scale), min(lo, least), max(hi, most))
    return out


def shifted(origins: Mapping[str, Shift], by: np.ndarray) -> dict[str, Shift]:
    """The inputs of a value that these constants are added to."""
    low, high = float(by.min()), float(by.max())
    return {n: (s, lo + low, hi + high) for n, (s, lo, hi) in origins.items()}


def complement(origins: Mapping[str, Shift], of: np.ndarray) -> dict[str, Shift]:
    """constant − value: at most the constant, and not negative as long as the value is not above it."""
    return {n: (-math.inf, 0.0, float(of.max())) for n in origins}
