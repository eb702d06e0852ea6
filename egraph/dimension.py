"""Dimensions: integers, or polynomials over a model's symbols in an interned normal form.

`TensorType.shape` holds them. A polynomial has integer coefficients over *atoms*: symbols (extents that a run binds),
`p // k` and `min(p, c)`. Two dimensions that are the same object, or equal integers, are equal for every binding; of
others nothing is known unless `sign` can tell. Symbols stand for extents, so they are never negative.

Rules see them as an `extent.Extent`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any, ClassVar, Self, TypeAlias
from weakref import WeakValueDictionary


class Undecided(TypeError):
    """A question about a symbolic extent whose answer depends on the binding."""


@dataclass(frozen=True)
class Quotient:
    """The atom `of // by`, rounded down, of a positive integer `by`."""

    of: Polynomial
    by: int

    def __str__(self) -> str:
        return f"(({self.of})//{self.by})"


@dataclass(frozen=True)
class Least:
    """The atom min(of, bound)."""

    of: Polynomial
    bound: int

    def __str__(self) -> str:
        return f"min({self.of},{self.bound})"


Atom: TypeAlias = str | Quotient | Least
Monomial: TypeAlias = tuple[tuple[Atom, int], ...]
"""Atoms with their powers, sorted by text; empty for the constant term."""


class Polynomial:
    """A symbolic dimension; make them with `symbol` and arithmetic. Equal ones are one object."""

    __slots__ = ("__dict__", "__weakref__", "terms")
    _interned: ClassVar[WeakValueDictionary[tuple[tuple[Monomial, int], ...], Polynomial]] = WeakValueDictionary()

    terms: tuple[tuple[Monomial, int], ...]
    """(monomial, coefficient), highest first; no coefficient is 0 and the polynomial is no constant."""

    def __new__(cls, terms: tuple[tuple[Monomial, int], ...]) -> Self:
        known = cls._interned.get(terms)
        if known is None:
            known = super().__new__(cls)
            known.terms = terms
            cls._interned[terms] = known
        return known  # type: ignore[return-value]

    def __reduce__(self) -> tuple[Any, ...]:
        return Polynomial, (self.terms,)  # equality is identity, in the process that unpickles as well

    @cached_property
    def symbols(self) -> tuple[str, ...]:
        """Names of the symbols, sorted."""
        found: set[str] = set()
        for monomial, _ in self.terms:
            for atom, _ in monomial:
                found.update((atom,) if isinstance(atom, str) else atom.of.symbols)
        return tuple(sorted(found))

    @property
    def atom(self) -> Atom | None:
        """The atom if this is one and nothing else."""
        if len(self.terms) == 1:
            monomial, coefficient = self.terms[0]
            if coefficient == 1 and len(monomial) == 1 and monomial[0][1] == 1:
                return monomial[0][0]
        return None

    @property
    def name(self) -> str | None:
        """The symbol's name if this is a symbol and nothing else."""
        atom = self.atom
        return atom if isinstance(atom, str) else None

    @cached_property
    def text(self) -> str:
        parts = []
        for monomial, coefficient in self.terms:
            factors = [str(atom) if power == 1 else f"{atom}^{power}" for atom, power in monomial]
            if abs(coefficient) != 1 or not factors:
                factors.insert(0, str(abs(coefficient)))
            parts.append(("-" if coefficient < 0 else "+") + "*".join(factors))
        return "".join(parts).removeprefix("+")

    def __str__(self) -> str:
        return self.text

    __repr__ = __str__

    def __lt__(self, other: Any) -> bool:
        raise TypeError("dimensions are not ordered: ask `sign` of their difference")

    def __add__(self, other: Dimension) -> Dimension:
        return _sum(self, other, 1)

    def __radd__(self, other: int) -> Dimension:
        return _sum(self, other, 1)

    def __sub__(self, other: Dimension) -> Dimension:
        return _sum(self, other, -1)

    def __rsub__(self, other: int) -> Dimension:
        return _sum(other, self, -1)

    def __neg__(self) -> Dimension:
        return _sum(0, self, -1)

    def __mul__(self, other: Dimension) -> Dimension:
        found: dict[Monomial, int] = {}
        for a, x in self.terms:
            for b, y in _terms(other):
                powers = dict(a)
                for atom, power in b:
                    powers[atom] = powers.get(atom, 0) + power
                key = _monomial(powers)
                found[key] = found.get(key, 0) + x * y
        return _normal(found)

    def __rmul__(self, other: int) -> Dimension:
        return self * other

    def __floordiv__(self, by: int) -> Dimension:
        """Rounded down; what `by` divides comes out of the quotient."""
        if not isinstance(by, int) or by <= 0:
            raise Undecided(f"({self})//{by}")
        whole = _normal({m: c // by for m, c in self.terms})
        rest = _normal({m: c % by for m, c in self.terms})
        if isinstance(rest, int):
            return whole + rest // by
        return whole + _normal({((Quotient(rest, by), 1),): 1})


Dimension: TypeAlias = int | Polynomial


def symbol(name: str) -> Polynomial:
    """The symbol of that name."""
    return Polynomial(((((name, 1),), 1),))


def dimension(value: int | str | Polynomial) -> Dimension:
    """An integer, a polynomial, or the symbol that a string names."""
    return symbol(value) if isinstance(value, str) else value


def least(of: Dimension, bound: int) -> Dimension:
    """min(of, bound)."""
    if isinstance(of, int):
        return min(of, bound)
    known = sign(of - bound)
    if known is not None:
        return bound if known >= 0 else of
    return _normal({((Least(of, bound), 1),): 1})


def caps(d: Dimension) -> tuple[int, ...]:
    """The bound, if `d` is min(p, bound) and nothing else."""
    atom = d.atom if isinstance(d, Polynomial) else None
    return (atom.bound,) if isinstance(atom, Least) else ()


def _monomial(powers: Mapping[Atom, int]) -> Monomial:
    return tuple(sorted(((a, p) for a, p in powers.items() if p), key=lambda f: str(f[0])))


def _order(monomial: Monomial) -> tuple[Any, ...]:
    # Graded, then by the atoms' texts: a monomial order, so that division by leading terms works, and a stable text.
    return (-sum(p for _, p in monomial), [(str(a), -p) for a, p in monomial])


def _terms(d: Dimension) -> tuple[tuple[Monomial, int], ...]:
    return d.terms if isinstance(d, Polynomial) else (((), d),)


def _normal(found: Mapping[Monomial, int]) -> Dimension:
    terms = tuple(sorted(((m, c) for m, c in found.items() if c), key=lambda t: _order(t[0])))
    if not terms:
        return 0
    return terms[0][1] if terms[0][0] == () else Polynomial(terms)


def _sum(a: Dimension, b: Dimension, factor: int) -> Dimension:
    found = dict(_terms(a))
    for monomial, coefficient in _terms(b):
        found[monomial] = found.get(monomial, 0) + factor * coefficient
    return _normal(found)


def sign(d: Dimension) -> int | None:
    """1 if `d` is positive for every binding, 0 if it is zero, -1 if it is negative; None if that is not known."""
    if isinstance(d, int):
        return (d > 0) - (d < 0)
    constant = dict(d.terms).get((), 0)
    rest = [(m, c) for m, c in d.terms if m]
    if not all(_natural(atom) for m, _ in rest for atom, _ in m):
        return None
    if constant > 0 and all(c > 0 for _, c in rest):
        return 1
    return -1 if constant < 0 and all(c < 0 for _, c in rest) else None


def natural(d: Dimension) -> bool:
    """Whether `d` is known to be 0 or more for every binding."""
    if isinstance(d, int):
        return d >= 0
    return all(c > 0 and all(_natural(a) for a, _ in m) for m, c in d.terms)


def _natural(atom: Atom) -> bool:
    if isinstance(atom, str):
        return True
    return natural(atom.of) and (isinstance(atom, Quotient) or atom.bound >= 0)


def divided(a: Dimension, b: Dimension) -> Dimension | None:
    """The dimension c with c * b == a for every binding, or None if there is none."""
    if isinstance(b, int) and b in (0, 1):
        return a if b == 1 else None
    if isinstance(a, int):
        return 0 if a == 0 else a // b if isinstance(b, int) and a % b == 0 else None
    lead, factor = _terms(b)[0]
    quotient: Dimension = 0
    rest: Dimension = a
    for _ in range(1000):
        if isinstance(rest, int) and rest == 0:
            return quotient
        monomial, coefficient = _terms(rest)[0]
        powers = dict(monomial)
        for atom, power in lead:
            powers[atom] = powers.get(atom, 0) - power
        if coefficient % factor or any(p < 0 for p in powers.values()):
            return None
        part = _normal({_monomial(powers): coefficient // factor})
        quotient, rest = quotient + part, rest - part * b
    return None


def evaluate(d: Dimension, binding: Mapping[str, int]) -> int:
    """The extent under a binding of the symbols. Raises `KeyError` for a symbol that has none."""
    if isinstance(d, int):
        return d
    return sum(c * prod(_value(a, binding) ** p for a, p in m) for m, c in d.terms)


def _value(atom: Atom, binding: Mapping[str, int]) -> int:
    if isinstance(atom, str):
        return binding[atom]
    of = evaluate(atom.of, binding)
    return of // atom.by if isinstance(atom, Quotient) else min(of, atom.bound)


def substitute(d: Dimension, values: Mapping[str, Dimension]) -> Dimension:
    """`d` with symbols replaced."""
    if isinstance(d, int) or not any(s in values for s in d.symbols):
        return d
    total: Dimension = 0
    for monomial, coefficient in d.terms:
        term: Dimension = coefficient
        for atom, power in monomial:
            if isinstance(atom, str):
                value = values.get(atom, symbol(atom))
            else:
                inner = substitute(atom.of, values)
                value = inner // atom.by if isinstance(atom, Quotient) else least(inner, atom.bound)
            for _ in range(power):
                term = term * value
        total = total + term
    return total


def symbols_of(dims: Iterable[Dimension]) -> tuple[str, ...]:
    """Names of the symbols in some dimensions, in order of first use."""
    return tuple(dict.fromkeys(s for d in dims if isinstance(d, Polynomial) for s in d.symbols))
