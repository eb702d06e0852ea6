"""Kernels timed in worker processes, and remembered: what `kernels` and `fusion` have in common.

Kernels are made ready one after the other and then timed together: one figure of each kernel in every round, in random
order, the median counting. A machine whose speed changes from second to second, as shared ones do, is then the same for
all of them, and neither its bursts nor its pauses decide what a kernel takes. Batches that lie further apart are
compared by two reference kernels that run along with each: where both together say that the machine is slower or faster
than it was when they were first timed by more than `DRIFT`, the batch's figures are corrected by as much.

On devices behind a tracker as many workers time as there are servers.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from ..lowering.tvm_tasks import CANDIDATES
from .batches import Batches, Job
from .database import Database
from .target import Target
from .worker import Worker, room

FIGURE = "median, warm"
"""Which of several figures counts, and what was run before it; others are remembered apart."""


@dataclass(frozen=True)
class Coverage:
    """Where prices of kernels come from, in distinct kernels.

    kernels: all that extraction can use, or has asked for. measured: by this process. remembered: from the database.
    estimated: not measured in time, priced by calibrated roofline. failed: cannot run on the target. useless: e-nodes
    that no good selection can contain, not measured either. error: median relative error of estimates, each measured
    kernel estimated from the others; None where that is not known.
    """

    kernels: int = 0
    measured: int = 0
    remembered: int = 0
    estimated: int = 0
    failed: int = 0
    useless: int = 0
    error: float | None = None
    seconds: float = 0.0

    def __str__(self) -> str:
        known = self.measured + self.remembered
        text = f"{known} of {self.kernels} kernels measured ({self.remembered} remembered), {self.estimated} estimated"
        return text if self.error is None else f"{text}, typically within {100 * self.error:.0f} %"


class Bench:
    """Times kernels on a target.

    trials: tuning candidates per kernel (TVM targets only; 0 leaves kernels untuned). worker: a process to use instead
    of its own. conditions: what else latencies depend on; they are remembered apart.
    """

    def __init__(
        self, target: Target, database: Database, trials: int, worker: Worker | None = None, conditions: str = ""
    ) -> None:
        self.target, self.database, self.trials, self.conditions = target, database, trials, conditions
        self._given = worker
        self._workers: list[Worker] = []
        self.settled: set[str] = set()
        """Kernels that need not be timed once more."""
        self.note = ""
        """Why measuring ended before its time, if it did."""

    @property
    def state(self) -> str:
        """The tuning state that latencies are remembered under."""
        return self.state_of(self.conditions)

    def state_of(self, conditions: str) -> str:
        """The tuning state under other conditions; the reference kernels have none."""
        tuning = f"{self.trials} trials, v{CANDIDATES}" if self.target.tunable else ""
        return ", ".join(filter(None, (tuning, conditions, FIGURE)))

    def remembered(self, keys: Iterable[str]) -> dict[str, float]:
        """Milliseconds of those kernels that the database knows; inf for one that cannot run."""
        found = self.database.many(keys, self.target.fingerprint(), self.target.threads, self.state)
        self.settled |= {k for k, f in found.items() if f.detail.get("settled") or f.ms == math.inf}
        return {k: latency.ms for k, latency in found.items()}

    def measure(
        self,
        jobs: Sequence[Job],
        known: dict[str, float],
        deadline: float,
        progress: Callable[[int, int], None] | None = None,
        settle: bool = False,
    ) -> None:
        """Time the kernels, the first ones first, until the deadline (of `time.monotonic`); results go to `known` and
        the database.

        settle: longer, and as many together as can be; what is known of them is replaced.

        A kernel that crashes its process, hangs or does not compile is remembered as one that cannot run (inf). A
        device that is lost costs nothing but time: others, if there are any, do its work.
        """
        if not jobs:
            return
        run = Batches(self, jobs, known, deadline, progress, settle)
        if self._given is not None:
            run.serve(self._given)
            return
        wanted = min(self.target.machines, len(jobs))
        while len(self._workers) < wanted:
            self._workers.append(Worker(self.target.threads, memory=room()))
        if wanted == 1:  # in this thread, where Ctrl-C arrives
            run.serve(self._workers[0])
        else:
            with ThreadPoolExecutor(wanted) as pool:
                try:
                    list(pool.map(run.serve, self._workers[:wanted]))
                except BaseException:
                    run.deadline = 0.0
                    self.close()  # what they wait for
                    raise
        if run.queue and time.monotonic() < deadline:
            why = f"no device under {self.target.key!r} is left" if self.target.tracker else "workers end at once"
            self.note = f"{why}: {len(run.queue)} kernels were not timed"

    def close(self) -> None:
        """End its own processes."""
        for worker in self._workers:
            worker.close()
        self._workers = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
