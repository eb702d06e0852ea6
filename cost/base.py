"""What a cost is: a price in milliseconds for each e-node of a search space, and totals of selections.

A cost *model* prices any space (`CostModel`); bound to one space it is a `Cost`, which extractors ask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, runtime_checkable

import numpy as np

from ..egraph.graph import LEAVES
from ..egraph.space import SearchSpace, Selection

FREE = (*LEAVES, "Get")
"""Operators that do no work under any cost model."""

WEIGHT_SLACK = 1e4
"""Bytes by which the weights may grow beyond the limit's share, so that a folded scalar is never forbidden."""


@runtime_checkable
class CostModel(Protocol):
    """Prices the e-nodes of any search space."""

    name: str

    def prices(self, space: SearchSpace) -> np.ndarray:
        """float64[n_nodes]: milliseconds of each e-node; 0 for leaves, `Get` and constant classes; inf = cannot run."""
        ...


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


def payable(space: SearchSpace) -> np.ndarray:
    """bool[n_nodes]: e-nodes that cost something: no leaves, no projections, not in a constant class."""
    free = np.fromiter((op in FREE for op in space.ops), dtype=bool, count=space.n_nodes)
    paid: np.ndarray = ~free & ~space.const[space.node_class]
    return paid


def bind(model: CostModel, space: SearchSpace, max_weight_growth: float = 1.05) -> Cost:
    """The model's prices of this space as a `Cost`. Whatever the model says, leaves, `Get` and constants are free.

    Raises ValueError when the model returns a wrong number of prices, a negative one or NaN.
    """
    prices = np.asarray(model.prices(space), dtype=np.float64)
    if prices.shape != (space.n_nodes,):
        raise ValueError(f"{model.name} gave prices of shape {prices.shape} for {space.n_nodes} e-nodes")
    prices = np.where(payable(space), prices, 0.0)
    if np.isnan(prices).any() or (prices < 0).any():
        raise ValueError(f"{model.name} gave negative prices or NaN")
    prices.setflags(write=False)
    return Cost(space, prices, model.name, max_weight_growth)
