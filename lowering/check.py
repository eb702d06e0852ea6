"""The check of every e-node: in float64, each e-node of a class must compute what the class computes.

Comparing only a graph's outputs misses wrong equalities that no chosen graph happens to use, and cannot say which
rule is to blame; this check sees each e-node and knows the rules that made it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..egraph.graph import TensorType, TupleType, Type
from ..egraph.operators import core
from ..egraph.space import SearchSpace, Selection

EXTENT = 3
"""Extent of symbolic dimensions in the check."""


@dataclass(frozen=True)
class Mismatch:
    """An e-node that does not compute its class: its operator, the rules that equated them, the relative difference."""

    enode: int
    operator: str
    rules: tuple[str, ...]
    difference: float

    def __str__(self) -> str:
        return f"{self.operator} by {', '.join(self.rules) or 'the input'} differs by {self.difference:.3g}"


@dataclass
class CheckReport:
    """How many e-nodes were compared, the worst relative difference among those that agree, and those that do not."""

    checked: int = 0
    skipped: int = 0
    worst: float = 0.0
    mismatches: list[Mismatch] = field(default_factory=list)


def check_enodes(space: SearchSpace, seed: int = 0, tolerance: float = 1e-8) -> CheckReport:
    """Evaluate every e-node of `space` (small graphs only: every class's value is held in float64) and compare.

    Opaque operators and inputs give random tensors: rules must hold whatever those are.
    """
    space = space.at({}, EXTENT)
    choice = _complete(space)
    return _compare(space, choice, range(space.n_nodes), seed, tolerance)


def guilty_rules(space: SearchSpace, selection: Selection, seed: int = 0, tolerance: float = 1e-6) -> tuple[str, ...]:
    """The rules that made e-nodes of `selection` which do not compute their class; empty if none is found."""
    space = space.at({}, EXTENT)
    choice = _complete(space)
    chosen = [*(int(i) for i in selection.choice if i >= 0), *space.baseline.tolist()]
    report = _compare(space, choice, chosen, seed, tolerance)
    return tuple(dict.fromkeys(r for m in report.mismatches for r in m.rules))


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


def _compare(space: SearchSpace, choice: list[int], enodes: Iterable[int], seed: int, tolerance: float) -> CheckReport:
    values: list[Any] = [None] * space.n_classes
    for c in _order(space, choice):
        values[c] = _value(space, choice[c], values, seed)
    report = CheckReport()
    for i in enodes:
        c = int(space.node_class[i])
        if i == choice[c]:
            continue
        own = _value(space, i, values, seed)
        if own is None or values[c] is None:
            report.skipped += 1
            continue
        difference = _difference(values[c], own)
        report.checked += 1
        if difference <= tolerance:
            report.worst = max(report.worst, difference)
        else:
            # which side of the equation is wrong cannot be told, so the rules of both are named
            rules = tuple(dict.fromkeys((*space.rules[i], *space.rules[choice[c]])))
            report.mismatches.append(Mismatch(i, space.ops[i], rules, difference))
    return report


def _value(space: SearchSpace, i: int, values: list[Any], seed: int) -> Any:
    """Value of e-node i from its operands' classes; None if unknown."""
    import torch

    from .evaluation import evaluate_node

    op, kind = space.ops[i], space.node_type(i)
    if op == "Weight":
        array = space.graph.weights[str(space.attrs(i)["digest"])].load()
        floating = isinstance(kind, TensorType) and "float" in kind.dtype
        return torch.as_tensor(np.asarray(array, dtype=np.float64) if floating else np.array(array))
    if not core(op):
        return _random(kind, np.random.default_rng([seed, int(space.node_class[i])]))
    operands = [values[c] for c in space.child_lists[i]]
    if op == "Get":
        return None if operands[0] is None else operands[0][space.attrs(i)["index"]]
    if any(o is None for o in operands):
        return None
    return evaluate_node(op, space.attrs(i), operands)


def _random(kind: Type, rng: np.random.Generator) -> Any:
    import torch

    if isinstance(kind, TupleType):
        return tuple(_random(t, rng) for t in kind.items)
    if kind.shape is None:
        return None
    shape = [d if isinstance(d, int) else 2 for d in kind.shape]
    if "float" in kind.dtype:
        return torch.as_tensor(rng.normal(size=shape))
    if kind.dtype == "bool":
        return torch.as_tensor(rng.integers(0, 2, shape).astype(bool))
    return torch.as_tensor(rng.integers(0, 2, shape))


def _difference(a: Any, b: Any) -> float:
    """Largest difference relative to a's scale; infinite for different shapes or NaN on one side only."""
    if isinstance(a, tuple):
        return max(_difference(x, y) for x, y in zip(a, b, strict=True)) if len(a) == len(b) else float("inf")
    if a.shape != b.shape:
        return float("inf")
    if a.numel() == 0:
        return 0.0
    a, b = a.double(), b.double()
    if (a.isnan() != b.isnan()).any():
        return float("inf")
    scale = float(a.abs().nan_to_num(0, 0, 0).max())
    return float((a - b).abs().nan_to_num(0.0).max()) / max(scale, 1e-12)
