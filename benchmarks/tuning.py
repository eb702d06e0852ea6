"""Which way of finding schedules pays for short tuning: `benchmarks/results/tuning.md`.

    python benchmarks/tuning.py [--trials 16] [--seeds 3]

Of each kernel: the best latency after so many measured candidates, by the register tiles of
`lowering/tvm_schedules.py` followed by random ones (what `lowering/tvm_tuner.py` does), by random ones alone
(MetaSchedule's `replay-trace`), and by MetaSchedule's evolutionary search with its random cost model (the learned one
needs xgboost, and more trials than these to learn from). All finalists of a kernel are then timed again, by turns. A
schedule that LLVM does not get done with in 10 s is a trial lost; finding that out does not count as tuning.

Goes on where it was stopped (`benchmarks/results/tuning.json`).
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import numpy as np
from exports import ROOT, processor, write
from onnx import TensorProto, helper, numpy_helper, shape_inference

import xrlflow
from xrlflow.lowering import tvm_module
from xrlflow.lowering import tvm_tasks as tasks
from xrlflow.lowering import tvm_tuner as tuner
from xrlflow.lowering.tvm_schedules import blocked

RESULTS = ROOT / "benchmarks" / "results"
KERNELS: dict[str, tuple[str, tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "MatMul 64×256×1024": ("MatMul", (64, 256), (256, 1024), {}),
    "MatMul 512×1024×1024": ("MatMul", (512, 1024), (1024, 1024), {}),
    "MatMul 1×1024×1024": ("MatMul", (1, 1024), (1024, 1024), {}),
    "Conv 3×3, 64→64, 56²": ("Conv", (1, 64, 56, 56), (64, 64, 3, 3), {"pads": [1] * 4}),
    "Conv 1×1, 256→64, 27²": ("Conv", (1, 256, 27, 27), (64, 256, 1, 1), {}),
    "Conv 3×3, 128 groups, 28²": ("Conv", (1, 128, 28, 28), (128, 1, 3, 3), {"pads": [1] * 4, "group": 128}),
    "Softmax 4×64×64": ("Softmax", (4, 64, 64), (), {"axis": -1}),
}
"""Operator, shapes of its operand and weight (none: no weight), attributes."""

LIMIT = 10.0
WAYS = ("tiles, then random", "random", "evolutionary")


def model(op: str, x: tuple[int, ...], w: tuple[int, ...], attributes: dict[str, Any]) -> Any:
    weights = []
    if w:
        weights = [numpy_helper.from_array(np.random.default_rng(0).standard_normal(w).astype(np.float32), "w")]
    value = helper.make_tensor_value_info
    node = helper.make_node(op, ["x", "w"][: 1 + len(weights)], ["y"], **attributes)
    ends = value("x", TensorProto.FLOAT, x), value("y", TensorProto.FLOAT, None)
    graph = helper.make_graph([node], "kernel", [ends[0]], [ends[1]], weights)
    opset = [helper.make_opsetid("", 17)]
    return shape_inference.infer_shapes(helper.make_model(graph, opset_imports=opset, ir_version=8))


def context(task: tasks.Task, target: Any, strategy: Any, trials: int, each: int, seed: int, **options: Any) -> Any:
    from tvm.s_tir import meta_schedule as ms

    with target:
        found = ms.TuneContext(
            task.module, target=target, space_generator="post-order-apply", search_strategy=strategy, num_threads=1,
            rand_state=seed,
        )  # fmt: skip
        spaces = found.generate_design_space()
        found.pre_tuning(max_trials=trials, num_trials_per_iter=each, design_spaces=spaces, **options)
    return found


def candidates(way: str, task: tasks.Task, target: Any, trials: int, seed: int, told: list[float]) -> Iterator[Any]:
    """Scheduled modules to measure; the caller adds the seconds of each (inf for a failure) to `told`."""
    from tvm.s_tir import meta_schedule as ms

    if way == WAYS[0]:
        known = [s.mod for s in blocked(task.module, 1)]
        if not known:
            known = [task.module]
        yield from known[:trials]
        trials -= len(known)
    if trials <= 0:
        return
    if way != WAYS[2]:
        found = context(task, target, "replay-trace", trials, trials, seed).generate_measure_candidates() or []
        yield from (c.sch.mod for c in found)
        return
    each = 4
    strategy = ms.search_strategy.EvolutionarySearch(population_size=64, init_min_unmeasured=16, genetic_num_iters=2)
    database = ms.database.MemoryDatabase()
    workload = database.commit_workload(task.module)
    info = ms.arg_info.ArgInfo.from_prim_func(task.module["main"])
    options = {"database": database, "cost_model": ms.cost_model.RandomModel()}
    search = context(task, target, strategy, trials, each, seed, **options)
    while batch := search.generate_measure_candidates():
        results = []
        for c in batch:
            yield c.sch.mod
            seconds = told[-1]
            good = np.isfinite(seconds)
            results.append(ms.runner.RunnerResult([seconds] if good else None, None if good else "failed"))
            if good:
                record = ms.database.TuningRecord(c.sch.trace, workload, [seconds], target, info)
                database.commit_tuning_record(record)
        search.notify_runner_results(batch, results)


def builds(module: Any, target: Any) -> bool:
    """Whether a schedule is compiled within `LIMIT`, tried in a process of its own."""
    child = os.fork()
    if child == 0:
        try:
            tvm_module.tvm().tirx.build(module, target=target)
        finally:
            os._exit(0)
    end = time.monotonic() + LIMIT
    while time.monotonic() < end:
        if os.waitpid(child, os.WNOHANG)[0]:
            return True
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def tuned(way: str, task: tasks.Task, target: Any, trials: int, seed: int) -> tuple[Any, float]:
    """The best library found, and the seconds that it took."""
    start, told, probing = time.monotonic(), list[float](), 0.0
    place = tvm_module.Here("llvm")
    arguments = tuner._tensors(task.module, place.device)
    best, least = None, float("inf")
    for measured, module in enumerate(candidates(way, task, target, trials, seed, told), 1):
        before = time.monotonic()
        usable = builds(module, target)
        probing += time.monotonic() - before
        try:
            if not usable:
                raise TimeoutError
            library = tvm_module.tvm().tirx.build(module, target=target)
            ms = tuner._time(library, place.device, arguments, least)
        except Exception:  # noqa: BLE001 (a schedule that does not build is one trial lost)
            ms = float("inf")
        told.append(ms / 1e3)
        if ms < least:
            best, least = library, ms
        if measured >= trials:
            break
    return best, time.monotonic() - start - probing


def examined(name: str, trials: int, seeds: int) -> dict[str, Any]:
    target = tvm_module.tvm_target("llvm")
    fused = tvm_module.fuse(tvm_module.import_onnx(model(*KERNELS[name])), target)
    task = max(tasks.tasks_of(fused, target), key=lambda t: t.share)
    device = tvm_module.device("llvm")
    finalists: dict[tuple[str, int], Any] = {}
    seconds: dict[str, list[float]] = {}
    for way in WAYS:
        for seed in range(1, 1 + seeds):
            library, took = tuned(way, task, target, trials, seed)
            seconds.setdefault(way, []).append(took)
            if library is not None:
                finalists[way, seed] = library
    arguments = tuner._tensors(task.module, device)
    figures: dict[tuple[str, int], list[float]] = {k: [] for k in finalists}
    for _ in range(15):
        for key, library in finalists.items():
            once = library.time_evaluator("main", device, number=5, repeat=1)(*arguments).results[0]
            figures[key].append(1e3 * once)
    ms = {w: [statistics.median(f) for (way, _), f in figures.items() if way == w] for w in WAYS}
    return {"kernel": name, "ms": ms, "seconds": {w: statistics.fmean(s) for w, s in seconds.items()}}


def report(records: list[dict[str, Any]], trials: int, seeds: int) -> str:
    lines = [
        "# Ways of finding schedules",
        f"\n    python benchmarks/tuning.py --trials {trials} --seeds {seeds}\n",
        f"{processor()}; {datetime.now(UTC):%Y-%m-%d}; xrlflow {xrlflow.__version__}, llvm, one thread.",
        f"ms of the best of {trials} candidates: the mean over {seeds} seeds, and the worst; seconds of tuning.\n",
        f"| kernel | {' | '.join(f'{w}: ms | worst | s' for w in WAYS)} |",
        f"|---|{'--:|' * 3 * len(WAYS)}",
    ]
    for r in records:
        cells = [
            f"{statistics.fmean(r['ms'][w]):.3g} | {max(r['ms'][w]):.3g} | {r['seconds'][w]:.1f}" if r["ms"][w]
            else f"none | | {r['seconds'][w]:.1f}"
            for w in WAYS
        ]  # fmt: skip
        lines.append(f"| {r['kernel']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", default="", help="only kernels whose name contains this")
    options = parser.parse_args()
    file = RESULTS / "tuning.json"
    known: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    for name in KERNELS:
        if options.only in name and name not in known:
            known[name] = examined(name, options.trials, options.seeds)
            print(known[name], flush=True)
            write(file, json.dumps(known, indent=0))
            records = [known[n] for n in KERNELS if n in known]
            write(RESULTS / "tuning.md", report(records, options.trials, options.seeds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
