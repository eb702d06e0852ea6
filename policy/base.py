"""What all extractors share: the budget, the trace, the result, and the registry of names."""

from __future__ import annotations

import gc
import importlib
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np

from ..errors import UserError

if TYPE_CHECKING:
    from ..cost.base import Cost
    from ..egraph.space import SearchSpace, Selection


@dataclass(frozen=True)
class Budget:
    """How long an extractor may look: whichever runs out first; None means no limit.

    seconds: wall-clock time. steps: cost evaluations; every program whose cost was worked out counts, also
    those an extractor only peeked at.
    """

    seconds: float | None = None
    steps: int | None = None


@dataclass
class Trace:
    """Best cost so far against effort: (evaluations, seconds, best cost in ms), a point for each improvement.

    evaluations, seconds: the effort in all.
    """

    points: list[tuple[int, float, float]] = field(default_factory=list)
    evaluations: int = 0
    seconds: float = 0.0

    def best_after(self, evaluations: int) -> float:
        """Best cost (ms) known after so many evaluations; inf before the first one."""
        return min((cost for n, _, cost in self.points if n <= evaluations), default=math.inf)


@dataclass(frozen=True)
class Extraction:
    """An extractor's own solution.

    cost: ms under the cost model it was given. stop_reason: why it stopped looking. extras: what the extractor
    wants to tell besides (a policy's training targets, repairs made, a proof status).
    """

    selection: Selection
    cost: float
    trace: Trace
    stop_reason: str
    extractor: str
    extras: Mapping[str, Any] = field(default_factory=dict)


class Extractor(Protocol):
    """Chooses one program of a search space. Returns its own solution, never another extractor's."""

    name: str

    def extract(self, space: SearchSpace, cost: Cost, budget: Budget, rng: np.random.Generator) -> Extraction: ...


@contextmanager
def uncollected() -> Iterator[None]:
    """Without garbage collection in cycles, which takes half of the time where very many small objects are made."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class Meter:
    """Counts evaluations and seconds against a budget and keeps the trace of the best cost."""

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.started = time.perf_counter()
        self.evaluations = 0
        self.best = math.inf
        self._trace = Trace()
        self.deadline = math.inf if budget.seconds is None else self.started + budget.seconds
        self.limit = math.inf if budget.steps is None else budget.steps

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.started

    @property
    def trace(self) -> Trace:
        """The trace up to now."""
        self._trace.evaluations, self._trace.seconds = self.evaluations, self.seconds
        return self._trace

    @property
    def left(self) -> float:
        """Seconds that are left; inf without a limit."""
        return self.deadline - time.perf_counter()

    @property
    def exhausted(self) -> bool:
        """Whether the budget has run out."""
        return self.evaluations >= self.limit or time.perf_counter() >= self.deadline

    @property
    def reason(self) -> str:
        """Why a search that ran until `exhausted` stopped."""
        return "out of steps" if self.evaluations >= self.limit else "out of time"

    def affords(self, seconds: float) -> bool:
        """Whether something that cannot be interrupted and takes about so long fits into what is left."""
        return self.left >= seconds

    def improved(self, cost: float) -> bool:
        """Whether `cost` (ms) beats the best so far beyond rounding; if so it is noted in the trace."""
        if cost >= self.best - 1e-9 * max(1.0, abs(self.best)) * (self.best < math.inf):
            return False
        self.best = cost
        self._trace.points.append((self.evaluations, self.seconds, cost))
        return True


_EXTRACTORS = {
    "original": "sampling:Original",
    "random": "sampling:RandomWalk",
    "tree": "tree:Tree",
    "dag": "dag:Dag",
    "climb": "climb:Climb",
    "beam": "beam:Beam",
    "mcts": "mcts:MCTS",
    "ilp": "ilp:ILP",
    "saturation": "saturation:Saturation",
    "greedy": "greedy:Greedy",
    "greedy-group": "greedy:GreedyGroup",
    "rl": "rl:LearnedPolicy",
}


def register(name: str, path: str) -> None:
    """Make `extractor(name)` find the class `path`, written "module:Class" with the module inside this package."""
    _EXTRACTORS[name] = path


def names() -> tuple[str, ...]:
    """The extractors there are."""
    return tuple(_EXTRACTORS)


def extractor(name: str, **options: Any) -> Extractor:
    """The extractor of this name. Its module is imported only now. Raises `UserError` for a name there is none of."""
    if name not in _EXTRACTORS:
        raise UserError(f"no extractor is called {name!r}; choose one of {', '.join(_EXTRACTORS)}")
    module, _, kind = _EXTRACTORS[name].partition(":")
    made = getattr(importlib.import_module(f".{module}", __package__), kind)
    return cast(Extractor, made(**options))
