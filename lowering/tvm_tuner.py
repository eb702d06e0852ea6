"""Short tuning of fused kernels inside one process, and the schedules that it leaves behind.

TVM's own `tune_relax` starts builder processes that take longer to start than a kernel takes to tune. Here each
distinct kernel of a fused module gets candidate schedules, built and timed on the spot. `tvm_tasks` keeps the best.

Shao et al.: Tensor program optimization with probabilistic programs (MetaSchedule), NeurIPS 2022.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .tvm_module import Here, tvm
from .tvm_tasks import ENOUGH, LIGHT, Task, arguments_of, remember, store, tasks_of

if TYPE_CHECKING:
    from .tvm_remote import Remote

FURTHER = 3
"""A kernel that still gains gets so many times its trials at most."""

_NAIVE = 3e7
"""FLOPs above which the unscheduled loop nest is not timed: it would take as long as all trials."""


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
        """Plain figures for reports. ms: of the kernels that were timed, all together."""
        timed = [t.weight * t.ms for t in self.tasks if t.ms < float("inf")]
        return {
            "ms": round(sum(timed), 6),
            "kernels": len(self.tasks),
            "tuned": sum(t.tuned for t in self.tasks),
            "trials": sum(t.trials for t in self.tasks),
            "measured": self.measured,
            "seconds": round(self.seconds, 2),
            "complete": self.complete,
            "judge": self.judge,
            "settled": sum(t.settled(t.trials) for t in self.tasks),
        }


def _tensors(module: Any, on: Any) -> list[Any]:
    rng = np.random.default_rng(0)
    out = []
    for shape, dtype in arguments_of(module):
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
            remember(t, folder)
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
                _improve(t, target, place, wanted, left, folder)
            finally:
                if folder:
                    store(t, folder)
            done += t.trials - before
            complete &= k > 1 or t.trials >= wanted
            if progress is not None:
                progress(done, planned, time.monotonic() - start)
    return Tuning(tasks, done, time.monotonic() - start, complete)


def _plan(tasks: list[Task], trials: int) -> list[int]:
    """Trials for each task: proportional to the root of its share, between the least that counts and twice the mean."""
    if trials <= 0 or not tasks:  # a module that calls the runtime's own functions has none
        return [0] * len(tasks)
    roots = [sqrt(t.share) for t in tasks]
    mean = trials * len(tasks) / sum(roots)
    return [
        int(min(trials, LIGHT) if t.light else min(2 * trials, max(min(ENOUGH, trials), round(mean * r))))
        for t, r in zip(tasks, roots, strict=True)
    ]


def _improve(t: Task, target: Any, place: Here | Remote, wanted: int, seconds: float, folder: Path | None) -> None:
    """Measure candidates until the task has had `wanted` trials or the time is over.

    Each is noted in `folder` before it is built: one that crashes the process, or on which LLVM takes for ever, costs
    that trial and not the kernel, for whoever goes on begins behind it.
    """
    deadline = time.monotonic() + seconds
    arguments = _tensors(t.module, place.device)
    for trace, schedule in _candidates(t, target, wanted):
        t.trials += 1
        if folder:
            store(t, folder)
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
    """Milliseconds: least of a few runs in a row; a hopeless candidate is run once."""
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
