"""ONNX nodes as converters see them, and where converters register.

A converter takes a `Site` and returns a `Core`, or raises `NotCore` with the reason: the node then stays opaque.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ..egraph.dimension import Dimension
from ..egraph.graph import TensorType


class NotCore(Exception):
    """The node does not fit the core form; the message says why."""


class Core(NamedTuple):
    """A core operator: its name, which of the node's operands it takes, and its attributes.

    results: which of the node's outputs its parts are, if it has several and they are not simply all of them.
    """

    op: str
    operands: tuple[int, ...]
    attrs: dict[str, Any]
    results: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Site:
    """One ONNX node as converters see it.

    attrs: the node's own attributes. types: the operands' types, None for an operand that is not given.
    constant: value of an operand that is a weight, else None. outputs: how many outputs are given and read.
    listed: how many outputs are given at all. result: the type that ONNX inferred for the first output, if any.
    extents: what an operand holds, flat, where it is a small tensor of extents, constant or symbolic.
    given: symbols that a dimension of some input of the model tells. reads: which outputs are read.
    """

    op: str
    opset: int
    attrs: dict[str, Any]
    types: Sequence[TensorType | None]
    constant: Callable[[int], np.ndarray | None]
    outputs: int
    listed: int
    result: TensorType | None
    extents: Callable[[int], list[Dimension] | None] = lambda k: None
    given: frozenset[str] = frozenset()
    reads: frozenset[int] = frozenset()

    def has(self, k: int) -> bool:
        return k < len(self.types) and self.types[k] is not None

    def shape(self, k: int = 0) -> tuple[Dimension, ...]:
        kind = self.types[k] if self.has(k) else None
        if kind is None or kind.shape is None:
            raise NotCore(f"the rank of operand {k} is not known")
        return kind.shape

    def known_shape(self, k: int = 0) -> tuple[int, ...]:
        shape = self.shape(k)
        known = tuple(d for d in shape if isinstance(d, int))
        if len(known) < len(shape):
            raise NotCore(f"operand {k} has extents that are not known")
        return known

    def values(self, k: int) -> tuple[int, ...] | None:
        """Operand k as integers; None if it is not given."""
        if not self.has(k):
            return None
        value = self.constant(k)
        if value is None:
            raise NotCore(f"operand {k} is computed, not constant")
        if value.dtype.kind not in "iu":
            raise NotCore(f"operand {k} holds no integers")
        return tuple(int(v) for v in value.reshape(-1))

    def axis(self, axis: int, rank: int) -> int:
        if not -rank <= axis < rank:
            raise NotCore(f"axis {axis} of a tensor of rank {rank}")
        return axis % rank

    def axes(self, since: int) -> tuple[int, ...] | None:
        """`axes`: an attribute below opset `since`, the second operand from then on."""
        if self.opset < since:
            found = self.attrs.get("axes")
            return None if found is None else tuple(found)
        return self.values(1)


Converter = Callable[[Site], Core]
CONVERTERS: dict[str, Converter] = {}


def converts(*ops: str, attrs: str = "", outputs: int = 1) -> Callable[[Converter], Converter]:
    """Register a converter, for nodes with no attributes but `attrs` and at most `outputs` outputs that are read."""
    known = frozenset(attrs.split())

    def register(convert: Converter) -> Converter:
        def checked(site: Site) -> Core:
            unknown = sorted(site.attrs.keys() - known)
            if unknown:
                raise NotCore(f"attribute {unknown[0]}")
            if site.outputs > outputs:
                raise NotCore("a second output is used")
            return convert(site)

        CONVERTERS.update(dict.fromkeys(ops, checked))
        return checked

    return register


def number(s: Site, k: int, default: float) -> float:
    """Operand k, one constant number that a float64 holds."""
    if not s.has(k):
        return default
    value = s.constant(k)
    if value is None or value.size != 1:
        raise NotCore(f"operand {k} is no constant number")
    number = float(value.reshape(-1)[0])
    if np.isnan(number) or (value.dtype.kind in "iu" and abs(number) >= 2.0**53):
        raise NotCore(f"operand {k} is {number}")
    return number


def convert(site: Site) -> Core:
    """The node's core form. Raises `NotCore`, or `KeyError` for an attribute that ONNX demands and that is missing."""
    converter = CONVERTERS.get(site.op)
    if converter is None:
        raise NotCore("not a core operator")
    return converter(site)
