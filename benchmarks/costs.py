"""What each cost says of the same programs, and what they take: `benchmarks/results/costs.md`.

    python benchmarks/costs.py                                   # goes on where it was stopped
    python benchmarks/costs.py --models squeezenet-paper --candidates 24

Of each model some programs of its search space are drawn: what climbing finds, and where random moves lead. Each is
priced by the sum of its operators' own latencies (`kernels`), by the predicted fusion with a roofline
(`fusion:epyc-1t`) and with timed kernels (`fusion:llvm`), and run: tuned by TVM, all programs in turn in one process,
the least of the rounds counting, as the least figure does for a kernel. All latencies are of kernels with the same
tuned schedules. Kendall's τ says whether a cost orders programs as they run.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any

import numpy as np
import onnx
from exports import ROOT, processor, write

import xrlflow
from xrlflow.cost.base import bind, payable
from xrlflow.cost.bench import Bench, Job
from xrlflow.cost.database import Database
from xrlflow.cost.fused import FusedKernels
from xrlflow.cost.fusion import FusionCost, fusion
from xrlflow.cost.roofline import roofline
from xrlflow.cost.target import Target
from xrlflow.cost.worker import Worker, WorkerError
from xrlflow.egraph.operators import VIEWS
from xrlflow.egraph.saturate import saturate
from xrlflow.egraph.space import SearchSpace, Selection
from xrlflow.lowering import load, to_onnx, tvm_module
from xrlflow.lowering.onnx_forms import meant_for
from xrlflow.lowering.ort_session import Session
from xrlflow.lowering.single import NotSingle, kernel_of, single_model
from xrlflow.policy.base import Budget, extractor
from xrlflow.policy.state import State
from xrlflow.policy.substitution import Substitutions
from xrlflow.zoo import build

RESULTS = ROOT / "benchmarks" / "results"
USUAL: dict[str, dict[str, int]] = {
    "mlp-tower": {},
    "nasrnn-cell": {},
    "inception-block": {},
    "squeezenet-paper": {},
    "bert": {"layers": 2, "hidden": 256, "heads": 4, "tokens": 64, "vocab": 1000},
    "vit": {"layers": 2, "hidden": 192, "heads": 3, "image": 112},
    "gpt2": {"layers": 2, "hidden": 256, "heads": 4, "tokens": 64, "vocab": 1000},
    "llama": {"layers": 2, "hidden": 256, "heads": 4, "kv_heads": 2, "intermediate": 688, "tokens": 64, "vocab": 1000},
    "t5": {"layers": 1, "hidden": 256, "heads": 4, "intermediate": 1024, "vocab": 1000},
    "dalle-paper": {"layers": 2, "hidden": 256, "heads": 4, "intermediate": 688},
}
"""Models, small enough that all of their programs can be tuned."""

LLVM = Target("llvm")
ROUNDS = 20
NOTICED = 0.02
"""Programs whose latencies differ by less than this share are not told apart by one series of runs."""


def programs(space: SearchSpace, number: int) -> list[Selection]:
    """The original, what climbing finds by two costs, and where random moves lead; no two alike.

    Of many random programs those are taken that lie apart by the sum of their operators' rooflines, up to 1.5 times the
    original's, lest all take the same time.
    """
    costs = [bind(fusion("epyc-1t"), space), bind(roofline("epyc-1t"), space)]
    found = [space.original]
    found += [
        extractor("climb").extract(space, c, Budget(None, 1500), np.random.default_rng(0)).selection for c in costs
    ]
    state, rng = State(Substitutions(space, costs[1])), np.random.default_rng(0)
    start = state.snapshot()
    pool: dict[Selection, float] = {}
    for _ in range(10 * number):
        state.restore(start)
        for _ in range(int(rng.integers(1, 60))):
            legal = np.flatnonzero(state.legal)
            if len(legal):
                state.apply(int(rng.choice(legal)))
        if state.cost < 1.5 * start.cost:
            pool.setdefault(state.selection(), state.cost)
    ranked = sorted((s for s in pool if s not in found), key=lambda s: pool[s])
    places = np.unique(np.linspace(0, len(ranked) - 1, max(1, number - len(set(found)))).round().astype(int))
    return list(dict.fromkeys([*found, *(ranked[k] for k in places.tolist() if ranked)]))


def operators(space: SearchSpace, chosen: Sequence[Selection], trials: int, database: Database) -> list[float]:
    """The sum of the latencies of each program's operators, each by itself, in ms."""
    paid = payable(space)
    kernels: dict[int, Any] = {}
    for i in {int(i) for s in chosen for i in s.choice[s.choice >= 0] if paid[i]}:
        if space.ops[i] not in VIEWS:
            kernels[i] = kernel_of(space, i)
    jobs = {k.key: Job(k.key, k.op, partial(single_model, k, space)) for k in kernels.values()}
    with Bench(LLVM, database, trials) as bench:
        known = bench.remembered(jobs)
        bench.measure([j for key, j in jobs.items() if key not in known], known, time.monotonic() + 3600.0)
    return [sum(known[kernels[i].key] for i in map(int, s.choice[s.choice >= 0]) if i in kernels) for s in chosen]


def timed(paths: Sequence[str], libraries: Sequence[str], rounds: int) -> list[list[float]]:
    """Milliseconds of each compiled program, all of them once in each round; runs in a process of its own."""
    loaded = []
    for path, library in zip(paths, libraries, strict=True):
        specs = tvm_module.input_specs(onnx.load(path, load_external_data=False))
        program = tvm_module.Program(library, specs, "llvm")
        loaded.append((program, tvm_module.timing_inputs(specs)))
    figures: list[list[float]] = [[] for _ in loaded]
    number = [max(1, round(5.0 / max(0.01, p.time(x, 1, 2)[-1]))) for p, x in loaded]
    rng = np.random.default_rng(0)
    for _ in range(rounds):
        for k in rng.permutation(len(loaded)).tolist():
            figures[k].append(loaded[k][0].time(loaded[k][1], number[k], 1)[0])
    return figures


def ends(space: SearchSpace, chosen: Sequence[Selection], database: Database, trials: int) -> dict[str, Any]:
    """Latencies of the programs, compiled as a whole with the schedules that are known."""
    folder = str(database.schedules(LLVM.fingerprint()))
    with tempfile.TemporaryDirectory() as name, Worker() as worker:
        paths, libraries, judge, kept = [], [], [], []
        for k, selection in enumerate(chosen):
            path, library = f"{name}/{k}.onnx", f"{name}/{k}.so"
            onnx.save(to_onnx(space.to_graph(selection)), path)
            tasks = "xrlflow.cost.measurement"
            try:
                worker.call(f"{tasks}:tune_model", path, "llvm", 1, folder, trials, 600.0, {}, timeout=900)
                made = worker.call(f"{tasks}:compile_model", path, "llvm", 1, folder, {}, library, timeout=600)
            except WorkerError as error:
                print(f"program {k} cannot be compiled: {str(error)[:120]}", flush=True)
                continue
            kept.append(k)
            judge.append(made["judge"])
            paths.append(path)
            libraries.append(library)
        untuned = f"{name}/untuned.so"
        worker.call("xrlflow.cost.measurement:compile_model", paths[0], "llvm", 1, "", {}, untuned, timeout=600)
        with Worker() as fresh:
            figures = fresh.call("costs:timed", paths, libraries, ROUNDS, timeout=1200)
            slow = fresh.call("costs:timed", paths[:1], [untuned], 3, timeout=1200)
        session = Session(paths[0])
        return {
            "ms": [min(f) for f in figures],
            "median": [statistics.median(f) for f in figures],
            "spread": [float(np.subtract(*np.percentile(f, [75, 25])) / np.median(f)) for f in figures],
            "kept": kept, "judge": judge, "untuned": statistics.median(slow[0]),
            "onnxruntime": statistics.median(session.time(number=3, repeat=9)),
        }  # fmt: skip


def kendall(a: Sequence[float], b: Sequence[float], least: float = 0.0) -> float | None:
    """Kendall's τ-b of two orders, over the pairs of which b differs by more than `least` of itself."""
    same = agree = ties = 0
    for i in range(len(a)):
        for j in range(i):
            if abs(b[i] - b[j]) <= least * min(b[i], b[j]):
                continue
            x = 0.0 if math.isclose(a[i], a[j], rel_tol=1e-9) else a[i] - a[j]
            agree += 1 if x * (b[i] - b[j]) > 0 else -1 if x else 0
            ties += not x
            same += 1
    return agree / math.sqrt((same - ties) * same) if same > ties else None


def examined(name: str, sizes: dict[str, int], number: int, trials: int) -> dict[str, Any]:
    database = Database()
    graph = meant_for(load(build(name, **sizes)), "llvm")
    space = saturate(graph, seconds=20.0)
    chosen = programs(space, number)
    start = time.monotonic()
    model = FusedKernels(LLVM, database, trials, 1800.0)
    cost = bind(model, space)
    assert isinstance(cost, FusionCost)
    model.measure([(cost, s) for s in chosen], 3600.0)
    tuning = time.monotonic() - start
    rough = bind(fusion("epyc-1t"), space)
    record: dict[str, Any] = {
        "model": name, "sizes": sizes, "operators": len(graph.operators), "enodes": space.n_nodes,
        "programs": len(chosen), "trials": trials, "tuning_seconds": round(tuning, 1),
        "fusion:epyc-1t": [rough.total(s) for s in chosen], "fusion:llvm": [cost.total(s) for s in chosen],
        "estimate_error": model.coverage.error, "failed": model.coverage.failed,
    }  # fmt: skip
    try:
        record["kernels"] = operators(space, chosen, trials, database)
    except NotSingle as error:
        record["kernels"] = None
        record["kernels_failed"] = str(error)
    end = ends(space, chosen, database, trials)
    for kind in ("fusion:epyc-1t", "fusion:llvm", "kernels"):
        if record[kind] is not None:
            record[kind] = [record[kind][k] for k in end["kept"]]
    return record | {"programs": len(end["kept"]), "end_to_end": end}


def summary(record: dict[str, Any], cost: str) -> tuple[str, ...]:
    """Error against the run, τ over all pairs and over those that differ noticeably, as texts."""
    ms = record["end_to_end"]["ms"]
    said = record[cost]
    if said is None or not all(map(math.isfinite, said)):
        return "", "", ""
    error = statistics.median(x / y - 1 for x, y in zip(said, ms, strict=True))
    taus = [kendall(said, ms), kendall(said, ms, NOTICED)]
    return (f"{100 * error:+.0f} %", *("" if t is None else f"{t:.2f}" for t in taus))


def report(records: list[dict[str, Any]]) -> str:
    lines = [
        "# What costs say and what programs take",
        "\n    python benchmarks/costs.py\n",
        f"{processor()}; {datetime.now(UTC):%Y-%m-%d}; xrlflow {xrlflow.__version__}, one thread.",
        "τ: Kendall's, between a cost and the run, over all pairs of programs; and over those that differ by more",
        f"than {100 * NOTICED:.0f} %. Error: the median over the programs of cost/run - 1.\n",
        "| model | programs | kernels: error | τ | τ | fusion:epyc-1t: τ | τ | fusion:llvm: error | τ | τ |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for r in records:
        kernels, rough, timed_ = (summary(r, c) for c in ("kernels", "fusion:epyc-1t", "fusion:llvm"))
        lines.append(f"| {r['model']} | {r['programs']} | {' | '.join((*kernels, *rough[1:], *timed_))} |")
    lines += [
        "\nThe input as it stands, in ms, and what TVM's tuning took for all programs of a model. A program is *a",
        "judge* if each kernel above 5 % of its time is tuned.\n",
        "| model | untuned | tuned | ONNX Runtime | tuning, s | best program | spread of runs | judges |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for r in records:
        e = r["end_to_end"]
        times = [f"{ms:.3g}" for ms in (e["untuned"], e["ms"][0], e["onnxruntime"])]
        spread = f"{100 * statistics.median(e['spread']):.1f} %"
        rest = [f"{r['tuning_seconds']:.0f}", f"{min(e['ms']):.3g}", spread, f"{sum(e['judge'])} of {r['programs']}"]
        lines.append(f"| {r['model']} | {' | '.join([*times, *rest])} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(USUAL))
    parser.add_argument("--candidates", type=int, default=20, help="programs of each model")
    parser.add_argument("--trials", type=int, default=4, help="schedules tried for each kernel")
    parser.add_argument("--again", action="store_true", help="also those that are there already")
    options = parser.parse_args()
    file = RESULTS / "costs.json"
    known: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    for name in options.models:
        if options.again or name not in known:
            start = time.monotonic()
            known[name] = examined(name, USUAL.get(name, {}), options.candidates, options.trials)
            print(name, f"{time.monotonic() - start:.0f} s", *(summary(known[name], c) for c in
                  ("kernels", "fusion:epyc-1t", "fusion:llvm")), flush=True)  # fmt: skip
            write(file, json.dumps(known, indent=0))
            write(RESULTS / "costs.md", report([known[n] for n in USUAL if n in known]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
