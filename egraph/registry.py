"""Where operators register their type rules, and what these rules are written with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

from .dimension import Dimension, caps, least
from .graph import Attributes, TensorType, TupleType, Type


class IllTyped(ValueError):
    """The operator cannot be applied to operands of these types."""


_RULES: dict[str, Callable[[dict[str, Any], list[TensorType]], Type]] = {}


def typed(*ops: str) -> Callable[[Callable[[dict[str, Any], list[TensorType]], Type]], None]:
    def register(rule: Callable[[dict[str, Any], list[TensorType]], Type]) -> None:
        for op in ops:
            _RULES[op] = rule

    return register


def core(op: str) -> bool:
    """Whether rules know this operator."""
    return op in _RULES


def core_operators() -> tuple[str, ...]:
    """Names of all core operators."""
    return tuple(_RULES)


def infer(op: str, attrs: Attributes, inputs: Sequence[Type]) -> Type:
    """Type of the operator's result. Raises `IllTyped` with the reason when there is none or it is not known."""
    rule = _RULES.get(op)
    if rule is None:
        raise IllTyped(f"{op} is not a core operator")
    if op == "Get":
        kind = inputs[0]
        index = dict(attrs)["index"]
        if not isinstance(kind, TupleType) or not 0 <= cast(int, index) < len(kind.items):
            raise IllTyped(f"Get {index} of {kind}")
        return kind.items[cast(int, index)]
    for kind in inputs:
        if not isinstance(kind, TensorType) or kind.shape is None:
            raise IllTyped(f"{op} needs operands of known rank, not {kind}")
    return rule(dict(attrs), cast(list[TensorType], list(inputs)))


def shape_of(t: TensorType) -> tuple[Dimension, ...]:
    assert t.shape is not None
    return t.shape


def concrete(t: TensorType, op: str) -> tuple[int, ...]:
    if not t.concrete:
        raise IllTyped(f"{op} needs known extents, not {t}")
    return cast(tuple[int, ...], t.shape)


def same_dtype(op: str, *types: TensorType) -> str:
    if len({t.dtype for t in types}) != 1:
        raise IllTyped(f"{op} of {', '.join(map(str, types))}: one dtype needed")
    return types[0].dtype


def bounds(d: Dimension, other: Dimension) -> bool:
    """Whether `other` is min(d, c), c > 1: with each other they broadcast only where both are the same."""
    return any(other == least(d, c) for c in caps(other) if c > 1)


def broadcast(a: Sequence[Dimension], b: Sequence[Dimension]) -> tuple[Dimension, ...]:
    """Shape of an element-wise operation on operands of these shapes (numpy's rule)."""
    n = max(len(a), len(b))
    out: list[Dimension] = []
    for x, y in zip((1,) * (n - len(a)) + tuple(a), (1,) * (n - len(b)) + tuple(b), strict=True):
        if x not in (y, 1) and y != 1:
            if bounds(x, y) or bounds(y, x):
                x = x if bounds(x, y) else y
            elif 1 in caps(y) and y == least(x, 1):
                pass  # y is 1, or both are 0
            elif 1 in caps(x) and x == least(y, 1):
                x = y
            else:
                raise IllTyped(f"shapes {tuple(a)} and {tuple(b)} do not broadcast")
        out.append(y if x == 1 else x)
    return tuple(out)


def axis_of(axis: int, rank: int, op: str) -> int:
    if not 0 <= axis < rank:
        raise IllTyped(f"{op}: axis {axis} of a tensor of rank {rank}")
    return axis
