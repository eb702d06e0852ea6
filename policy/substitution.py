"""Substitutions on the frozen search space: the moves of climb, greedy-group and the learned policy.

An `Action` switches a class to another of its e-nodes, at one *site* or at all isomorphic ones (its *orbit*). To stay
complete and acyclic, a switch also

- *closes*: makes live what the e-node newly needs, each by its cheapest e-node given what is live already;
- *co-switches* (group mode only): every live class that can now read a newly live producer does so if that lowers the
  cost. All users of a merged operator thus move at once; moved one by one, the first moves would raise the cost.

`Substitutions` holds what never changes for a space and a cost; `state.State` is a program that they change. Constant
classes are free leaves here: they get fixed e-nodes, only their bytes count.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .orbits import components, orbits
from .tree import CAP, finite_prices, smallest_trees, tree_costs

if TYPE_CHECKING:
    from ..cost.base import Cost
    from ..egraph.space import SearchSpace

SETTING_UP = 2e-5
"""Seconds that `Substitutions` takes for each e-node, roughly."""

EPSILON = 1e-9
"""Cost differences below this share of the original's cost are rounding."""


@dataclass(frozen=True, slots=True)
class Action:
    """Switch the classes of these e-nodes to them. One e-node: this site. Several: all sites of an orbit."""

    nodes: tuple[int, ...]


class Substitutions:
    """The actions on `space` under `cost`.

    group: whether switches co-switch and orbits are actions. Without it an action changes one site and nothing else
    but what it needs (the *atomic* moves of TASO and X-RLflow).
    """

    def __init__(self, space: SearchSpace, cost: Cost, group: bool = True) -> None:
        self.space, self.cost, self.group = space, cost, group
        original = space.original.choice.tolist()
        self.const: list[bool] = space.const.tolist()
        self.klass: list[int] = space.node_class.tolist()
        self.kids = [tuple(dict.fromkeys(k)) for k in space.child_lists]
        self.size = [t.bytes if k else 0.0 for t, k in zip(space.types, self.const, strict=True)]
        self.price = finite_prices(space, cost.prices)
        """Milliseconds of each e-node by itself, by which dead classes are closed."""
        self.fused = cost.ledger([], []) is not None
        self.paid = [0.0] * space.n_nodes if self.fused else self.price
        """What each live e-node adds to the cost; nothing where a ledger keeps it."""
        smallest, self.fixed = smallest_trees(space)
        self.usable = [
            not self.const[c] and c not in k and p < CAP and all(smallest[x] >= 0 for x in k)
            for c, k, p in zip(self.klass, self.kids, self.price, strict=True)
        ]
        self.options: list[list[int]] = [
            [i for i in space.nodes_of(c) if self.usable[i]] for c in range(space.n_classes)
        ]
        self.readers = [[i for i in found if self.usable[i]] for found in space.parents]
        self.component = components(space.n_classes, [self._below(c) for c in range(space.n_classes)])
        self.marginal = self._marginal(original)
        self.root_classes: list[int] = space.roots.tolist()
        keys = np.random.default_rng(0).integers(0, 2**62, size=space.n_nodes, dtype=np.int64)
        self.keys: list[int] = keys.tolist()

        candidates = [i for c in range(space.n_classes) if len(self.options[c]) > 1 for i in self.options[c]]
        alike = orbits(space, candidates) if group else []
        self.actions = [Action((i,)) for i in candidates] + [Action(tuple(nodes)) for nodes in alike]
        self.n_sites = len(candidates)
        """Actions below this number are single sites, the others orbits."""
        number = {i: a for a, i in enumerate(candidates)}
        self.orbit_sites = np.array([number[i] for nodes in alike for i in nodes], dtype=np.int64)
        """The site actions of all orbits, one orbit after the other."""
        self.orbit_start = np.cumsum([0, *(len(nodes) for nodes in alike)])[:-1].astype(np.int64)
        added = sum(self.price[i] for i in original if i >= 0)
        self.original_cost = cost.total(space.original) if self.fused else added
        self.epsilon = EPSILON * self.original_cost
        self.bytes_limit = cost.weight_limit

    def _below(self, c: int) -> list[int]:
        return [k for i in self.options[c] for k in self.kids[i] if not self.const[k]]

    def _marginal(self, original: Sequence[int]) -> list[float]:
        """Cheapest tree cost of making each class live where all classes of the original are."""
        prices = [p if ok else math.inf for p, ok in zip(self.price, self.usable, strict=True)]
        free = [k or original[c] >= 0 for c, k in enumerate(self.const)]
        base, _ = tree_costs(self.space, prices, free)
        return [
            0.0
            if self.const[c]
            else min((prices[i] + sum(base[k] for k in self.kids[i]) for i in self.options[c]), default=math.inf)
            for c in range(self.space.n_classes)
        ]

    def __len__(self) -> int:
        return len(self.actions)
