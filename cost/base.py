"""What a cost is: a price in milliseconds for each e-node of a search space, and totals of selections.

A cost *model* prices any space (`CostModel`); bound to one space it is a `Cost`, which extractors ask.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from ..egraph.graph import LEAVES, Attributes, Graph, Type
from ..egraph.operators import core
from ..egraph.space import SearchSpace, Selection
from ..egraph.terms import COMMUTATIVE

if TYPE_CHECKING:
    from .ledger import Ledger

FREE = (*LEAVES, "Get")
"""Operators that do no work under any cost model."""

WEIGHT_SLACK = 1e4
"""Bytes by which the weights may grow beyond the limit's share, so that a folded scalar is never forbidden."""


@runtime_checkable
class CostModel(Protocol):
    """Prices the e-nodes of any search space."""

    @property
    def name(self) -> str: ...

    def prices(self, space: SearchSpace) -> np.ndarray:
        """float64[n_nodes]: milliseconds of each e-node; 0 for leaves, `Get` and constant classes; inf = cannot run."""
        ...


@dataclass(frozen=True)
class AtPoints:
    """A cost model of spaces with symbolic dimensions: the mean over some bindings of them.

    Where there are several points each counts alike: its prices are scaled so that the input graph costs what it costs
    at the first one.
    """

    model: CostModel
    points: Sequence[Mapping[str, int]]

    @property
    def name(self) -> str:
        return self.model.name

    @property
    def coverage(self) -> Any:
        return getattr(self.model, "coverage", None)

    def bound(self, cost: Cost) -> Cost:
        """The cost as the model sees whole programs, if it does not just add prices up."""
        made = getattr(self.model, "bound", None)
        return cost if made is None else made(cost, self.points)

    def prices(self, space: SearchSpace) -> np.ndarray:
        """float64[n_nodes], milliseconds."""
        found = [np.asarray(self.model.prices(space.at(point)), dtype=np.float64) for point in self.points]
        totals = [float(prices[space.baseline].sum()) for prices in found]
        scaled = [p * (totals[0] / t if t > 0 else 1.0) for p, t in zip(found, totals, strict=True)]
        return found[0] if len(found) == 1 else np.asarray(sum(scaled) / len(scaled))


@dataclass(frozen=True, eq=False)
class Cost:
    """An additive cost bound to a search space: a selection costs the sum of its e-nodes' prices, each once.

    space: what is priced.
    prices: float64[n_nodes], milliseconds; inf for an e-node that cannot run.
    name: the model's name, for reports.
    growth_limit: how many times the original's weight bytes a selection may hold.
    """

    space: SearchSpace
    prices: np.ndarray
    name: str
    growth_limit: float = 1.05

    @property
    def before(self) -> float:
        """Milliseconds of the input graph as it stands, superfluous operators included."""
        return float(self.prices[self.space.baseline].sum())

    def kernels(self, selection: Selection) -> list[tuple[frozenset[int], float]]:
        """What a selection runs: the e-nodes of each kernel and its milliseconds. Here each e-node is one."""
        chosen = selection.choice[selection.choice >= 0].tolist()
        return [(frozenset((i,)), float(self.prices[i])) for i in chosen if self.prices[i] > 0]

    def ledger(self, choice: list[int], refs: list[int]) -> Ledger | None:
        """Books that keep the cost of a changing program up to date; None where prices just add up."""
        return None

    @cached_property
    def weight_limit(self) -> float:
        """Bytes of weights that a legal selection holds at most."""
        return self.growth_limit * self.space.weight_bytes(self.space.original) + WEIGHT_SLACK

    def total(self, choice: Selection | Sequence[int] | np.ndarray) -> float:
        """Milliseconds of a selection.

        A `Selection` is summed as it stands. A raw choice (one e-node per class, needed or not) is walked from the
        roots first, so that only needed classes count; `IllegalSelection` if it is cyclic or incomplete.
        """
        if not isinstance(choice, Selection):
            choice = self.space.selection(choice)
        picked = choice.choice
        return float(self.prices[picked[picked >= 0]].sum())

    def legal(self, choice: Selection | Sequence[int] | np.ndarray) -> bool:
        """Whether the weights of the exported graph stay within the limit."""
        return self.space.weight_bytes(choice) <= self.weight_limit


def graph_cost(space: SearchSpace, cost: Cost, selection: Selection, graph: Graph) -> float:
    """What `graph`, written from a selection, costs operator by operator, in milliseconds.

    Each operator takes the price of an e-node of the selection that computes the same from operands of the same types;
    the result is NaN if it finds none that is left. So this equals `cost.total(selection)` exactly where the graph has
    the operators that were chosen, no other and none twice. Constant expressions cost nothing, folded or not.

    space: as it was saturated, its symbolic dimensions not bound (`cost.space` may be bound to a measuring point).
    """
    prices: dict[Any, list[float]] = {}
    paid = payable(space)
    for i in space.selected(selection):
        if paid[i]:
            operands = [(space.types[c], bool(space.const[c])) for c in space.child_lists[i]]
            kind = _kind(space.ops[i], space.attributes[i], operands, space.node_type(i))
            prices.setdefault(kind, []).append(float(cost.prices[i]))
    constant: set[int] = set()
    total = 0.0
    for i in graph.live:
        node = graph.nodes[i]
        folds = core(node.op) and node.inputs and node.type.concrete and constant.issuperset(node.inputs)
        if node.op == "Weight" or folds:
            constant.add(i)
        elif node.op not in FREE:
            operands = [(graph.nodes[k].type, k in constant) for k in node.inputs]
            left = prices.get(_kind(node.op, node.attributes, operands, node.type))
            if not left:
                return np.nan
            total += left.pop()
    return total


def _kind(op: str, attrs: Attributes, operands: Sequence[tuple[Type, bool]], result: Type) -> tuple[Any, ...]:
    """An operator, the types of its operands and which of them are constant, its result's type."""
    return op, attrs, tuple(sorted(operands, key=str) if op in COMMUTATIVE else operands), result


def payable(space: SearchSpace) -> np.ndarray:
    """bool[n_nodes]: e-nodes that cost something: no leaves, no projections, not in a constant class."""
    free = np.fromiter((op in FREE for op in space.ops), dtype=bool, count=space.n_nodes)
    paid: np.ndarray = ~free & ~space.const[space.node_class]
    return paid


def bind(model: CostModel, space: SearchSpace, max_weight_growth: float = 1.05) -> Cost:
    """The model's prices of this space as a `Cost`, of a kind of its own where the model has a method `bound`.

    Whatever the model says, leaves, `Get` and constants are free, and what the graph's source forbids cannot run.

    Raises ValueError when the model returns a wrong number of prices, a negative one or NaN.
    """
    prices = np.asarray(model.prices(space), dtype=np.float64)
    if prices.shape != (space.n_nodes,):
        raise ValueError(f"{model.name} gave prices of shape {prices.shape} for {space.n_nodes} e-nodes")
    forbidden = {op for op in set(space.ops) if space.graph.forbids(op)}
    if forbidden:
        prices = np.where([op in forbidden for op in space.ops], np.inf, prices)
    prices = np.where(payable(space), prices, 0.0)
    if np.isnan(prices).any() or (prices < 0).any():
        raise ValueError(f"{model.name} gave negative prices or NaN")
    prices.setflags(write=False)
    cost = Cost(space, prices, model.name, max_weight_growth)
    made = getattr(model, "bound", None)
    return cost if made is None else made(cost)
