"""What the elements of floating-point tensors are when an expression is tried out.

The reals (`Reals`, in float64), a narrow dtype (`Rounded`), or a prime field (`finite_field.PrimeField`). Integers and
booleans are themselves in all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch

from ..egraph.graph import TensorType
from .evaluation import evaluate_node

Values = Any
"""What an operator gives: a tensor of an arithmetic's own kind, or a tuple of them."""


class Arithmetic(Protocol):
    """A way to evaluate operators."""

    def leaf(self, kind: TensorType, array: np.ndarray, given: bool, rng: np.random.Generator) -> Values:
        """The value of an input or weight of type `kind`; `given` if it must be just these numbers."""

    def node(self, op: str, attrs: Mapping[str, Any], xs: Sequence[Values]) -> Values:
        """The result of a core operator. Raises `NotEvaluable` where it has none."""

    def stored(self, value: Values) -> Values:
        """A constant expression's result as a weight: rounded once, however it was computed."""

    def difference(self, a: Values, b: Values, floor: float = 1e-12) -> float:
        """How far `b` is from `a`, relative to a's scale, which is at least `floor`; infinite where they cannot be
        compared."""


class Reals:
    """float64 for the reals."""

    def leaf(self, kind: TensorType, array: np.ndarray, given: bool, rng: np.random.Generator) -> Values:
        if "float" in kind.dtype:
            return torch.as_tensor(np.asarray(array, dtype=np.float64))
        return torch.as_tensor(np.array(array)).to(getattr(torch, kind.dtype))

    def node(self, op: str, attrs: Mapping[str, Any], xs: Sequence[Values]) -> Values:
        return evaluate_node(op, attrs, xs)

    def stored(self, value: Values) -> Values:
        return value

    def difference(self, a: Values, b: Values, floor: float = 1e-12) -> float:
        """Infinite for different shapes, and where only one is NaN or both are infinite in different ways."""
        if isinstance(a, tuple):
            pairs = isinstance(b, tuple) and len(a) == len(b)
            return max(self.difference(x, y, floor) for x, y in zip(a, b, strict=True)) if pairs else float("inf")
        if a.shape != b.shape:
            return float("inf")
        if a.numel() == 0:
            return 0.0
        a, b = a.double(), b.double()
        whole = a.isfinite()
        if (b.isfinite() != whole).any() or (a[~whole].nan_to_num(0.5) != b[~whole].nan_to_num(0.5)).any():
            return float("inf")
        a, b = a[whole], b[whole]
        return float((a - b).abs().max() / a.abs().max().clamp_min(floor)) if a.numel() else 0.0


class Rounded(Reals):
    """A narrow dtype: every operator is exact inside, as if it accumulated without error, and its result is rounded."""

    def __init__(self, dtype: str = "float16") -> None:
        self.dtype: torch.dtype = getattr(torch, dtype)

    def leaf(self, kind: TensorType, array: np.ndarray, given: bool, rng: np.random.Generator) -> Values:
        return self.stored(super().leaf(kind, array, given, rng))

    def node(self, op: str, attrs: Mapping[str, Any], xs: Sequence[Values]) -> Values:
        return self.stored(super().node(op, attrs, xs))

    def stored(self, value: Values) -> Values:
        if isinstance(value, tuple):
            return tuple(self.stored(v) for v in value)
        return value.to(self.dtype).double() if value.is_floating_point() else value


REALS = Reals()
