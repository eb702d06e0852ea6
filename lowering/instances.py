"""Rules tried out: the left side of a rule built for an example, and both sides evaluated in some arithmetic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias, cast

import numpy as np

from ..egraph.extent import viewed
from ..egraph.graph import Graph, GraphBuilder, TensorType, Weight, attributes
from ..egraph.operators import IllTyped
from ..egraph.rules.language import Example, Free, Rule
from ..egraph.saturate import environment
from ..egraph.terms import Term, TermGraph
from .arithmetic import REALS, Arithmetic, Rounded
from .evaluation import NotEvaluable, bound
from .finite_field import PrimeField, Residues

Distribution: TypeAlias = Literal["normal", "uniform", "wide", "integers", "masked", "infinite", "full"]
DISTRIBUTIONS: tuple[Distribution, ...] = ("normal", "uniform", "wide", "integers")
"""Finite numbers: about 1, positive, about 1000, small whole ones (so that equal ones and zeros occur)."""

INFINITE: tuple[Distribution, ...] = ("masked", "infinite")
"""Numbers about 1, a quarter of them -inf; and +inf beside them."""


def extents_of(kind: TensorType) -> tuple[int, ...]:
    """The extents of a concrete type."""
    assert kind.concrete
    return cast(tuple[int, ...], kind.shape)


class Instance:
    """The left side of a rule, built for one example, with values for its free terms under a binding of symbols.

    masked: names of the free terms that hold infinities where the distribution has any (all, if None).
    """

    def __init__(
        self,
        rule: Rule,
        example: Example,
        distribution: Distribution = "normal",
        seed: int = 0,
        binding: Mapping[str, int] | None = None,
        masked: Sequence[str] | None = None,
    ) -> None:
        self.rule, self.terms, self.binding = rule, TermGraph(), dict(binding or {})
        self.example, self.distribution, self.masked = example, distribution, masked
        self.rng = np.random.default_rng(seed)
        self.inputs: dict[int, np.ndarray] = {}
        self.given: set[int] = set()
        self.names = {name: self._bind(name, name, value) for name, value in example.items()}
        self.scope = {**environment(self.terms), **self.names}
        exec(rule.left, self.scope)  # the text is the rule author's, never the user's
        self.names |= {p.result: self.scope[p.result] for p in rule.patterns}
        self.size = len(self.terms)
        """Number of terms of the left side; the right side's come after them."""

    def values(self, name: str, free: Free) -> np.ndarray:
        """Random numbers for a free term, in its dtype's range; float64 for floats."""
        shape = extents_of(free.type.at(self.binding))
        rng, dtype = self.rng, free.type.dtype
        if free.values is not None:
            return np.asarray(free.values).reshape(shape)
        if dtype == "bool":
            return rng.integers(0, 2, shape).astype(bool)
        if "int" in dtype:
            limit = self._indexed(name)
            return rng.integers(0, limit, shape) if limit else rng.integers(0 if "u" in dtype else -4, 5, shape)
        if self.distribution == "integers":
            return rng.integers(-4, 5, shape).astype(np.float64)
        if self.distribution == "uniform":
            return rng.uniform(0.5, 2.0, shape)
        if self.distribution == "full":
            # every magnitude of float16, subnormals among them, and its ends; weights are below 256
            top = 8.0 if free.kind == "weight" else 15.99
            every, ends = 2.0 ** rng.uniform(-24, top, shape), rng.choice((2.0**-24, 2.0**-14, 1.0, 2.0**top), shape)
            return np.where(rng.random(shape) < 0.5, every, ends) * rng.choice((-1.0, 1.0), shape)
        values = rng.normal(size=shape) * (1e3 if self.distribution == "wide" else 1.0)
        if self.distribution in ("masked", "infinite") and (self.masked is None or name in self.masked):
            values[rng.random(shape) < 0.25] = -np.inf
            if self.distribution == "infinite":
                values[rng.random(shape) < 0.15] = np.inf
        return values

    def _indexed(self, name: str) -> int:
        """The extent that a term of indices picks from; 0 if it is no such term."""
        for pattern in self.rule.patterns:
            for p in pattern.walk():
                if p.op == "Gather" and p.operands[1] == name:
                    picked = self.example.get(str(p.operands[0]))
                    axis = self.example[dict(p.named)["axis"]] if p.named else dict(p.fixed).get("axis", 0)
                    return extents_of(picked.type.at(self.binding))[axis] if isinstance(picked, Free) else 1
        return 0

    def _bind(self, name: str, whole: str, value: Any) -> Any:
        if isinstance(value, list):
            return [self._bind(f"{name}{i}", whole, v) for i, v in enumerate(value)]
        if not isinstance(value, Free):
            return viewed(value)
        array = self.values(whole, value)
        if value.kind == "weight":
            # float64 arrays declared as the example's dtype: the check is over the reals
            with np.errstate(over="ignore"):
                digest = Weight.of(array.astype(value.type.dtype), name)
            weight = Weight(name, value.type, digest.digest, lambda: array, digest.value)
            key = self.terms.weight(weight)
        else:
            key = self.terms.add("Input", attributes(name=name), (), value.type)
            self.inputs[key] = array
        if value.values is not None:
            self.given.add(key)
        return Term(self.terms, key)

    def roots(self) -> dict[str, Term]:
        """The left side's roots by name."""
        return {r: self.scope[r] for r in self.rule.roots}

    def right(self) -> dict[str, Term]:
        """The right side's roots. Raises `IllTyped` where it has no type."""
        scope = dict(self.scope)
        exec(self.rule.right, scope)  # the text is the rule author's, never the user's
        return {r: scope[r] for r in self.rule.roots}

    def evaluate(self, keys: Sequence[int], arithmetic: Arithmetic = REALS) -> list[Any]:
        """The values of some terms."""
        terms, memo = self.terms, {}
        needed, stack = set(keys), list(keys)
        while stack:
            for k in terms.operands[stack.pop()]:
                if k not in needed:
                    needed.add(k)
                    stack.append(k)
        rng = np.random.default_rng(17)
        for k in sorted(needed):  # operands have smaller keys
            op, attrs, kind = terms.ops[k], terms.attrs(k), terms.types[k]
            if op in ("Input", "Weight"):
                assert isinstance(kind, TensorType)
                array = self.inputs[k] if op == "Input" else terms.weights[attrs["digest"]].load()
                # weights that the right side makes are numbers that the rule speaks of
                memo[k] = arithmetic.leaf(kind, array, k in self.given or k >= self.size, rng)
                continue
            own = terms.operands[k]
            xs = [memo[o] if terms.const[k] or not terms.const[o] else arithmetic.stored(memo[o]) for o in own]
            if op == "Get":
                memo[k] = xs[0][attrs["index"]]
            elif terms.const[k]:
                memo[k] = (
                    REALS.node(op, attrs, xs) if isinstance(arithmetic, Rounded) else arithmetic.node(op, attrs, xs)
                )
            else:
                memo[k] = arithmetic.node(op, bound(attrs, self.binding), xs)
        return [arithmetic.stored(memo[k]) for k in keys]

    def sides(self, arithmetic: Arithmetic = REALS) -> list[tuple[Any, Any]]:
        """The values of each root: left side and right side."""
        left, right = self.roots(), self.right()
        values = self.evaluate([t.key for name in left for t in (left[name], right[name])], arithmetic)
        return list(zip(values[::2], values[1::2], strict=True))

    def largest_difference(self) -> float:
        """Over the roots, relative to the left side's scale; infinite where types differ or one side is ill-typed."""
        try:
            left, right = self.roots(), self.right()
        except (IllTyped, TypeError, IndexError, ValueError):
            return float("inf")
        if any(right[name].type != left[name].type for name in left):
            return float("inf")
        try:
            return max(REALS.difference(a, b) for a, b in self.sides())
        except NotEvaluable:
            self.evaluate([t.key for t in left.values()])  # raises again if it is the left side that has no value
            return float("inf")

    def graph(self) -> Graph:
        """The left side as a graph, for saturation."""
        builder, made = GraphBuilder(), {}
        builder.weights = dict(self.terms.weights)
        for k in range(self.size):
            kind = self.terms.types[k]
            if self.terms.ops[k] == "Input":
                assert isinstance(kind, TensorType)
                made[k] = builder.input(self.terms.attrs(k)["name"], kind)
            else:
                operands = [made[o] for o in self.terms.operands[k]]
                made[k] = builder.add(self.terms.ops[k], operands, attributes(**self.terms.attrs(k)), kind)
        return builder.build({name: made[t.key] for name, t in self.roots().items()})


def field_agrees(
    rule: Rule, example: Example, seed: int = 0, distribution: Distribution = "normal"
) -> tuple[bool, float]:
    """Whether both sides are the same residues, and a bound on the chance of that if they were not equal.

    Raises `finite_field.NotInField` where a side has no value over the field.
    """
    instance, field = Instance(rule, example, distribution, seed), PrimeField(seed)
    chance = 0.0
    for a, b in instance.sides(field):
        if field.difference(a, b):
            return False, 1.0
        if isinstance(a, Residues) and isinstance(b, Residues):
            chance = max(chance, field.bound(a, b))
    return True, chance


ORDERED = 12
"""Instances over the field where numbers are ordered: each comparison has two outcomes, and one may agree by chance."""


def field_proof(rule: Rule, example: Example, seeds: int = 2) -> float | None:
    """The chance that both sides agree over the field in all of `seeds` instances if they are not equal.

    None if they do not agree, or have no value there. Where numbers are ordered there is no bound, and 1 is returned,
    after `ORDERED` instances.
    """
    chance = 1.0
    try:
        for seed in range(ORDERED):
            if seed >= seeds and chance < 1.0:
                break
            agree, bound = field_agrees(rule, example, seed)
            if not agree:
                return None
            chance *= bound
    except NotEvaluable:
        return None
    return chance


def in_field(rule: Rule, seeds: int = 2) -> bool:
    """Whether all of a rule's examples agree over the field: it holds by algebra alone."""
    return all(field_proof(rule, example, seeds) is not None for example in rule.examples)


def unbounded(example: Example) -> list[str]:
    """Names of the free inputs that may hold infinities. Weights hold none but as constants given in full, masks."""
    every = [(n, v) for n, value in example.items() for v in (value if isinstance(value, list) else [value])]
    names = (n for n, v in every if isinstance(v, Free) and v.kind == "input" and "float" in v.type.dtype)
    return list(dict.fromkeys(names))


def keeps_infinities(rule: Rule, example: Example, name: str, distribution: Distribution, seed: int = 0) -> bool:
    """Whether the right side is what the left side is wherever that is a number or infinite, if `name` is so."""
    for a, b in Instance(rule, example, distribution, seed, masked=[name]).sides():
        a, b = a.double(), b.double()
        number = ~a.isnan()
        if a.shape != b.shape or REALS.difference(a[number], b[number]) > 1e-10:
            return False
    return True


def mask_safe(rule: Rule, seeds: int = 2) -> bool:
    """Whether a rule leaves infinities in any one of its inputs what they are."""
    return all(
        keeps_infinities(rule, example, name, distribution, seed)
        for example in rule.examples
        for name in unbounded(example)
        for distribution in INFINITE
        for seed in range(seeds)
    )
