"""Short tuning of fused kernels inside one process, and the schedules that it leaves behind.

TVM's own `tune_relax` starts builder processes that take longer to start than a kernel takes to tune. Here each
distinct kernel of a fused module gets candidate schedules, built and timed on the spot. The best is kept in one small
file per kernel, so that processes may share a folder and a damaged file costs one kernel; later compilations of any
graph with the same kernel use it.

Shao et al.: Tensor program optimization with probabilistic programs (MetaSchedule), NeurIPS 2022.
"""

from __future__ import annotations

import importlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import prod, sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .tvm_module import Here, tvm

if TYPE_CHECKING:
    from .tvm_remote import Remote

ENOUGH = 8
"""Trials from which on a kernel counts as tuned, if no register-tiled schedule (`tvm_schedules`) fits it."""

LIGHT = 4
"""Trials that are enough for a kernel that hardly computes: fewer than `_INTENSE` FLOPs per byte of its arguments."""

FURTHER = 3
"""A kernel that still gains gets so many times its trials at most."""

CANDIDATES = 3
"""Version of the candidate generator; records of another version are tuned anew."""

_INTENSE = 4.0

_NAIVE = 3e7
"""FLOPs above which the unscheduled loop nest is not timed: it would take as long as all trials."""


@dataclass
class Task:
    """One distinct kernel of a module.

    weight: how often the module calls it. share: its estimated share of the time before tuning.
    trials: candidates measured so far, those of earlier runs included. ms: of the best one, inf if none is known.
    default: whether the best is TVM's own schedule. tiled: whether register-tiled schedules were among the candidates.
    improved: how many trials had been made when the last one gained something.
    """

    name: str
    weight: int
    digest: str
    module: Any = field(repr=False)
    flops: float
    bytes: float
    share: float = 0.0
    trials: int = 0
    ms: float = float("inf")
    default: bool = False
    tiled: bool = False
    improved: int = 0
    trace: Any = field(default=None, repr=False)

    @property
    def light(self) -> bool:
        """Whether memory rather than arithmetic decides its latency."""
        return self.flops < _INTENSE * self.bytes

    @property
    def tuned(self) -> bool:
        """Whether its latency says something about the kernel, and not about the luck of a schedule."""
        enough = 2 if self.tiled else LIGHT if self.light else ENOUGH
        return self.trials >= enough and self.ms < float("inf")

    def settled(self, trials: int) -> bool:
        """Whether the last trials, a quarter of so many, gained nothing."""
        return self.trials - self.improved >= max(2, trials // 4)


@dataclass(frozen=True)
class Tuning:
    """What a run of `tune` did: the module's tasks, trials measured in this run, seconds, and whether all were done."""

    tasks: list[Task]
    measured: int
    seconds: float
    complete: bool

    @property
    def judge(self) -> bool:
        """Whether latencies of the module mean something: each kernel above 5 % of the time is tuned."""
        if any(t.ms == float("inf") for t in self.tasks):
            return False
        whole = sum(t.weight * t.ms for t in self.tasks)
        return all(t.tuned or t.weight * t.ms <= 0.05 * whole for t in self.tasks)

    def summary(self) -> dict[str, Any]:
        """Plain figures for reports."""
        return {
            "kernels": len(self.tasks),
            "tuned": sum(t.tuned for t in self.tasks),
            "trials": sum(t.trials for t in self.tasks),
            "measured": self.measured,
            "seconds": round(self.seconds, 2),
            "complete": self.complete,
            "judge": self.judge,
            "settled": sum(t.settled(t.trials) for t in self.tasks),
        }


def tasks_of(fused: Any, target: Any) -> list[Task]:
    """The distinct kernels of a fused module, the costliest (by FLOPs and bytes, calls counted) first."""
    import tvm_ffi
    from tvm.s_tir import meta_schedule as ms

    tasks = []
    for t in ms.relax_integration.extract_tasks(fused, target):
        module = t.dispatched[0]
        flops = _flops(module)
        size = float(sum(prod(shape) * np.dtype(dtype).itemsize for shape, dtype in _arguments(module)))
        digest = f"{tvm_ffi.structural_hash(module) & (2**64 - 1):016x}"
        tasks.append(Task(str(t.task_name), int(t.weight), digest, module, flops, size))
    # Nominal rates: only the order and the rough proportions matter.
    cost = [t.weight * (max(t.flops / 30e9, t.bytes / 10e9) + 2e-6) for t in tasks]
    for t, c in zip(tasks, cost, strict=True):
        t.share = c / sum(cost)
    return sorted(tasks, key=lambda t: (-t.share, t.digest))


def _flops(module: Any) -> float:
    try:
        return float(tvm().s_tir.analysis.estimate_tir_flops(module))
    except Exception:  # noqa: BLE001  (loops whose extents TVM cannot tell)
        return 0.0


def _arguments(module: Any) -> list[tuple[tuple[int, ...], str]]:
    """Shapes and dtypes of a kernel's arguments, results included."""
    from tvm.s_tir import meta_schedule as ms

    infos = ms.arg_info.ArgInfo.from_prim_func(module["main"])
    return [(tuple(int(d) for d in a.shape), str(a.dtype)) for a in infos]


def _tensors(module: Any, on: Any) -> list[Any]:
    rng = np.random.default_rng(0)
    out = []
    for shape, dtype in _arguments(module):
        kind = np.dtype("float32" if dtype == "bfloat16" else dtype)
        real = kind.kind == "f"
        data = (0.05 + 0.1 * rng.random(shape)).astype(kind) if real else np.zeros(shape, kind)
        out.append(tvm().runtime.tensor(data, on))
    return out


def tune(
    fused: Any,
    target: Any,
    folder: Path | None,
    trials: int = 16,
    seconds: float = 60.0,
    progress: Callable[[int, int, float], None] | None = None,
    part: tuple[int, int] = (0, 1),
    place: Here | Remote | None = None,
    plateau: bool = False,
) -> Tuning:
    """Tune the kernels of a fused module, keeping the best schedules in `folder` (None keeps and knows none).

    trials: candidates per kernel on average; costly kernels get up to twice as many, light ones `LIGHT`.
        Kernels that have had as many in earlier runs are left alone.
    seconds: stop after this time; the best so far is kept (one candidate may overrun).
    progress: called with trials done, trials planned and seconds.
    part: (k, n) leaves all kernels but each n-th, from the k-th on, to other processes.
    place: where candidates are timed; None is this machine.
    plateau: give kernels that still gain up to `FURTHER` times the trials.

    Raises `tvm_remote.DeviceLost` if the place is one elsewhere that is gone for good; what was found is kept.
    """
    start = time.monotonic()
    place = place or Here(str(target.kind.name))
    tasks = tasks_of(fused, target)
    if folder:
        for t in tasks:
            _remember(t, folder)
    plan = _plan(tasks, trials)
    own = list(zip(tasks, plan, strict=True))[part[0] :: part[1]]
    planned, done = sum(max(0, n - t.trials) for t, n in own), 0
    complete = True
    # Every kernel gets a first few candidates before any gets its rest: a short limit must not leave one naive.
    rounds = [[(t, min(n, 4)) for t, n in own], own]
    if plateau and trials:
        rounds += [[(t, n + k * max(2, n // 4)) for t, n in own] for k in range(1, 1 + 4 * (FURTHER - 1))]
    for k, round_ in enumerate(rounds):
        for (t, wanted), (_, n) in zip(round_, own, strict=True):
            if t.trials >= wanted or (k > 1 and t.settled(n)):
                continue
            left = seconds - (time.monotonic() - start)
            if left <= 0:
                complete &= k > 1
                continue
            before = t.trials
            try:
                _improve(t, target, place, wanted, left)
            finally:
                if folder:
                    _store(t, folder)
            done += t.trials - before
            complete &= k > 1 or t.trials >= wanted
            if progress is not None:
                progress(done, planned, time.monotonic() - start)
    return Tuning(tasks, done, time.monotonic() - start, complete)


def _plan(tasks: list[Task], trials: int) -> list[int]:
    """Trials for each task: proportional to the root of its share, between the least that counts and twice the mean."""
    if trials <= 0:
        return [0] * len(tasks)
    roots = [sqrt(t.share) for t in tasks]
    mean = trials * len(tasks) / sum(roots)
    return [
        int(min(trials, LIGHT) if t.light else min(2 * trials, max(min(ENOUGH, trials), round(mean * r))))
        for t, r in zip(tasks, roots, strict=True)
    ]


def _improve(t: Task, target: Any, place: Here | Remote, wanted: int, seconds: float) -> None:
    """Measure candidates until the task has had `wanted` trials or the time is over."""
    deadline = time.monotonic() + seconds
    arguments = _tensors(t.module, place.device)
    for trace, schedule in _candidates(t, target, wanted):
        t.trials += 1
        try:
            library = place.load(tvm().tirx.build(schedule, target=target))
            ms = _time(library, place.device, arguments, t.ms)
        except Exception:  # noqa: BLE001  (a schedule that does not build is one trial lost)
            if not place.alive():  # one that takes the session with it, too
                place.renew()
                arguments = _tensors(t.module, place.device)
            continue
        if ms < t.ms:
            if ms < 0.99 * t.ms:
                t.improved = t.trials
            t.ms, t.trace, t.default = ms, trace, trace is None
        if t.trials >= wanted or time.monotonic() > deadline:
            return
    t.trials = max(t.trials, wanted)  # the space of schedules is exhausted


def _time(library: Any, on: Any, arguments: list[Any], best: float) -> float:
    """Milliseconds: least of a few runs, since noise only adds; a hopeless candidate is run once."""
    once: float = 1e3 * min(library.time_evaluator("main", on, number=1, repeat=1)(*arguments).results)
    if once > 1.5 * best:
        return once
    number = max(1, int(1.0 / max(once, 1e-3)))
    best = min(library.time_evaluator("main", on, number=number, repeat=5)(*arguments).results)
    return min(once, 1e3 * float(best))


def _candidates(t: Task, target: Any, wanted: int) -> Iterator[tuple[Any, Any]]:
    """(trace, scheduled module): ours and the default schedule first, then random ones; those of earlier runs not."""
    from .tvm_schedules import blocked

    known: list[tuple[Any, Any]] = []
    if target.kind.name == "llvm":
        known = [(s.trace, s.mod) for s in blocked(t.module, int(target.attrs["num-cores"]))]
        t.tiled = len(known) > 0
        if t.flops < _NAIVE and not known:
            known.append((None, t.module))
    elif target.kind.name == "cuda":
        known.append((None, _dlight(t.module, target)))
    yield from known[t.trials :]
    yield from _random(t, target, max(0, wanted - max(t.trials, len(known))))


def _dlight(module: Any, target: Any) -> Any:
    """The module under TVM's rule-based GPU schedules, which kernels without a record get."""
    from tvm.s_tir import dlight

    gpu = dlight.gpu
    rules = gpu.Matmul(), gpu.GEMV(), gpu.Reduction(), gpu.GeneralReduction(), gpu.Fallback()
    with target:
        return dlight.ApplyDefaultSchedule(*rules)(module)


def _random(t: Task, target: Any, n: int) -> Iterator[tuple[Any, Any]]:
    from tvm.s_tir import meta_schedule as ms

    if n <= 0:
        return
    if target.kind.name == "cuda":
        importlib.import_module("tvm.s_tir.tensor_intrin.cuda")  # 10 s, once a process; its schedules need it
    with target:
        context = ms.TuneContext(
            t.module, target=target, space_generator="post-order-apply", search_strategy="replay-trace",
            num_threads=1, rand_state=1 + t.trials,
        )  # fmt: skip
        spaces = context.generate_design_space()
        context.pre_tuning(max_trials=n, num_trials_per_iter=n, design_spaces=spaces)
        found = context.generate_measure_candidates() or []
    for candidate in found:
        yield candidate.sch.trace, candidate.sch.mod


# Records


def _file(folder: Path, digest: str) -> Path:
    return folder / f"{digest}-{CANDIDATES}.json"


def _remember(t: Task, folder: Path) -> None:
    """Fill in what is recorded of a task, if anything."""
    try:
        record = json.loads(_file(folder, t.digest).read_text())
        ms = float("inf") if record["ms"] is None else float(record["ms"])
        t.trials, t.ms, t.trace = record["trials"], ms, record["trace"]
        t.default, t.tiled, t.improved = record["default"], record["tiled"], record.get("improved", 0)
    except (OSError, ValueError, KeyError, TypeError):
        return


def _store(t: Task, folder: Path) -> None:
    """Record a task, unless another process recorded a better schedule meanwhile."""
    other = Task(t.name, t.weight, t.digest, None, 0.0, 0.0)
    _remember(other, folder)
    if other.ms < t.ms:
        t.ms, t.default, t.tiled, t.trace = other.ms, other.default, other.tiled, other.trace
        t.improved = other.improved
    trace = t.trace
    if trace is not None and not isinstance(trace, list):
        trace = _plain(trace.as_json())
    record = {
        "kernel": t.name,
        "trials": max(t.trials, other.trials),
        "ms": t.ms if t.ms < float("inf") else None,
        "default": t.default,
        "tiled": t.tiled,
        "improved": t.improved,
        "trace": trace,
    }
    folder.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=folder, prefix=".record-")
    with os.fdopen(handle, "w") as f:
        json.dump(record, f)
    os.replace(temporary, _file(folder, t.digest))


def _plain(value: Any) -> Any:
    """TVM's JSON values as Python's own."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if hasattr(value, "items"):
        return {str(k): _plain(v) for k, v in value.items()}
    if hasattr(value, "__iter__"):
        return [_plain(v) for v in value]
    return getattr(value, "value", None) if hasattr(value, "value") else str(value)


def recorded(fused: Any, target: Any, folder: Path) -> Any:
    """A MetaSchedule database (use as a context) with the recorded schedules of a module's kernels."""
    from tvm.s_tir import meta_schedule as ms

    database = ms.database.MemoryDatabase()
    for t in tasks_of(fused, target):
        _remember(t, folder)
        if t.trace is None:
            continue
        try:
            schedule = tvm().s_tir.Schedule(t.module)
            tvm().s_tir.schedule.Trace.apply_json_to_schedule(t.trace, schedule)
            workload = database.commit_workload(t.module)
            info = ms.arg_info.ArgInfo.from_prim_func(t.module["main"])
            record = ms.database.TuningRecord(schedule.trace, workload, [t.ms / 1e3], target, info)
            database.commit_tuning_record(record)
        except Exception:  # noqa: BLE001  (a record that this TVM cannot read: the kernel keeps its default)
            continue
    return database
