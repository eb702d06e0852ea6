"""The `fusion` cost: kernels as TVM's fusion would form them, each priced as a whole.

A sum of operators' prices charges every operator for reading and writing memory. A compiler fuses: a bias and an
activation after a product, or a transpose of a reshape, cost hardly anything. Here TVM's fusion is predicted on the
flat arrays of the search space (`patterns`, `partition`), and a kernel costs one launch and what it reads from outside,
computes and writes. `ledger` updates the cost where a substitution changes the program, so that search can go by it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..egraph.space import SearchSpace, Selection
from .base import Cost, payable
from .devices import Device
from .ledger import Fuser, Ledger, settled
from .roofline import roofline
from .units import Pricer, Units


class Fusion:
    """The fusion cost of a device as a `CostModel`."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.name = f"fusion:{device.name}"

    def prices(self, space: SearchSpace) -> np.ndarray:
        """float64[n_nodes], milliseconds of each e-node by itself, unfused; a pure function of the space and device."""
        units = Units.of_space(space)
        fuser = self.fuser(units, [(units, 1.0)])
        out = np.zeros(space.n_nodes)
        for i in np.flatnonzero(payable(space)).tolist():
            c = int(space.node_class[i])
            out[i] = fuser.cost({c: i}, {c: True})
        return out

    def fuser(self, units: Units, points: Sequence[tuple[Units, float]]) -> Fuser:
        """How `units` fuse; a kernel costs the weighted sum of what it costs at each of the points."""
        pricers: list[Pricer] = []
        fuser = Fuser(units, lambda members: sum(p.price(members) for p in pricers))
        pricers += [self.pricer(at, fuser, scale) for at, scale in points]
        fuser.pricers = tuple(pricers)
        return fuser

    def pricer(self, units: Units, fuser: Fuser, scale: float) -> Pricer:
        """What prices kernels of `units` at one point."""
        return Pricer(units, fuser.found, self.device, scale)

    def before(self, cost: FusionCost) -> float:
        """Milliseconds of the input graph as it stands, superfluous operators included."""
        units = Units.of_graph(cost.space.graph, cost.points[0])
        fuser = self.fuser(units, [(units, 1.0)])
        return settled(fuser, list(range(len(cost.space.graph.nodes))), cost.space.graph.live)[1]

    def bound(self, cost: Cost, points: Sequence[Mapping[str, int]] = ({},)) -> FusionCost:
        """The cost of whole programs of the space that `cost` prices e-node by e-node, the mean over some bindings.

        Each point counts alike: its figures are scaled so that the input costs what it costs at the first one.
        """
        space = cost.space
        at = [Units.of_space(space.at(p)) for p in points]
        scales = [1.0 / len(at)] * len(at)
        if len(at) > 1:
            order, choice = space.topological(space.original.choice), space.original.choice.tolist()
            totals = [settled(self.fuser(at[0], [(u, 1.0)]), choice, order)[1] for u in at]
            scales = [totals[0] / t / len(at) if t > 0 else 1.0 / len(at) for t in totals]
        fuser = self.fuser(at[0], list(zip(at, scales, strict=True)))
        return FusionCost(
            space, cost.prices, cost.name, cost.growth_limit, fuser=fuser, model=self, points=tuple(points)
        )


@dataclass(frozen=True, eq=False)
class FusionCost(Cost):
    """A cost of whole programs: of the kernels that fusion makes of them. `prices` are those of e-nodes by themselves.

    fuser: how the space's e-nodes fuse. points: the bindings of symbols that it is the mean over.
    """

    fuser: Fuser = field(kw_only=True)
    model: Fusion = field(kw_only=True)
    points: tuple[Mapping[str, int], ...] = field(kw_only=True)

    def total(self, choice: Selection | Sequence[int] | np.ndarray) -> float:
        """Milliseconds of a selection; a raw choice is walked from the roots first."""
        if not isinstance(choice, Selection):
            choice = self.space.selection(choice)
        return self.books(choice)[1]

    def books(self, selection: Selection) -> tuple[Ledger, float]:
        """The kernels of a selection, and what they cost together in ms."""
        picked = selection.choice.tolist()
        ledger, cost = settled(self.fuser, picked, [c for c, i in enumerate(picked) if i >= 0])
        used = selection.choice[selection.choice >= 0]
        return ledger, cost if np.isfinite(self.prices[used]).all() else float("inf")

    def kernels(self, selection: Selection) -> list[tuple[frozenset[int], float]]:
        found = self.books(selection)[0].kernels()
        return [(frozenset(i for i, _ in members), self.fuser.price(members)) for members in found]

    def ledger(self, choice: list[int], refs: list[int]) -> Ledger:
        return Ledger(self.fuser, choice, refs)

    @property
    def before(self) -> float:
        return self.model.before(self)

    @property
    def pricers(self) -> tuple[Pricer, ...]:
        """What prices kernels, one for each point."""
        return self.fuser.pricers


def fusion(device: str) -> Fusion:
    """The fusion cost of a device in `DEVICES`. Raises `UserError` naming the known ones."""
    return Fusion(roofline(device).device)
