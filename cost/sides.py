"""The two models of a comparison, on their way to being run: tuned and compiled alike."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..lowering.ort_session import LEVELS
from .database import Database
from .target import Target
from .worker import Worker, WorkerError, roomy, together

SIDES = ("original", "candidate")

LEAST_ROUNDS = 8
"""Rounds of a block at least: two blocks of fewer could not show a difference."""

PER_KERNEL, PER_BYTE = 0.08, 1.25e-8
"""Seconds that compiling takes for each kernel and each byte of weights, more or less (`Sides._rest`)."""

_TASKS = f"{__package__}.measurement"


class Sides:
    """Two models on their way to being run."""

    def __init__(
        self, original: str, candidate: str, target: Target, folder: Path, symbols: dict[str, int],
        database: Database, trials: int, expected_ms: float,
    ) -> None:  # fmt: skip
        self.original, self.candidate, self.target, self.folder = original, candidate, target, folder
        self.expected_ms = expected_ms
        self.symbols, self.trials, self.inputs = symbols, trials, ""
        tuned = target.tunable and trials > 0
        self.schedules = str(database.schedules(target.fingerprint())) if tuned else ""
        self.judge, self.starved = True, False
        """Whether kernels are tuned well enough; whether that is all that the time was for."""
        self.settings: dict[str, Any] = {"target": str(target), "threads": target.threads}
        self.failure = ""

    def prepare(self, seconds: float, tell: Callable[[str], None]) -> str:
        """Tune and compile both sides; why they are the same program, or ""."""
        if self.target.kind == "onnxruntime":
            self.settings |= {"pipeline": LEVELS[self.target.level], "tuned": False, "trials": 0}
            if self.target.provider:
                self.settings["provider"] = self.target.provider
            return self._prepare_session()
        self.settings |= {"pipeline": "zero+default", "tuned": self.trials > 0, "trials": self.trials}
        return self._prepare_tvm(seconds, tell)

    def _call(self, side: str, worker: Worker, task: str, *args: Any, timeout: float) -> Any:
        try:
            return worker.call(f"{_TASKS}:{task}", *args, timeout=timeout)
        except WorkerError as e:
            if e.device_lost:
                raise
            if side == "original":
                raise UserError(f"the original model cannot run on {self.target}: {e}") from None
            self.failure = str(e)
            raise

    def _prepare_session(self) -> str:
        digests = []
        for side in SIDES:
            with Worker(self.target.threads) as w:
                path = getattr(self, side)
                try:
                    digests.append(self._call(side, w, "digest_optimised", path, self.target, timeout=300))
                except WorkerError:
                    return f"the candidate cannot run: {self.failure}"
        return "ONNX Runtime makes the same program of both" if digests[0] == digests[1] else ""

    def _prepare_tvm(self, seconds: float, tell: Callable[[str], None]) -> str:
        """Tune both sides, then compile them: kernels that they share have the same schedules in both."""
        deadline = time.monotonic() + seconds
        with ExitStack() as stack:
            workers = {side: stack.enter_context(Worker(self.target.threads)) for side in SIDES}
            if self.trials:
                tuned = self._tune_both(workers, deadline, tell)
                if tuned:
                    self.settings["tuning"], self.starved = tuned, True
                    counts = " and ".join(f"{t['tuned']} of {t['kernels']} ({s})" for s, t in tuned.items())
                    return f"not a judge: tuning took all the time, {counts} kernels are tuned; more time goes on"
            tell("compiling both")
            jobs = [partial(self._compile, side, worker) for side, worker in workers.items()]
            try:
                both = [job() for job in jobs] if self._large() else together(jobs, list(workers.values()))
            except WorkerError:
                return f"the candidate cannot run: {self.failure}"
        found = dict(zip(SIDES, both, strict=True))
        self.settings["tuning"] = {s: {k: v for k, v in f.items() if k != "digest"} for s, f in found.items()}
        self.judge = all(f["judge"] for f in found.values())
        same = found["original"]["digest"] == found["candidate"]["digest"]
        return "both lower to the same code" if same else ""

    def _large(self) -> bool:
        return not all(roomy(getattr(self, side)) for side in SIDES)

    def _compile(self, side: str, worker: Worker) -> Any:
        path, library = getattr(self, side), self.library(side)
        args = (path, self.target, self.schedules, self.symbols, library)
        try:
            return self._call(side, worker, "compile_model", *args, timeout=600)
        finally:
            worker.close()

    def _tune_both(self, workers: Mapping[str, Worker], deadline: float, tell: Callable[[str], None]) -> dict[str, Any]:
        """Tune both sides in turns. What was reached, if the time is over and it is not enough for a verdict."""
        start = time.monotonic()
        tell("reading the original")
        args = (self.original, self.target, self.schedules, 0, 0.0, self.symbols)
        known = self._call("original", workers["original"], "tune_model", *args, timeout=600)
        reading = time.monotonic() - start
        seconds, left = deadline - start, deadline - time.monotonic() - reading - self._rest(known, reading)
        half, told = min(0.3 * seconds, max(0.05 * seconds, left / 2)), dict[str, Any]()
        while True:
            spared = 0.0
            for side, worker in workers.items():
                tell(f"tuning the {side}")
                begun = time.monotonic()
                unread = reading if side == "candidate" and side not in told else 0.0
                told[side] = self._tune(side, worker, half + spared + unread)
                # a side that was tuned to its end leaves its rest to the other
                spared = max(0.0, half - (time.monotonic() - begun))
                if self._large():
                    worker.close()
            if not all(told.values()) or all(t["judge"] or t["complete"] for t in told.values()):
                return {}  # what broke off, or had all its trials, is as good as it gets
            left = deadline - time.monotonic()
            if left < 2.0:
                return told
            half = min(half, left / 2)  # nothing can be judged: all the time is for the next attempt

    def _rest(self, known: Mapping[str, Any], reading: float) -> float:
        """Seconds that have to be left behind the tuning: for compiling, and for three blocks of the fewest rounds.

        known: what is known of the original's kernels. reading: seconds that reading a model takes.
        """
        run = (known["ms"] if known["judge"] else self.expected_ms) / 1e3
        size = sum(os.path.getsize(f) for f in (self.original, f"{self.original}.data") if os.path.exists(f))
        compiling, loading = known["kernels"] * PER_KERNEL + size * PER_BYTE, reading + 0.3 * size * PER_BYTE
        return (2 if self._large() else 1.2) * compiling + 3 * (loading + 2 * LEAST_ROUNDS * run)

    def _tune(self, side: str, worker: Worker, limit: float) -> dict[str, Any] | None:
        """Tune one side; a schedule that crashes the process costs what is left of the tuning, not the comparison."""
        args = (getattr(self, side), self.target, self.schedules, self.trials, limit, self.symbols)
        try:
            found: dict[str, Any] = worker.call(f"{_TASKS}:tune_model", *args, timeout=limit + 60)
        except WorkerError as e:
            self.settings[f"{side}_tuning_ended"] = str(e)
            return None
        return found

    def library(self, side: str) -> str:
        return str(self.folder / f"{side}{self.target.library_suffix}")

    def load(self, slot: int, side: str, worker: Worker) -> float:
        """Get a worker ready to run a side in a slot of its own; milliseconds of a run."""
        args = (slot, getattr(self, side), self.target, self.library(side), self.inputs, self.symbols)
        return float(self._call(side, worker, "load_side", *args, timeout=300))
