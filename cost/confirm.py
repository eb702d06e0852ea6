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
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from ..errors import UserError
from ..lowering.own_program import OwnProgram
from .database import Database
from .measurement import LONG_MS
from .sides import LEAST_ROUNDS, Sides
from .target import Target
from .verdict import LEVEL, MARGIN, Verdict, decide, rounds_of, settled
from .worker import Worker, WorkerError, together

if TYPE_CHECKING:
    import onnx

    Model: TypeAlias = onnx.ModelProto | bytes | str | os.PathLike[str]

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
        sides = Sides(
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
            return _same(reason, sides.settings, not sides.starved)
        return _measure(sides, deadline, blocks, controls, margin, np.random.default_rng(seed), tell)


def _same(reason: str, settings: dict[str, Any], judge: bool = True) -> Verdict:
    return Verdict(None, None, 1.0, 1.0, 1.0, "tie", judge, reason, settings)


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


@contextmanager
def _ready(
    sides: Sides, pair: tuple[str, str], rng: np.random.Generator
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
            loads = [
                partial(sides.load, k, side, worker) for k, (side, worker) in enumerate(zip(pair, workers, strict=True))
            ]
            once = together(loads, workers)
        yield [partial(_timed, worker, slot) for slot, worker in enumerate(workers)], once
        if sides.target.tracker:  # a session that just breaks off may take its server along
            one.call(f"{_TASKS}:drop", timeout=30)


def _timed(worker: Worker, slot: int, number: int, repeat: int, warm: bool) -> float:
    return float(worker.call(f"{_TASKS}:time_side", slot, number, repeat, warm, timeout=300))


def _measure(
    sides: Sides, deadline: float, blocks: int, controls: int, margin: float, rng: np.random.Generator,
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
