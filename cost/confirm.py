"""The last word: the winner of a search meets the original in fresh processes, and the noise decides what may be said.

Search data never decides, since the best of many noisy figures is biased. Both models get the same tuning, are compiled
once, and run in *blocks*: each block starts fresh processes, warms them up, and times rounds in which both sides run
once in random order. A round gives one ratio original/candidate, so slow drifts of the machine cancel. The statistics
are those of `verdict`.
"""

from __future__ import annotations

import filecmp
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from ..errors import UserError
from ..lowering.ort_session import LEVELS
from ..lowering.own_program import OwnProgram
from .database import Database
from .measurement import LONG_MS
from .target import Target
from .verdict import LEVEL, MARGIN, Verdict, decide, rounds_of, settled
from .worker import Worker, WorkerError, roomy

if TYPE_CHECKING:
    import onnx

    Model: TypeAlias = onnx.ModelProto | bytes | str | os.PathLike[str]

_SIDES = ("original", "candidate")

LEAST_ROUNDS = 8
"""Rounds of a block at least: two blocks of fewer could not show a difference."""

PER_KERNEL, PER_BYTE = 0.08, 1.25e-8
"""Seconds that compiling takes for each kernel and each byte of weights, more or less (`_Sides._tune_both`)."""

MOST_BLOCKS = 24
"""Blocks and controls together that are run at most where the verdict is not clear."""

LOSSES = 3
"""Sessions on remote devices that may be lost in one comparison."""

_TASKS = f"{__package__}.measurement"


def confirm(
    original: Model,
    candidate: Model,
    target: Target,
    seconds: float = 60.0,
    *,
    database: Database | None = None,
    trials: int = 16,
    blocks: int = 3,
    controls: int = 2,
    inputs: Mapping[str, np.ndarray] | None = None,
    symbols: Mapping[str, int] | None = None,
    seed: int = 0,
    margin: float = MARGIN,
    expected_ms: float = 0.0,
    progress: Callable[[str], None] | None = None,
) -> Verdict:
    """Measure `candidate` against `original` on `target`.

    seconds: for everything. TVM targets may use up to 60 % of it for tuning, half for each side, as many trials per
        kernel; if the original's share did not suffice, the candidate gets no more than it had.
    database: its folder keeps the tuned schedules; by default the user's cache.
    blocks, controls: fresh pairs of processes for the comparison and for the original against itself; at most two and
        one where `seconds` are too few to start so many; two of each are enough where the verdict is clear by then, and
        there are more, up to `MOST_BLOCKS`, where it is not and time is left.
    expected_ms: what a run of the original is expected to take; of a short time that much less is left for tuning.
    inputs: what to run on; by default random values (integers 0) with symbolic extents from `symbols` or 1.

    Raises `UserError` for a computed target. A side that cannot run makes a tie (candidate) or raises `UserError`
    (original).
    """
    if not target.measured:
        raise UserError(f"{target} is computed, not measured: there is nothing to confirm")
    target = target.require()
    deadline = time.monotonic() + seconds
    with tempfile.TemporaryDirectory(prefix="xrlflow-") as name:
        folder = Path(name)
        sides = _Sides(
            _file(original, folder / "original.onnx"), _file(candidate, folder / "candidate.onnx"),
            target, folder, dict(symbols or {}), Database() if database is None else database, trials, expected_ms,
        )  # fmt: skip
        if filecmp.cmp(sides.original, sides.candidate, shallow=False):
            return _same("the files are identical", sides.settings)
        if inputs is not None:
            from ..lowering.feeds import save_arrays

            save_arrays(folder / "inputs.npz", inputs)
            sides.inputs = str(folder / "inputs.npz")
        tell = progress or (lambda text: None)
        reason = sides.prepare(deadline - time.monotonic(), tell)
        if reason:
            return replace(_same(reason, sides.settings), judge=sides.judge or not reason.startswith("not a judge"))
        return _measure(sides, deadline, blocks, controls, margin, np.random.default_rng(seed), tell)


def _same(reason: str, settings: dict[str, Any]) -> Verdict:
    return Verdict(None, None, 1.0, 1.0, 1.0, "tie", True, reason, settings)


def _file(model: Model, path: Path) -> str:
    """Path of a model's file; protos and bytes are written to `path`."""
    if isinstance(model, (str, os.PathLike)):
        return os.fspath(model)
    if isinstance(model, OwnProgram):
        return os.fspath(model.written(path))
    if isinstance(model, bytes):
        path.write_bytes(model)
    else:
        import onnx

        onnx.save_model(model, path, save_as_external_data=model.ByteSize() > 1 << 30, location=path.name + ".data")
    return str(path)


class _Sides:
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
        self.judge = True
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
        for side in _SIDES:
            with Worker(self.target.threads) as w:
                path = getattr(self, side)
                try:
                    digests.append(self._call(side, w, "digest_optimised", path, self.target, timeout=300))
                except WorkerError:
                    return f"the candidate cannot run: {self.failure}"
        return "ONNX Runtime makes the same program of both" if digests[0] == digests[1] else ""

    def _prepare_tvm(self, seconds: float, tell: Callable[[str], None]) -> str:
        """Tune both sides, then compile them: kernels that they share have the same schedules in both."""
        deadline, found = time.monotonic() + seconds, dict[str, Any]()
        with ExitStack() as stack:
            workers = {side: stack.enter_context(Worker(self.target.threads)) for side in _SIDES}
            if self.trials:
                tuned = self._tune_both(workers, deadline, tell)
                if tuned:
                    self.settings["tuning"], self.judge = tuned, False
                    counts = " and ".join(f"{t['tuned']} of {t['kernels']} ({s})" for s, t in tuned.items())
                    return f"not a judge: tuning took all the time, {counts} kernels are tuned; more time goes on"
            tell("compiling both")
            jobs = {side: partial(self._compile, side, worker) for side, worker in workers.items()}
            try:
                if self._large():
                    found = {side: job() for side, job in jobs.items()}
                else:
                    with ThreadPoolExecutor(2) as pool:
                        running = {side: pool.submit(job) for side, job in jobs.items()}
                        found = {side: r.result() for side, r in running.items()}
            except WorkerError:
                return f"the candidate cannot run: {self.failure}"
        self.settings["tuning"] = {s: {k: v for k, v in f.items() if k != "digest"} for s, f in found.items()}
        self.judge = all(f["judge"] for f in found.values())
        same = found["original"]["digest"] == found["candidate"]["digest"]
        return "both lower to the same code" if same else ""

    def _large(self) -> bool:
        return not all(roomy(getattr(self, side)) for side in _SIDES)

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
        seconds = deadline - start
        tell("reading the original")
        args = (self.original, self.target, self.schedules, 0, 0.0, self.symbols)
        known = self._call("original", workers["original"], "tune_model", *args, timeout=600)
        reading = time.monotonic() - start
        run = (known["ms"] if known["judge"] else self.expected_ms) / 1e3
        size = sum(os.path.getsize(f) for f in (self.original, f"{self.original}.data") if os.path.exists(f))
        compiling, loading = known["kernels"] * PER_KERNEL + size * PER_BYTE, reading + 0.3 * size * PER_BYTE
        # Of a short time only what is not for the rest is for tuning: compiling, three blocks of the fewest rounds.
        rest = (2 if self._large() else 1.2) * compiling + 3 * (loading + 2 * LEAST_ROUNDS * run)
        half = min(0.3 * seconds, max(0.05 * seconds, (deadline - time.monotonic() - reading - rest) / 2))
        told: dict[str, Any] = {}
        while True:
            spared = 0.0
            for side, worker in workers.items():
                tell(f"tuning the {side}")
                begun = time.monotonic()
                limit = half + spared + (reading if side == "candidate" and side not in told else 0.0)
                told[side] = self._tune(side, worker, limit)
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


@contextmanager
def _ready(
    sides: _Sides, pair: tuple[str, str], rng: np.random.Generator
) -> Iterator[tuple[list[Callable[[int, int, bool], float]], list[float]]]:
    """Two sides, loaded in fresh processes: what times each, and milliseconds of its first runs.

    A remote device takes one session at a time: one process over there has both sides then, loaded in random order.
    """
    with ExitStack() as stack:
        one = stack.enter_context(Worker(sides.target.threads))
        once = [0.0, 0.0]
        if sides.target.tracker:
            workers = [one, one]
            for k in rng.permutation(2).tolist():
                once[k] = sides.load(k, pair[k], one)
        else:
            workers = [one, stack.enter_context(Worker(sides.target.threads))]
            with ThreadPoolExecutor(2) as pool:
                once = list(pool.map(sides.load, range(2), pair, workers))
        yield [partial(_timed, worker, slot) for slot, worker in enumerate(workers)], once
        if sides.target.tracker:  # a session that just breaks off may take its server along
            one.call(f"{_TASKS}:drop", timeout=30)


def _timed(worker: Worker, slot: int, number: int, repeat: int, warm: bool) -> float:
    return float(worker.call(f"{_TASKS}:time_side", slot, number, repeat, warm, timeout=300))


def _measure(
    sides: _Sides, deadline: float, blocks: int, controls: int, margin: float, rng: np.random.Generator,
    tell: Callable[[str], None],
) -> Verdict:  # fmt: skip
    """Run the blocks, controls among them in random order, and decide."""
    plan = ["block"]
    ratios: dict[str, list[list[float]]] = {"block": [], "control": []}
    times: list[tuple[list[float], list[float]]] = []
    rounds = number = repeat = k = lost = 0
    warm = True
    while k < len(plan):
        what, start = plan[k], time.monotonic()
        k += 1
        tell(f"timing, block {k} of {len(plan)}")
        pair = ("original", "original" if what == "control" else "candidate")
        try:
            with _ready(sides, pair, rng) as (timers, once):
                if not rounds:
                    # A side of a round takes 10 ms or one run: the median of up to nine figures.
                    runs = max(1, min(1000, round(10.0 / max(*once, 1e-3))))
                    repeat = min(runs, 9)
                    number = runs // repeat
                    warm = min(once) < LONG_MS or bool(sides.target.tracker)
                    loading, left = time.monotonic() - start, deadline - time.monotonic()
                    if (blocks + controls - 1) * (loading + 1.0) > 0.6 * left:
                        blocks, controls = min(blocks, 2), min(controls, 1)
                    rest = ["block"] * (blocks - 1) + ["control"] * controls
                    rng.shuffle(rest)
                    plan += rest
                    timing = max(0.0, left - len(rest) * loading) / len(plan)
                    taken = sum(once) * (number * repeat + warm)
                    rounds = int(min(60, max(LEAST_ROUNDS, 1e3 * 0.9 * timing / taken)))
                one, two = (partial(timer, number, repeat, warm) for timer in timers)
                a, b = rounds_of(one, two, rounds, rng)
        except WorkerError as e:
            if sides.failure or not e.device_lost:
                return _same(f"the candidate cannot run: {sides.failure or e}", sides.settings)
            lost += 1
            if lost <= LOSSES:  # the block is run again, on this device or one like it
                k -= 1
                continue
            if len(ratios["block"]) < 2 or not ratios["control"]:
                return _same(f"{lost} sessions were lost: {e}", sides.settings)
            break
        ratios[what].append([x / y for x, y in zip(a, b, strict=True)])
        if what == "block":
            times.append((a, b))
        took = time.monotonic() - start
        done = {kind: len(found) for kind, found in ratios.items()}
        if done["block"] >= min(2, blocks) and done["control"] >= min(2, controls):
            if settled(ratios["block"], ratios["control"], margin):
                break
            if k == len(plan) and k < MOST_BLOCKS and controls > 1 and deadline - time.monotonic() > 2.2 * took:
                plan += ["control", "block"]  # not clear yet, and there is time
    speedup, low, high, verdict, used = decide(ratios["block"], ratios["control"], margin)
    settings = sides.settings | {
        "rounds": rounds, "runs_per_round": number * repeat, "blocks": len(times), "margin": used, "level": LEVEL,
        "controls": [statistics.median(c) for c in ratios["control"]],
        "block_speedups": [statistics.median(c) for c in ratios["block"]],
    }  # fmt: skip
    if lost:
        settings["sessions_lost"] = lost
    return Verdict(
        statistics.median(x for a, _ in times for x in a), statistics.median(x for _, b in times for x in b),
        speedup, low, high, verdict, sides.judge,
        "" if sides.judge else "not a judge: kernels with more than 5 % of the time are not tuned", settings,
    )  # fmt: skip
