"""Kernels timed one after the other in a worker process, and remembered: what `kernels` and `fusion` have in common."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Self

import numpy as np

from ..lowering.single import NotSingle
from ..lowering.tvm_tuner import CANDIDATES
from .database import Database
from .target import Target
from .worker import Worker, WorkerDied, WorkerError, WorkerTimeout, room

if TYPE_CHECKING:
    import onnx

KERNEL_SECONDS = 60.0
"""A kernel that takes longer than this to compile, tune and time is given up."""

FIGURE = "least"
"""Which of several figures counts; others are remembered apart."""

_MEASURE = f"{__package__}.measurement:measure_kernel"
_WARM_UP = f"{__package__}.measurement:warm_up"


@dataclass(frozen=True)
class Job:
    """A kernel to time. key: what it is remembered under. label: its operators. model: makes it an ONNX model.
    copies: how often the kernel is in that model."""

    key: str
    label: str
    model: Callable[[], onnx.ModelProto]
    copies: int = 1


class Bench:
    """Times kernels on a target.

    trials: tuning candidates per kernel (TVM targets only; 0 leaves kernels untuned). worker: a process to use instead
    of one of its own. conditions: what else latencies depend on; they are remembered apart.
    """

    def __init__(
        self, target: Target, database: Database, trials: int, worker: Worker | None = None, conditions: str = ""
    ) -> None:
        self.target, self.database, self.trials, self.conditions = target, database, trials, conditions
        self._given = worker
        self._worker = worker

    @property
    def state(self) -> str:
        """The tuning state that latencies are remembered under."""
        tuning = "" if self.target.kind == "onnxruntime" else f"{self.trials} trials, v{CANDIDATES}"
        return ", ".join(filter(None, (tuning, self.conditions, FIGURE)))

    def remembered(self, keys: Iterable[str]) -> dict[str, float]:
        """Milliseconds of those kernels that the database knows; inf for one that cannot run."""
        found = {k: self.database.get(k, self.target.fingerprint(), self.target.threads, self.state) for k in keys}
        return {k: latency.ms for k, latency in found.items() if latency is not None}

    def measure(
        self,
        jobs: Sequence[Job],
        known: dict[str, float],
        deadline: float,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Time the kernels in order until the deadline (of `time.monotonic`); results go to `known` and the database.

        A kernel that crashes its process, hangs or does not compile is remembered as one that cannot run (inf).
        """
        folder = (
            str(self.database.schedules(self.target.fingerprint()))
            if self.trials and self.target.kind != "onnxruntime"
            else ""
        )
        for done, job in enumerate(jobs):
            left = deadline - time.monotonic()
            if left <= 0:
                break
            try:
                model = job.model().SerializeToString()
            except (NotSingle, ValueError):
                continue
            if self._worker is None:
                self._worker = Worker(self.target.threads, memory=room())
            try:
                self._worker.call(_WARM_UP, self.target.kind, timeout=max(30.0, left))
                left = deadline - time.monotonic()
                limit = min(KERNEL_SECONDS, left)
                found = self._worker.call(
                    _MEASURE, model, self.target.kind, self.target.threads, folder, self.trials, 0.8 * limit,
                    self.target.custom_ops, timeout=max(0.1, limit),
                )  # fmt: skip
            except WorkerTimeout as e:
                if deadline - time.monotonic() <= 0.05 * KERNEL_SECONDS:
                    break  # the budget ended, not the kernel's own limit
                self._remember(known, job.key, np.inf, reason=str(e))
            except WorkerDied as e:
                self._remember(known, job.key, np.inf, reason=str(e))
            except WorkerError as e:
                self._remember(known, job.key, np.inf, reason=str(e)[:300])
            else:
                ms = float(found.pop("ms")) / job.copies
                if found.get("complete", True):
                    self._remember(known, job.key, ms, op=job.label, **found)
                else:
                    known[job.key] = ms  # good enough for now, yet not what the key promises
            if progress is not None:
                progress(done + 1, len(jobs))

    def _remember(self, known: dict[str, float], key: str, ms: float, **detail: object) -> None:
        known[key] = ms
        self.database.put(key, self.target.fingerprint(), ms, self.target.threads, self.state, **detail)

    def close(self) -> None:
        """End the process, if it is its own."""
        if self._given is None and self._worker is not None:
            self._worker.close()
            self._worker = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
