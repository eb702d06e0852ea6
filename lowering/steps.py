"""Constants that a step turns into whole numbers or truth values: folded only where rounding cannot change them.

Folding computes in float64. A runtime that computes the same in float32 may come out on the other side of a step: with
log(16 / 8) / log(16) · 8, the cast to an integer gives 2 or 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

STEPS = ("Cast", "Floor", "Ceil", "Sign", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")
"""Operators that are not continuous, Cast where it is to integers or truth values."""

EXACT = (
    "Concat", "Split", "Get", "Slice", "Transpose", "Reshape", "Expand", "Gather", "Neg", "Abs", "Relu", "Max", "Min",
    "Where", "Floor", "Ceil", "Sign",
)  # fmt: skip
"""Operators that round nothing."""
WHOLE = ("Add", "Sub", "Mul", "Cast")
"""Operators that round nothing where they give small whole numbers."""

MARGINS = {"float64": 2.0**-40, "float32": 2.0**-18, "float16": 2.0**-7, "bfloat16": 2.0**-4}
"""How far a few operators in this type may be from the exact result, relative to the largest number."""


def rounds(op: str, dtype: str, value: Any) -> bool:
    """Whether computing `value` from exact operands in the floating-point type `dtype` may round."""
    if op in EXACT:
        return False
    if op not in WHOLE or dtype not in ("float32", "float64") or not isinstance(value, np.ndarray):
        return True
    return not bool(np.all((np.abs(value) < 2.0**24) & (value == np.floor(value))))


def decided(
    op: str, apply: Callable[[Sequence[np.ndarray]], np.ndarray], operands: Sequence[np.ndarray], dtype: str
) -> bool:
    """Whether a step gives the same for all operands as near to these as rounding can have left them."""
    margin = MARGINS[dtype]
    sides = []
    for sign in (1.0, -1.0):
        moved = []
        for k, array in enumerate(operands):
            finite = np.abs(array[np.isfinite(array)])
            reach = margin * (finite.max() if finite.size else 0.0)
            # the two sides of a comparison move apart or together
            moved.append(np.asarray(array.astype(np.float64) + sign * (-1.0) ** k * reach))
        sides.append(apply(moved))
    return bool(np.array_equal(sides[0], sides[1]))
