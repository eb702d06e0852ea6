"""The kernels of a fused module as tasks of tuning, and the records that are kept of them.

The best schedule is kept in one small file per kernel, so that processes may share a folder and a damaged file costs
one kernel; later compilations of any graph with the same kernel use it.
"""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from .tvm_module import tvm

ENOUGH = 8
"""Trials from which on a kernel counts as tuned, if no register-tiled schedule (`tvm_schedules`) fits it."""

LIGHT = 4
"""Trials that are enough for a kernel that hardly computes: fewer than `_INTENSE` FLOPs per byte of its arguments."""

CANDIDATES = 3
"""Version of the candidate generator; records of another version are tuned anew."""

_INTENSE = 4.0


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


def tasks_of(fused: Any, target: Any) -> list[Task]:
    """The distinct kernels of a fused module, the costliest (by FLOPs and bytes, calls counted) first; those of
    symbolic extents left out."""
    import tvm_ffi
    from tvm.s_tir import meta_schedule as ms

    tasks = []
    for t in ms.relax_integration.extract_tasks(fused, target):
        module = t.dispatched[0]
        flops = _flops(module)
        try:
            arguments = arguments_of(module)
        except TypeError:  # of symbolic extents: nothing that could be timed
            continue
        size = float(sum(prod(shape) * np.dtype(dtype).itemsize for shape, dtype in arguments))
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


def arguments_of(module: Any) -> list[tuple[tuple[int, ...], str]]:
    """Shapes and dtypes of a kernel's arguments, results included. Raises `TypeError` for symbolic extents."""
    from tvm.s_tir import meta_schedule as ms

    infos = ms.arg_info.ArgInfo.from_prim_func(module["main"])
    return [(tuple(int(d) for d in a.shape), str(a.dtype)) for a in infos]


def _file(folder: Path, digest: str) -> Path:
    return folder / f"{digest}-{CANDIDATES}.json"


def remember(t: Task, folder: Path) -> None:
    """Fill in what is recorded of a task, if anything."""
    try:
        record = json.loads(_file(folder, t.digest).read_text())
        ms = float("inf") if record["ms"] is None else float(record["ms"])
        t.trials, t.ms, t.trace = record["trials"], ms, record["trace"]
        t.default, t.tiled, t.improved = record["default"], record["tiled"], record.get("improved", 0)
    except (OSError, ValueError, KeyError, TypeError):
        return


def store(t: Task, folder: Path) -> None:
    """Record a task, unless another process recorded a better schedule meanwhile."""
    other = Task(t.name, t.weight, t.digest, None, 0.0, 0.0)
    remember(other, folder)
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
        remember(t, folder)
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
