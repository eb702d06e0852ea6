"""Terms: every expression ever put into the e-graph, hash-consed, with what rules may ask of it.

A term is known by its *key*, a small integer; operands have smaller keys than the terms that use them. egglog holds
the same terms and decides which of them are equal; `find` maps a key to the smallest key of its e-class, as of the
last exchange with egglog. Facts about a class (type, constness) are kept at that smallest key.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from math import isclose, isfinite, sqrt
from operator import add, mul, neg, sub, truediv
from typing import Any

import numpy as np

from .extent import viewed
from .graph import Attributes, Conflict, Graph, TensorType, TupleType, Type, Weight, attributes, meet
from .operators import IllTyped, core, infer

COMMUTATIVE = ("Add", "Mul", "Max", "Min", "And", "Or", "Equal")
MOVES = ("Concat", "Reshape", "Transpose", "Slice", "Split", "Get", "Expand")
"""Operators that only move elements."""
REAL: dict[str, Callable[..., float]] = {
    "Add": add, "Sub": sub, "Mul": mul, "Div": truediv, "Neg": neg, "Abs": abs, "Sqrt": sqrt,
}  # fmt: skip
"""What scalar constants are computed with, in float64 as when they are folded."""
ROUNDING = {"float64": 2.0**-51, "float32": 2.0**-22, "float16": 2.0**-9, "bfloat16": 2.0**-6}
"""Two units in the last place of each type, relative to the number."""
NEUTRAL = {"Add": 0.0, "Sub": 0.0, "Mul": 1.0, "Div": 1.0}
"""What changes nothing as the second operand."""
READ = 1 << 14
"""Weights of at most this many elements are looked at: zero biases and unit scales have no effect."""
ORIGINAL = -1
"""Maker of the terms of the input graph (others are made by the rule with that number)."""


@dataclass
class TermGraph:
    """Growing table of terms. Lists are indexed by key."""

    ops: list[str] = field(default_factory=list)
    attribute_ids: list[int] = field(default_factory=list)
    operands: list[tuple[int, ...]] = field(default_factory=list)
    types: list[Type] = field(default_factory=list)
    const: list[bool] = field(default_factory=list)
    lowest: list[int] = field(default_factory=list)
    """Smallest key of the weight matrices inside a constant term; -1 if there are none. Orders sibling merges."""
    highest: list[int] = field(default_factory=list)
    uniform: list[float | None] = field(default_factory=list)
    """The number that every element of a constant term is, if it is known to be one."""
    levels: list[int] = field(default_factory=list)
    """Number of products (MatMul, Conv) on the longest path from the leaves to a term, as it was first made."""
    makers: list[int] = field(default_factory=list)
    parent: list[int] = field(default_factory=list)
    users: list[list[int]] = field(default_factory=list)
    """Keys of the terms that read a class, kept at its smallest key."""
    attribute_table: list[Attributes] = field(default_factory=list)
    weights: dict[str, Weight] = field(default_factory=dict)
    conflicts: list[tuple[int, int, str]] = field(default_factory=list)
    """Keys in one class of which contradictory things are known, and what: some rule is wrong."""
    maker: int = ORIGINAL
    """The rule that new terms are credited to."""
    _index: dict[tuple[str, int, tuple[int, ...]], int] = field(default_factory=dict)
    _attribute_index: dict[Attributes, int] = field(default_factory=dict)
    _facts: dict[int, int] = field(default_factory=dict)
    _fact_index: dict[tuple[Type, bool, float | None], int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ops)

    def find(self, key: int) -> int:
        """Smallest known key of the class of `key`."""
        while self.parent[key] != key:
            self.parent[key] = self.parent[self.parent[key]]
            key = self.parent[key]
        return key

    def merge(self, a: int, b: int) -> int:
        """Note that two keys are in one class; the smaller representative stays and takes over the facts."""
        a, b = self.find(a), self.find(b)
        if a == b:
            return a
        a, b = min(a, b), max(a, b)
        self.parent[b] = a
        try:
            self.types[a] = meet(self.types[a], self.types[b])
        except Conflict as conflict:  # rules are checked before they unite; this can only follow by congruence
            self.conflicts.append((a, b, f"types {conflict}"))
        x, y = self.uniform[a], self.uniform[b]
        if x is not None and y is not None and not isclose(x, y, rel_tol=1e-2, abs_tol=1e-6):
            self.conflicts.append((a, b, f"the constants {x:g} and {y:g}"))
        self.const[a] = self.const[a] or self.const[b]
        known = [k for k in (self.lowest[a], self.lowest[b]) if k >= 0]
        self.lowest[a] = min(known, default=-1)
        self.highest[a] = max(self.highest[a], self.highest[b])
        self.uniform[a] = self.uniform[b] if self.uniform[a] is None else self.uniform[a]
        self.users[a].extend(self.users[b])
        self._facts.pop(a, None)
        return a

    def facts(self, key: int) -> int:
        """A number for what is known of a term's values: equal for equal type, constness and uniform value."""
        root = self.find(key)
        found = self._facts.get(root)
        if found is None:
            known = (self.types[root], self.const[root], self.uniform[root])
            found = self._facts[root] = self._fact_index.setdefault(known, len(self._fact_index))
        return found

    def forget(self, length: int) -> None:
        """Take back the terms made since there were `length`; nothing may have been merged or sent since."""
        for key in range(len(self.ops) - 1, length - 1, -1):
            kids = self.operands[key]
            del self._index[self.ops[key], self.attribute_ids[key], kids]
            for k in dict.fromkeys(kids):
                self.users[k].pop()
            self._facts.pop(key, None)
        for column in (self.ops, self.attribute_ids, self.operands, self.types, self.const, self.lowest, self.highest,
                       self.uniform, self.makers, self.parent, self.users):  # fmt: skip
            del column[length:]

    def ordered(self, operands: Sequence[int]) -> tuple[int, ...]:
        """Classes of commutative operands in their one order: constants last, else by age.

        So a sum has one form, whatever order it was written in, and no rule for commutativity is needed.
        """
        return tuple(sorted(map(self.find, operands), key=lambda k: (self.const[k], k)))

    def attribute_id(self, attrs: Attributes) -> int:
        """The number of this set of attributes (a new one if it was never seen)."""
        if attrs not in self._attribute_index:
            self._attribute_index[attrs] = len(self.attribute_table)
            self.attribute_table.append(attrs)
        return self._attribute_index[attrs]

    def add(self, op: str, attrs: Attributes, operands: Sequence[int], kind: Type | None = None) -> int:
        """Key of this term. Raises `IllTyped` if the operator does not apply; not core ones need `kind`, the type."""
        kids = self.ordered(operands) if op in COMMUTATIVE else tuple(self.find(k) for k in operands)
        if op in ("Transpose", "Reshape") and self.maker != ORIGINAL and self.const[kids[0]]:
            simple = self._moved(op, attrs, kids[0])
            if isinstance(simple, int):
                return simple
            op, attrs, kids = simple
        a = self.attribute_id(attrs)
        found = self._index.get((op, a, kids))
        if found is not None:
            return found
        if kind is None:
            kind = infer(op, attrs, [self.types[k] for k in kids])
        if op in NEUTRAL and self.maker != ORIGINAL and all(self.const[k] for k in kids):
            for x, c in (kids, kids[::-1]) if op in COMMUTATIVE else (kids,):
                if self.uniform[c] == NEUTRAL[op] and self.types[x] == kind:
                    return x  # weights times 1 times 1 … would be new constants without end
        key = len(self.ops)
        # a constant spread over a symbolic extent is known only when the model runs
        const = op == "Weight" or (core(op) and bool(kids) and kind.concrete and all(self.const[k] for k in kids))
        if op == "Weight":
            # scales, biases and what rules add (zeros) do not own the order of a merge: they must not block it
            matrix = isinstance(kind, TensorType) and (kind.rank or 0) >= 2 and kind.elements > 1
            lowest = key if matrix and self.maker == ORIGINAL else -1
            highest = lowest
        else:
            # weights stacked along the axis that is summed over (a cell's two products in one) rank as the first does
            stacked = op == "Concat" and getattr(kind, "rank", 0) == 2 and dict(attrs)["axis"] == 0
            ranked = kids[:1] if stacked else kids
            lowest = min((self.lowest[k] for k in ranked if self.lowest[k] >= 0), default=-1) if const else -1
            highest = max((self.highest[k] for k in ranked), default=-1) if const else -1
        self.ops.append(op)
        self.attribute_ids.append(a)
        self.operands.append(kids)
        self.types.append(kind)
        self.const.append(const)
        self.lowest.append(lowest)
        self.highest.append(highest)
        self.uniform.append(self._uniform(op, attrs, kids) if const else None)
        self.levels.append(max((self.levels[k] for k in kids), default=0) + (op in ("MatMul", "Conv")))
        self.makers.append(self.maker)
        self.parent.append(key)
        self.users.append([])
        for k in dict.fromkeys(kids):
            self.users[k].append(key)
        self._index[op, a, kids] = key
        return key

    def _moved(self, op: str, attrs: Attributes, x: int) -> int | tuple[str, Attributes, tuple[int, ...]]:
        """A constant transposed or reshaped, in its one form: at most one step from the constant it began as.

        Rules leave constant expressions alone, so nothing else would find that a weight transposed there and back is
        the weight, and a rule that moves transposes into weights would make new ones without end.
        """
        kind = self.types[x]
        if not isinstance(kind, TensorType) or not kind.concrete or kind.shape is None:
            return op, attrs, (x,)
        inner = self.attrs(x)
        if op == "Transpose":
            perm: Any = dict(attrs)["perm"]
            if self.ops[x] == "Transpose":
                return self._moved(
                    op, attributes(perm=[inner["perm"][i] for i in perm]), self.find(self.operands[x][0])
                )
            moving = [i for i in perm if kind.shape[i] != 1]
            if moving != sorted(moving):
                return op, attrs, (x,)
            attrs = attributes(shape=[kind.shape[i] for i in perm])  # only extents of 1 change place
        if self.ops[x] == "Reshape":
            return self._moved("Reshape", attrs, self.find(self.operands[x][0]))
        return x if dict(attrs)["shape"] == kind.shape else ("Reshape", attrs, (x,))

    def _uniform(self, op: str, attrs: Attributes, kids: Sequence[int]) -> float | None:
        if op == "Weight":
            weight = self.weights[str(dict(attrs)["digest"])]
            value = weight.load() if weight.value is None and weight.type.elements <= READ else weight.value
            if value is None or not value.size or value.dtype.kind not in "bfiuV" or (value != value.flat[0]).any():
                return None
            return float(value.flat[0])
        numbers = [self.uniform[k] for k in kids]
        known = [n for n in numbers if n is not None]
        if not known or len(known) < len(numbers):
            return None
        if op in MOVES:
            return known[0] if len(set(known)) == 1 else None
        if op not in REAL or "int" in getattr(self.types[kids[0]], "dtype", ""):
            return None
        try:
            number = REAL[op](*known)
        except (ArithmeticError, ValueError):
            return None
        return number if isfinite(number) else None

    def weight(self, weight: Weight) -> int:
        """Key of a weight leaf."""
        self.weights.setdefault(weight.digest, weight)
        return self.add("Weight", attributes(digest=weight.digest), (), weight.type)

    def insert(self, graph: Graph) -> list[int]:
        """Add every node of `graph`; returns the key of each.

        An opaque operator whose result is told (attribute `known`, digest of a weight of the graph) is that weight.
        """
        keys: list[int] = []
        self.weights.update(graph.weights)
        for node in graph.nodes:
            known = graph.weights.get(str(node.attrs.get("known", ""))) if node.opaque else None
            if known is not None:
                keys.append(self.weight(known))
            else:
                keys.append(self.add(node.op, node.attributes, [keys[i] for i in node.inputs], node.type))
        return keys

    def attrs(self, key: int) -> dict[str, Any]:
        """Attributes of a term as a new dictionary."""
        return dict(self.attribute_table[self.attribute_ids[key]])


class Term:
    """A term as the text of a rule sees it: `x.shape`, `x.rank`, `x.const`, `s[0]`, …"""

    __slots__ = ("key", "terms")

    def __init__(self, terms: TermGraph, key: int) -> None:
        self.terms = terms
        self.key = key

    @property
    def type(self) -> Type:
        return self.terms.types[self.terms.find(self.key)]

    @property
    def shape(self) -> tuple[int, ...]:
        """Extents; a symbolic one is an `Extent`, which answers only what holds for every binding."""
        kind = self.type
        if not isinstance(kind, TensorType) or kind.shape is None:
            raise IllTyped(f"{kind} has no known shape")
        shape: tuple[int, ...] = viewed(kind.shape)
        return shape

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def last(self) -> int:
        """The last axis."""
        return self.rank - 1

    @property
    def elements(self) -> int:
        """Number of elements, an `Extent` where one of the extents is."""
        count = 1
        for d in self.shape:
            count *= d
        return count

    @property
    def dtype(self) -> str:
        kind = self.type
        return kind.dtype if isinstance(kind, TensorType) else "tuple"

    @property
    def const(self) -> bool:
        """Whether it depends on weights only."""
        return self.terms.const[self.terms.find(self.key)]

    @property
    def op(self) -> str:
        """The operator that first computed this class."""
        return self.terms.ops[self.terms.find(self.key)]

    @property
    def lowest(self) -> int:
        return self.terms.lowest[self.terms.find(self.key)]

    @property
    def highest(self) -> int:
        return self.terms.highest[self.terms.find(self.key)]

    @property
    def value(self) -> np.ndarray | None:
        """The values of a small weight, else None."""
        for key in (self.key, self.terms.find(self.key)):
            if self.terms.ops[key] == "Weight":
                return self.terms.weights[self.terms.attrs(key)["digest"]].value
        return None

    def all_equal(self, number: float) -> bool:
        """Whether this is known to be a constant with every element exactly `number`."""
        return self.terms.uniform[self.terms.find(self.key)] == number

    @property
    def uniform(self) -> float | None:
        """The number that every element of this constant is known to be, else None."""
        return self.terms.uniform[self.terms.find(self.key)]

    def near(self, number: float) -> bool:
        """Whether every element is known to be `number` as its type can tell it: within two units in the last place.

        Exporters compute constants such as √½ in the model's type, in more than one way.
        """
        known = self.uniform
        return known is not None and abs(known - number) <= abs(number) * ROUNDING.get(self.dtype, 0.0)

    def fits(self, other: Term) -> bool:
        """Whether broadcasting with `other` gives `other`'s shape, whatever symbols stand for."""
        own, wanted = self.shape, other.shape
        behind = wanted[len(wanted) - len(own) :] if len(own) <= len(wanted) else None
        if behind is None:
            return False
        return all((isinstance(e, int) and e == 1) or e == d for e, d in zip(own, behind, strict=True))

    def broadcasts_along(self, axis: int, rank: int) -> bool:
        """Whether, as an operand of a result of rank `rank`, its extent along `axis` is 1 (or missing)."""
        own = axis - (rank - self.rank)
        return own < 0 or self.shape[own] == 1

    def next_sibling(self, w: Term, v: Term) -> bool:
        """Whether merging the weights w and v of two operators on this term extends a run of siblings by one.

        Siblings are ordered by their weights; runs grow to the right, one by one, and leave nobody out. A run of three
        or more begins with the first sibling. So n siblings have fewer than 2n merged forms, each made in one way,
        and not 2ⁿ.
        """
        terms = self.terms
        if not 0 <= w.highest < v.lowest or v.joined:
            return False
        found = [(terms.find(key), Term(terms, right)) for key, right in self._products()]
        results = {id(t): {c for c, other in found if other == t} for t in (w, v)}
        for c, other in found:
            if other.shape[2:] != v.shape[2:]:  # of another kernel size, say: no sibling
                continue
            if w.highest < other.lowest and other.highest < v.lowest:
                return False
            if w.joined and 0 <= other.highest < w.lowest:
                return False
            for t in (w, v):  # the same product by another expression for its weight: the oldest one merges
                if c in results[id(t)] and terms.find(other.key) < terms.find(t.key) and other.shape == t.shape:
                    return False
        return True

    def latest(self, y: Term, w: Term) -> bool:
        """Whether y, a product of this term with w, is followed by no product with a later form of w.

        Norms, scales and biases give one form after the other as they fold. Merging every form of one sibling with
        every form of the next multiplies them; of each only the latest is worth it.
        """
        terms, own = self.terms, self.terms.find(y.key)
        for key, right in self._products():
            other = Term(terms, right)
            if terms.find(key) > own and (other.lowest, other.highest, other.shape) == (w.lowest, w.highest, w.shape):
                return False
        return True

    def _products(self) -> Iterator[tuple[int, int]]:
        """Products of this term with constants: (key, key of the constant)."""
        terms = self.terms
        me = terms.find(self.key)
        for key in terms.users[me]:
            kids = terms.operands[key]
            if terms.ops[key] in ("MatMul", "Conv") and terms.find(kids[0]) == me and terms.const[terms.find(kids[1])]:
                yield key, kids[1]

    @property
    def joined(self) -> bool:
        """Whether it is a constant that merges have joined from several weights."""
        terms, key = self.terms, self.terms.find(self.key)
        if terms.ops[key] == "Concat" and terms.lowest[key] != terms.highest[key]:
            return True
        return terms.const[key] and any(Term(terms, k).joined for k in terms.operands[key])

    def __getitem__(self, index: int) -> Term:
        if not isinstance(self.type, TupleType):
            raise IllTyped("only operators with several outputs have parts")
        return Term(self.terms, self.terms.add("Get", attributes(index=index), (self.key,)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Term) and self.terms.find(self.key) == other.terms.find(other.key)

    def __hash__(self) -> int:
        return hash(self.terms.find(self.key))

    def __repr__(self) -> str:
        return f"{self.terms.ops[self.key]}#{self.key}: {self.type}"


def operator(terms: TermGraph, op: str) -> Callable[..., Term]:
    """The core operator `op` as a function from terms to a term, for the text of rules."""

    def make(*operands: Term, **attrs: Any) -> Term:
        return Term(terms, terms.add(op, attributes(**attrs), [t.key for t in operands]))

    return make


def constant(terms: TermGraph, array: np.ndarray, dtype: str) -> Term:
    """A new weight with these values."""
    array = np.asarray(array)
    return Term(terms, terms.weight(Weight.of(array if dtype == "bfloat16" else array.astype(dtype), "", dtype)))
