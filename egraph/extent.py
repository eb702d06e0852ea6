"""Symbolic dimensions as rules see them.

An `Extent` raises `Undecided` for any question that not all bindings answer alike: a guard that holds, holds for all of
them.
"""

from __future__ import annotations

from typing import Any

from .dimension import Dimension, Polynomial, Undecided, dimension, divided, natural, sign


class Extent:
    """A symbolic dimension as guards and right sides see it: arithmetic is exact, comparisons may be `Undecided`."""

    __slots__ = ("of",)

    def __init__(self, of: Polynomial) -> None:
        self.of = of

    def _sign(self, other: Any) -> int:
        found = sign(self.of - _dimension(other))
        if found is None:
            raise Undecided(f"{self.of} against {other}")
        return found

    def __eq__(self, other: object) -> bool:
        return isinstance(other, (int, Extent)) and self._sign(other) == 0

    def __hash__(self) -> int:
        return hash(self.of)

    def __lt__(self, other: Any) -> bool:
        return self._bounded(self.of - _dimension(other), strict=True, below=True)

    def __le__(self, other: Any) -> bool:
        return self._bounded(self.of - _dimension(other), strict=False, below=True)

    def __gt__(self, other: Any) -> bool:
        return self._bounded(self.of - _dimension(other), strict=True, below=False)

    def __ge__(self, other: Any) -> bool:
        return self._bounded(self.of - _dimension(other), strict=False, below=False)

    @staticmethod
    def _bounded(difference: Dimension, strict: bool, below: bool) -> bool:
        d = -difference if below else difference
        known = sign(d)
        if known is not None:
            return known > 0 or (known == 0 and not strict)
        if not strict and natural(d):
            return True
        if strict and natural(-d):
            return False
        raise Undecided(f"the sign of {difference}")

    def __bool__(self) -> bool:
        return self._sign(0) != 0

    def __add__(self, other: Any) -> Any:
        return viewed(self.of + _dimension(other))

    __radd__ = __add__

    def __sub__(self, other: Any) -> Any:
        return viewed(self.of - _dimension(other))

    def __rsub__(self, other: Any) -> Any:
        return viewed(-(self.of - _dimension(other)))

    def __mul__(self, other: Any) -> Any:
        return viewed(self.of * _dimension(other)) if isinstance(other, (int, Extent)) else NotImplemented

    __rmul__ = __mul__

    def __floordiv__(self, other: Any) -> Any:
        by = _dimension(other)
        exact = divided(self.of, by)
        if exact is not None:
            return viewed(exact)
        return viewed(self.of // by) if isinstance(by, int) else NotImplemented

    def __mod__(self, other: Any) -> Any:
        by = _dimension(other)
        if divided(self.of, by) is not None:
            return 0
        raise Undecided(f"{self.of} modulo {by}")

    def __repr__(self) -> str:
        return str(self.of)


def _dimension(value: Any) -> Dimension:
    return value.of if isinstance(value, Extent) else dimension(value)


def viewed(value: Any) -> Any:
    """An attribute's value with the dimensions in it as rules see them."""
    if isinstance(value, tuple):
        return tuple(viewed(v) for v in value)
    return Extent(value) if isinstance(value, Polynomial) else value
