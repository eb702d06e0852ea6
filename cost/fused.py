"""The `fusion` cost by measurement: each kernel that fusion would form is compiled, tuned shortly and timed, once.

What was not timed yet gets its fused roofline price, scaled by what kernels of the same kind took. Only kernels that a
search asks for are timed: those of the input first, then those of programs that it found promising (`pricing.refine`).
"""

from __future__ import annotations

import contextlib
import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from ..egraph.saturate import saturate
from ..egraph.space import SearchSpace, Selection
from ..lowering.cluster import Cluster, cluster_model, cluster_of
from ..lowering.single import NotSingle
from .base import Cost
from .batches import Job
from .bench import Bench, Coverage
from .database import Database
from .devices import DEVICES
from .fusion import Fusion, FusionCost
from .ledger import Fuser, Members
from .patterns import Kind
from .target import Target
from .units import Pricer, Units
from .worker import Worker

RUNS_NOT = 1e3
"""A kernel that cannot run is priced at so many times its roofline price."""

KNOWN_ENOUGH = 2
"""So many kernels of a kind must have been timed for its own factor to count; else it is that of all kernels."""


CACHES = 64 << 20
"""Bytes beyond which more weights make no cache colder."""

COPIES, FEW = 32, 1 << 14
"""A kernel is timed in so many copies at most; one that reads fewer bytes of constants than this, alone."""


def pressure(weights: float) -> int:
    """MiB of weights that a model reads between two runs of a kernel, in steps of √2 from 1 to those of `CACHES`.

    A kernel that is timed by itself, again and again, finds its weights in the cache, where a run of the whole model
    has put others meanwhile. So it is timed in copies that hold as many bytes.
    """
    steps = round(2 * math.log2(max(1.0, min(weights, CACHES) / (1 << 20))))
    return round(2 ** (steps / 2))


def copies_of(constants: float, mebibytes: int) -> int:
    """How many copies of a kernel that reads so many bytes of constants together read so much memory."""
    return 1 if constants < FEW else int(min(COPIES, max(1, round((mebibytes << 20) / constants))))


@dataclass
class Timings:
    """What is known of kernels on a target. roofline: ms by the fused roofline. kind: which factor they share."""

    known: dict[str, float] = field(default_factory=dict)
    roofline: dict[str, float] = field(default_factory=dict)
    kind: dict[str, str] = field(default_factory=dict)
    remembered: set[str] = field(default_factory=set)
    asked: set[str] = field(default_factory=set)
    """Keys that the database was asked for."""

    def ratios(self, without: str = "") -> dict[str, list[float]]:
        found: dict[str, list[float]] = {"": []}
        for key, ms in self.known.items():
            if key != without and 0 < ms < math.inf and self.roofline.get(key, 0.0) > 0:
                for kind in ("", self.kind[key]):
                    found.setdefault(kind, []).append(ms / self.roofline[key])
        return found

    def factors(self, without: str = "") -> dict[str, float]:
        """Measured over roofline, the median by kind and ("") over all."""
        ratios = self.ratios(without)
        return {k: statistics.median(r) for k, r in ratios.items() if len(r) >= (1 if k == "" else KNOWN_ENOUGH)}

    @property
    def error(self) -> float | None:
        """Median relative error of an estimate, each kernel left out in turn."""
        found = []
        for key, ms in self.known.items():
            if 0 < ms < math.inf and key in self.roofline:
                factors = self.factors(key)
                if factors:
                    guess = self.roofline[key] * factors.get(self.kind[key], factors[""])
                    found.append(abs(guess - ms) / ms)
        return statistics.median(found) if len(found) > KNOWN_ENOUGH else None


class TimedPricer(Pricer):
    """Prices kernels by what they took, else by the scaled roofline. space: where the units are from."""

    def __init__(self, pricer: Pricer, space: SearchSpace, timings: Timings) -> None:
        super().__init__(pricer.units, pricer.found, pricer.device, pricer.scale)
        self.space, self.timings = space, timings
        self.factors = timings.factors()
        self._clusters: dict[tuple[tuple[int, int], ...], Cluster | None] = {}

    def cluster(self, members: Members) -> Cluster | None:
        """The kernel as a model of its own; None where it only prepares an operand, or cannot be one."""
        key = tuple(members)
        if key not in self._clusters:
            own, units = set(members), list(dict.fromkeys(i for i, _ in members))
            self._clusters[key] = None
            if all((i, len(self.found[i]) - 1) in own for i in units):
                with contextlib.suppress(NotSingle):
                    self._clusters[key] = cluster_of(self.space, units)
        return self._clusters[key]

    def kind(self, members: Members) -> str:
        """Kernels with the same dearest operator share a factor; those without a product or reduction are one kind."""
        i, j = max(members, key=lambda m: self.found[m[0]][m[1]].kind)
        return self.units.ops[i] if self.found[i][j].kind >= Kind.REDUCTION else "pointwise"

    def rough(self, members: Members) -> float:
        """Milliseconds by the roofline alone."""
        return super().price(members) / self.scale

    def price(self, members: Members) -> float:
        rough = super().price(members)
        if rough <= 0:
            return rough
        cluster = self.cluster(members)
        ms = None if cluster is None else self.timings.known.get(cluster.key)
        if ms is None:
            return rough * self.factors.get(self.kind(members), self.factors.get("", 1.0))
        return self.scale * ms if ms < math.inf else rough * RUNS_NOT


class FusedKernels(Fusion):
    """The fusion cost of a target whose kernels are timed, as a `CostModel`.

    trials: tuning candidates per kernel. seconds: limit for timing the input's own kernels. `coverage` tells where
    prices come from.
    """

    def __init__(
        self,
        target: Target,
        database: Database,
        trials: int = 8,
        seconds: float = 60.0,
        progress: Callable[[int, int], None] | None = None,
        worker: Worker | None = None,
    ) -> None:
        super().__init__(DEVICES[target.estimator])
        self.name = f"fusion:{target}"
        self.seconds, self.progress = seconds, progress
        self._parts = target, database, trials, worker
        self.bench = Bench(*self._parts)
        self.timings = Timings()
        self.spent = 0.0
        self.pressure = 1
        self._pricers: list[TimedPricer] = []
        self._plain: dict[int, FusionCost] = {}

    def pricer(self, units: Units, fuser: Fuser, scale: float) -> Pricer:
        plain = super().pricer(units, fuser, scale)
        if units.space is None:
            return plain
        self._pricers.append(TimedPricer(plain, units.space, self.timings))
        return self._pricers[-1]

    def bound(self, cost: Cost, points: Sequence[Mapping[str, int]] = ({},)) -> FusionCost:
        """The cost of whole programs; the kernels of the input graph are timed first."""
        found = super().bound(cost, points)
        self.pressure = pressure(cost.space.weight_bytes(cost.space.original))
        settled, self.bench = self.bench.settled, Bench(*self._parts, conditions=f"{self.pressure} MiB")
        self.bench.settled |= settled
        plain = self.plain(found)
        self.measure([(plain, plain.space.original), (found, found.space.original)], self.seconds)
        return found

    def plain(self, cost: FusionCost) -> FusionCost:
        """The cost of the input graph's own space, in which nothing was rewritten."""
        key = id(cost.space.graph)
        if key not in self._plain:
            space = saturate(cost.space.graph, [], max_iterations=1)
            self._plain[key] = super().bound(Cost(space, np.zeros(space.n_nodes), self.name), cost.points)
        return self._plain[key]

    def before(self, cost: FusionCost) -> float:
        plain = self.plain(cost)
        return plain.total(plain.space.original)

    def measure(self, programs: Sequence[tuple[FusionCost, Selection]], seconds: float) -> bool:
        """Time what these programs' kernels lack, the longest first; whether prices changed by it.

        Costs of this model are up to date afterwards; searches that are under way are not.
        """
        start, before = time.monotonic(), len(self.timings.known)
        jobs: dict[str, tuple[float, Job]] = {}
        for cost, selection in programs:
            self._ask(cost, selection, jobs)
        order = [job for _, job in sorted(jobs.values(), key=lambda item: (-item[0], item[1].key))]
        with self.bench as bench:
            bench.measure(order, self.timings.known, start + seconds, self.progress)
        self.spent += time.monotonic() - start
        self._refresh(cost for cost, _ in programs)
        return len(self.timings.known) > before

    def settle(self, programs: Sequence[tuple[FusionCost, Selection]], seconds: float) -> bool:
        """Time the kernels of these programs once more, all together; whether there were any to be timed so.

        Kernels that were timed minutes apart are known to a few per cent at best, on machines that others share. What
        is to be told of programs that differ by less is told by kernels that took turns. Once is enough: what was
        settled is not timed again.
        """
        start = time.monotonic()
        jobs = {j.key: j for cost, selection in programs for j in self.jobs(cost, selection)}
        known = self.timings.known
        order = sorted(
            (j for k, j in jobs.items() if k in known and k not in self.bench.settled),
            key=lambda j: (-known[j.key], j.key),
        )
        with self.bench as bench:
            bench.measure(order, known, start + seconds, self.progress, settle=True)
        self.spent += time.monotonic() - start
        self._refresh(cost for cost, _ in programs)
        return len(order) > 0

    def _refresh(self, costs: Iterable[FusionCost]) -> None:
        factors = self.timings.factors()
        for pricer in self._pricers:
            pricer.factors = factors
        for cost in costs:
            cost.fuser.forget()

    def know(self, found: Mapping[str, float], costs: Sequence[FusionCost]) -> None:
        """Take milliseconds of kernels from elsewhere, not to be kept; the costs are up to date afterwards."""
        self.timings.known.update(found)
        self._refresh(costs)

    def jobs(self, cost: FusionCost, selection: Selection) -> list[Job]:
        """The kernels of a program as they are timed; those that are known, too."""
        found = {c.key: self._job(c, pricer) for pricer, c, _, _ in self._clusters(cost, selection)}
        return list(found.values())

    def _clusters(
        self, cost: FusionCost, selection: Selection
    ) -> Iterator[tuple[TimedPricer, Cluster, Members, float]]:
        """The kernels of a program that can be timed and take time, at each point: their roofline price last."""
        for members in cost.books(selection)[0].kernels():
            for pricer in cost.pricers:
                assert isinstance(pricer, TimedPricer)
                cluster, rough = pricer.cluster(members), pricer.rough(members)
                if cluster is not None and rough > 0:
                    yield pricer, cluster, members, rough

    def _job(self, cluster: Cluster, pricer: TimedPricer) -> Job:
        copies = copies_of(cluster.constant_bytes, self.pressure)
        return Job(cluster.key, cluster.label, partial(cluster_model, cluster, pricer.space, copies=copies), copies)

    def _ask(self, cost: FusionCost, selection: Selection, jobs: dict[str, tuple[float, Job]]) -> None:
        """Note the kernels of a program that are not known, with their share of the time as far as it can be told."""
        timings, clusters = self.timings, list(self._clusters(cost, selection))
        found = self.bench.remembered([c.key for _, c, _, _ in clusters if c.key not in timings.asked])
        timings.known.update(found)
        timings.remembered.update(found)
        for pricer, cluster, members, rough in clusters:
            key = cluster.key
            timings.asked.add(key)
            timings.roofline[key], timings.kind[key] = rough, pricer.kind(members)
            if key not in timings.known:
                job = self._job(cluster, pricer)
                jobs[key] = (jobs.get(key, (0.0, job))[0] + pricer.price(members), job)

    @property
    def note(self) -> str:
        """Why measuring ended before its time, if it did."""
        return self.bench.note

    @property
    def coverage(self) -> Coverage:
        """Where prices come from by now."""
        t = self.timings
        failed = sum(ms == math.inf for ms in t.known.values())
        fresh = len(set(t.known) - t.remembered)
        return Coverage(
            len(t.asked), fresh, len(t.remembered), len(t.asked) - len(t.known), failed, 0, t.error, self.spent
        )
