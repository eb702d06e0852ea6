"""The check of every e-node: each e-node of a class must compute what the class computes, and have its type.

Comparing only a graph's outputs misses wrong equalities that no chosen graph happens to use, and cannot say which
rule is to blame; this check sees each e-node and knows the rules that made it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ..egraph.graph import Graph, TensorType, TupleType, Type
from ..egraph.operators import core
from ..egraph.space import SearchSpace, Selection
from ..egraph.terms import MOVES

if TYPE_CHECKING:
    from ..egraph.rules.language import Rule
    from .arithmetic import Arithmetic

EXTENT = 3
"""Extent of symbolic dimensions in the check."""

CANCELLED = 1e-6
"""A value this much smaller than what was added up to give it is rounding, and is not compared with a finer scale."""

_ADDS = ("Add", "Sub", "ReduceSum", "ReduceMean", *MOVES)
"""Operators whose result may be the small rest of large operands, or is such a rest moved elsewhere."""

_MULTIPLIES = ("MatMul", "Gemm", "Conv")


@dataclass(frozen=True)
class Mismatch:
    """An e-node that does not compute its class: its operator, the rules that equated them, the relative difference."""

    enode: int
    operator: str
    rules: tuple[str, ...]
    difference: float
    type: str = ""
    """What the e-node's value is, where its type says otherwise."""

    def __str__(self) -> str:
        what = f"is {self.type}" if self.type else f"differs by {self.difference:.3g}"
        return f"{self.operator} by {', '.join(self.rules) or 'the input'} {what}"


@dataclass
class CheckReport:
    """How many e-nodes were compared, the worst relative difference among those that agree, and those that do not."""

    checked: int = 0
    skipped: int = 0
    worst: float = 0.0
    mismatches: list[Mismatch] = field(default_factory=list)

    @property
    def suspects(self) -> tuple[str, ...]:
        """The rules behind the mismatches, most frequent first; `culprits` tells which of them are to blame."""
        count = Counter(rule for mismatch in self.mismatches for rule in mismatch.rules)
        return tuple(sorted(count, key=lambda r: -count[r]))


def check_enodes(
    space: SearchSpace,
    seed: int = 0,
    tolerance: float = 1e-8,
    arithmetic: Arithmetic | None = None,
    masked: float = 0.0,
) -> CheckReport:
    """Evaluate every e-node of `space` (small graphs only: every class's value is held) and compare.

    Opaque operators and inputs give random tensors: rules must hold whatever those are. `arithmetic` is float64 unless
    given. `masked` is the share of -inf among the elements of floating-point inputs; NaN is then compared with nothing
    but an e-node that is NaN where its class is not is a mismatch.
    """
    from .arithmetic import REALS

    space = space.at({}, EXTENT)
    return _Check(space, arithmetic or REALS, seed, tolerance, masked).compare(range(space.n_nodes))


def culprits(
    graph: Graph, rules: Sequence[Rule], suspects: Sequence[str], seed: int = 0, tolerance: float = 1e-8, **limits: int
) -> tuple[str, ...]:
    """Those of the suspects that are to blame: an unsound rule unites classes, so e-nodes of sound ones are wrong, too.

    These are the rules that make a wrong e-node of `graph` when they are alone; where none does, those of `rules`
    without which there is none; failing that, all suspects. `limits` are those of `saturate`.
    """
    from ..egraph.saturate import saturate

    def wrong(chosen: Sequence[Rule]) -> bool:
        return bool(check_enodes(saturate(graph, chosen, **limits), seed, tolerance).mismatches)  # type: ignore[arg-type]

    alone = [r.name for r in rules if r.name in suspects and wrong([r])]
    if alone:
        return tuple(alone)
    needed = [name for name in suspects if not wrong([r for r in rules if r.name != name])]
    return tuple(needed or suspects)


def guilty_rules(space: SearchSpace, selection: Selection, seed: int = 0, tolerance: float = 1e-6) -> tuple[str, ...]:
    """The rules that made e-nodes of `selection` which do not compute their class; empty if none is found.

    The likeliest one comes first: of several, the one of whose e-nodes, in the whole space, most are wrong.
    """
    space = space.at({}, EXTENT)
    from .arithmetic import REALS

    chosen = [*(int(i) for i in selection.choice if i >= 0), *space.baseline.tolist()]
    check = _Check(space, REALS, seed, tolerance, 0.0)
    blamed = check.compare(chosen).suspects
    if len(blamed) < 2:
        return blamed
    return tuple(r for r in check.compare(range(space.n_nodes)).suspects if r in blamed)


def _complete(space: SearchSpace) -> list[int]:
    """An e-node for each class, acyclic: the original's where it has one, else the first whose operands are known."""
    choice = space.original.choice.tolist()
    waiting = [c for c in range(space.n_classes) if choice[c] < 0]
    known = {c for c in range(space.n_classes) if choice[c] >= 0}
    while waiting:
        left = []
        for c in waiting:
            for i in space.nodes_of(c):
                if all(k in known for k in space.child_lists[i]):
                    choice[c] = i
                    known.add(c)
                    break
            else:
                left.append(c)
        if len(left) == len(waiting):
            raise AssertionError("some classes can only be computed from themselves")
        waiting = left
    return choice


def _order(space: SearchSpace, choice: list[int]) -> list[int]:
    """All classes, operands first."""
    order: list[int] = []
    done = bytearray(space.n_classes)
    for root in range(space.n_classes):
        stack = [root]
        while stack:
            c = stack[-1]
            waiting = [k for k in space.child_lists[choice[c]] if not done[k]]
            if done[c] or not waiting:
                stack.pop()
                if not done[c]:
                    done[c] = 1
                    order.append(c)
            else:
                stack.extend(waiting)
    return order


class _Check:
    """Values of all classes of a space, and the comparison of e-nodes with them."""

    def __init__(self, space: SearchSpace, arithmetic: Arithmetic, seed: int, tolerance: float, masked: float) -> None:
        self.space, self.arithmetic, self.seed = space, arithmetic, seed
        self.tolerance, self.masked = tolerance, masked
        self.choice = _complete(space)
        self.values: list[Any] = [None] * space.n_classes
        self.sizes = [0.0] * space.n_classes
        """For each class the largest magnitude among what its value was added up from."""
        for c in _order(space, self.choice):
            self.values[c] = self.value(self.choice[c])
            self.sizes[c] = self.size(c)

    def compare(self, enodes: Iterable[int]) -> CheckReport:
        report, space = CheckReport(), self.space
        for i in enodes:
            c = int(space.node_class[i])
            own = self.values[c] if i == self.choice[c] else self.value(i)
            if own is None or self.values[c] is None:
                report.skipped += 1
                continue
            # which side of an equation is wrong cannot be told, so the rules of both are named
            rules = tuple(dict.fromkeys((*space.rules[i], *space.rules[self.choice[c]])))
            wrong = _mistyped(own, space.types[c])
            if wrong:
                report.mismatches.append(Mismatch(i, space.ops[i], rules, float("inf"), wrong))
            if i == self.choice[c]:
                continue
            difference = self.difference(self.values[c], own, max(1e-12, CANCELLED * self.sizes[c]))
            report.checked += 1
            if difference <= self.tolerance:
                report.worst = max(report.worst, difference)
            elif not wrong:
                report.mismatches.append(Mismatch(i, space.ops[i], rules, difference))
        return report

    def size(self, c: int) -> float:
        """The magnitude of a class's value, or of the operands of sums and products if it is less."""
        i, own = self.choice[c], _magnitude(self.values[c])
        operands = [self.sizes[k] for k in self.space.child_lists[i]]
        if self.space.ops[i] in _ADDS:
            return max(own, *operands)
        if self.space.ops[i] in _MULTIPLIES:
            return max(own, operands[0] * operands[1])
        return own

    def difference(self, a: Any, b: Any, floor: float) -> float:
        if self.masked and not isinstance(a, tuple) and a.is_floating_point() and a.shape == b.shape:
            a, b = a[~a.isnan()], b[~a.isnan()]
        return self.arithmetic.difference(a, b, floor)

    def value(self, i: int) -> Any:
        """Value of e-node i from its operands' classes; None if unknown."""
        from .evaluation import NotEvaluable

        space, op, kind = self.space, self.space.ops[i], self.space.node_type(i)
        rng = np.random.default_rng([self.seed, int(space.node_class[i])])
        try:
            if op == "Weight":
                assert isinstance(kind, TensorType)
                array = space.graph.weights[str(space.attrs(i)["digest"])].load()
                return self.arithmetic.leaf(kind, np.asarray(array), True, rng)
            if not core(op):
                return self.random(kind, rng, op == "Input")
            operands = [self.values[c] for c in space.child_lists[i]]
            if any(o is None for o in operands):
                return None
            if op == "Get":
                return operands[0][space.attrs(i)["index"]]
            return self.arithmetic.node(op, space.attrs(i), operands)
        except NotEvaluable:
            return None

    def random(self, kind: Type, rng: np.random.Generator, is_input: bool = False) -> Any:
        if isinstance(kind, TupleType):
            return tuple(self.random(t, rng) for t in kind.items)
        if kind.shape is None:
            return None
        shape = [d if isinstance(d, int) else 2 for d in kind.shape]
        if "float" in kind.dtype:
            array = rng.normal(size=shape)
            if is_input and self.masked:
                array[rng.random(shape) < self.masked] = -np.inf
            return self.arithmetic.leaf(kind, array, False, rng)
        if kind.dtype == "bool":
            return self.arithmetic.leaf(kind, rng.integers(0, 2, shape).astype(bool), False, rng)
        # an integer that picks elements must be one of theirs; all others may be what they like
        low, high = (0, 2) if "Gather" in self.space.ops or "u" in kind.dtype else (-4, 5)
        return self.arithmetic.leaf(kind, rng.integers(low, high, shape), False, rng)


def _magnitude(value: Any) -> float:
    """The largest finite magnitude among the elements of a tensor or a tuple of them; 0 for other numbers."""
    if isinstance(value, tuple):
        return max(map(_magnitude, value), default=0.0)
    if not hasattr(value, "is_floating_point") or not value.is_floating_point():
        return 0.0
    finite = value[value.isfinite()]
    return float(finite.abs().max()) if finite.numel() else 0.0


def _mistyped(value: Any, kind: Type) -> str:
    """What a value is, if that is not what its type says; all floating-point types count as one."""
    if isinstance(kind, TupleType):
        if not isinstance(value, tuple) or len(value) != len(kind.items):
            return "no such tuple"
        return next(filter(None, map(_mistyped, value, kind.items)), "")
    number = getattr(value, "values", value) if not hasattr(value, "dtype") else value
    if kind.shape is None or not hasattr(number, "shape"):
        return ""
    dtype = str(number.dtype).removeprefix("torch.") if number is value else "float"
    fits = all(not isinstance(d, int) or d == n for d, n in zip(kind.shape, number.shape, strict=False))
    same = dtype == kind.dtype or ("float" in dtype and "float" in kind.dtype)
    if same and fits and len(kind.shape) == number.ndim:
        return ""
    return f"{dtype}{list(number.shape)}, not {kind}"
