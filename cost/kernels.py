"""The cost of measured kernels: each distinct operator compiled, tuned shortly and timed on the target, once.

As TASO and TENSAT price graphs: the sum of its operators' own latencies. It knows no fusion and no cache effects
between operators; what it is for is the order of candidates, which a fresh measurement then confirms.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np

from ..egraph.operators import VIEWS
from ..egraph.space import SearchSpace
from ..lowering.single import Kernel, NotSingle, kernel_of, single_model
from .base import payable
from .batches import Job
from .bench import Bench, Coverage
from .database import Database
from .roofline import OPAQUE_VIEWS, roofline
from .target import Target
from .worker import Worker

HOPELESS = 3.0
"""An e-node is not worth measuring if every selection through it costs this many times the original, by roofline."""


class Kernels:
    """Measured kernel latencies as a `CostModel`. `coverage` tells where the last prices came from."""

    def __init__(
        self,
        target: Target,
        database: Database,
        trials: int = 8,
        seconds: float = 60.0,
        progress: Callable[[int, int], None] | None = None,
        worker: Worker | None = None,
    ) -> None:
        self.target, self.database, self.trials, self.seconds = target, database, trials, seconds
        self.progress = progress
        self.name = f"kernels:{target}"
        self.coverage = Coverage()
        self.note = ""
        """Why measuring ended before its time, if it did."""
        self._worker = worker

    def prices(self, space: SearchSpace) -> np.ndarray:
        """float64[n_nodes], milliseconds; inf for an e-node that cannot run, unless the original uses it.

        Takes at most about `seconds`: first the original's kernels, then the most promising others by roofline. What is
        not measured in time gets its roofline price times the median ratio of measured to roofline of its operator.
        """
        start = time.monotonic()
        rough = roofline(self.target.estimator).prices(space)
        kernels, order, useless = self._kernels(space, rough)
        known = Bench(self.target, self.database, self.trials, self._worker).remembered(order)
        remembered = len(known)
        missing = [k for k in order if k not in known]
        if missing:
            self._measure(space, kernels, missing, known, start + self.seconds)
        out = self._fill(space, rough, kernels, known)
        failed = sum(ms == np.inf for ms in known.values())
        self.coverage = Coverage(
            len(order), len(known) - remembered, remembered, len(order) - len(known), failed, useless,
            None, time.monotonic() - start,
        )  # fmt: skip
        return out

    def _kernels(self, space: SearchSpace, rough: np.ndarray) -> tuple[dict[int, Kernel], list[str], int]:
        """The kernel of each e-node worth measuring, the keys in order of promise, and how many e-nodes are not."""
        regret, hopeless = promise(space, rough)
        original = _original(space)
        kernels: dict[int, Kernel] = {}
        rank: dict[str, tuple[bool, float, float, str]] = {}
        useless = 0
        for i in np.flatnonzero(payable(space)).tolist():
            if space.ops[i] in VIEWS or space.ops[i] in OPAQUE_VIEWS:
                continue
            if hopeless[i] and i not in original:
                useless += 1
                continue
            try:
                kernel = kernel_of(space, i)
            except NotSingle:
                continue
            kernels[i] = kernel
            key = kernel.key
            mine = (i not in original, float(regret[i]), -float(rough[i]), key)
            rank[key] = min(rank.get(key, mine), mine)
        return kernels, sorted(rank, key=lambda k: rank[k]), useless

    def _measure(
        self, space: SearchSpace, kernels: dict[int, Kernel], keys: list[str], known: dict[str, float], deadline: float
    ) -> None:
        """Measure kernels in order until the deadline; results go to `known` and the database."""
        by_key = {k.key: k for k in reversed(kernels.values())}
        jobs = [Job(key, by_key[key].op, lambda k=by_key[key]: single_model(k, space)) for key in keys]  # type: ignore[misc]
        with Bench(self.target, self.database, self.trials, self._worker) as bench:
            bench.measure(jobs, known, deadline, self.progress)
            self.note = bench.note

    def _fill(
        self, space: SearchSpace, rough: np.ndarray, kernels: dict[int, Kernel], known: dict[str, float]
    ) -> np.ndarray:
        """Measured prices, and calibrated roofline ones elsewhere."""
        ratios: dict[str, dict[str, float]] = {}
        for i, kernel in kernels.items():
            ms = known.get(kernel.key, np.inf)
            if ms < np.inf and rough[i] > 0:
                ratios.setdefault(kernel.op, {})[kernel.key] = ms / rough[i]
        every = [r for found in ratios.values() for r in found.values()]
        usual = statistics.median(every) if every else 1.0
        factor = {op: statistics.median(found.values()) for op, found in ratios.items()}
        original = _original(space)
        out = rough.copy()
        for i in np.flatnonzero(rough > 0).tolist():
            estimate = rough[i] * factor.get(space.ops[i], usual)
            measured = known.get(kernels[i].key) if i in kernels else None
            # The original must have a finite cost, else nothing could be compared with it.
            unusable = measured is None or (measured == np.inf and i in original)
            out[i] = estimate if unusable else measured
        return out


def _original(space: SearchSpace) -> set[int]:
    """The e-nodes that the input graph uses."""
    return {*space.selected(space.original), *space.baseline.tolist()}


def promise(space: SearchSpace, rough: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each e-node its regret against the best of its class (a ratio, by tree costs), and whether it is hopeless.

    Hopeless: not reachable from the roots, without finite cost, or on a path that alone costs `HOPELESS` times the
    original.
    """
    tree = _values(space, rough, sum)
    path = _values(space, rough, max)
    total = float(rough[space.baseline].sum())
    reachable = np.zeros(space.n_classes, bool)
    todo = space.roots.tolist()
    while todo:
        c = todo.pop()
        if not reachable[c]:
            reachable[c] = True
            todo.extend(k for i in space.nodes_of(c) for k in space.child_lists[i])
    regret, hopeless = np.zeros(space.n_nodes), np.zeros(space.n_nodes, bool)
    for i, kids in enumerate(space.child_lists):
        c = int(space.node_class[i])
        own = rough[i] + sum(tree[k] for k in kids)
        regret[i] = np.inf if own == np.inf else (own - tree[c]) / max(tree[c], 1e-9)
        longest = rough[i] + max((path[k] for k in kids), default=0.0)
        hopeless[i] = not reachable[c] or own == np.inf or longest > HOPELESS * total
    return regret, hopeless


def _values(space: SearchSpace, rough: np.ndarray, combine: Callable[[list[float]], float]) -> list[float]:
    """Least value of each class, where an e-node's value is its price plus `combine` of its operands' values."""
    best = [np.inf] * space.n_classes
    node_class, price = space.node_class.tolist(), rough.tolist()
    todo = [i for i, kids in enumerate(space.child_lists) if not kids]
    while todo:
        upset: dict[int, None] = {}
        for i in todo:
            kids = [best[k] for k in space.child_lists[i]]
            value = price[i] + (combine(kids) if kids else 0.0)
            if value < best[node_class[i]] * (1 - 1e-12) or (best[node_class[i]] == np.inf and value < np.inf):
                best[node_class[i]] = value
                upset.update(dict.fromkeys(space.parents[node_class[i]]))
        todo = list(upset)
    return best


def kernels(
    target: Target,
    database: Database,
    trials: int = 8,
    seconds: float = 60.0,
    progress: Callable[[int, int], None] | None = None,
) -> Kernels:
    """The cost of measured kernels on `target`.

    database: where latencies and schedules are kept. trials: tuning candidates per kernel (TVM targets only; 0 leaves
    kernels untuned). seconds: limit for measuring one space. progress: called with kernels done and to do.
    """
    return Kernels(target, database, trials, seconds, progress)
