"""What each cost says of the same programs, and what they take: `benchmarks/results/costs.md`.

    python benchmarks/costs.py                                   # goes on where it was stopped
    python benchmarks/costs.py --models squeezenet-paper --candidates 24

Of each model some programs of its search space are drawn: what climbing finds, and where random moves lead. Each is
priced by the sum of its operators' own latencies (`kernels`), by the predicted fusion with a roofline
(`fusion:epyc-1t`) and with timed kernels (`fusion:llvm`; settled: timed once more, all together, as a search does with
its finalists), and run: tuned by TVM, all programs by turns in one process, the median of the rounds counting, as it
does for kernels. All latencies are of kernels with the same tuned schedules, and at the same speed of the machine:
where the two reference kernels, which run along with kernels and programs, say that it was slower or faster, what was
run is corrected by that. Kendall's τ says whether a cost orders programs as they run.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any

import numpy as np
import onnx
from exports import ROOT, processor, write

import xrlflow
from xrlflow.cost.base import bind, payable
from xrlflow.cost.batches import Job
from xrlflow.cost.bench import Bench
from xrlflow.cost.database import Database
from xrlflow.cost.fused import FusedKernels
from xrlflow.cost.fusion import FusionCost, fusion
from xrlflow.cost.references import REFERENCES, pace, reference_model
from xrlflow.cost.roofline import roofline
from xrlflow.cost.target import Target
from xrlflow.cost.worker import Worker, WorkerDied, WorkerError
from xrlflow.egraph.operators import VIEWS
from xrlflow.egraph.saturate import saturate
from xrlflow.egraph.space import SearchSpace, Selection
from xrlflow.lowering import load, to_onnx
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
    "squeezenet-paper": {},
    "inception-block": {},
    "bert": {"layers": 2, "hidden": 256, "heads": 4, "tokens": 64, "vocab": 1000},
    "vit": {"layers": 2, "hidden": 192, "heads": 3, "image": 112},
    "gpt2": {"layers": 2, "hidden": 256, "heads": 4, "tokens": 64, "vocab": 1000},
    "llama": {"layers": 2, "hidden": 256, "heads": 4, "kv_heads": 2, "intermediate": 688, "tokens": 64, "vocab": 1000},
    "t5": {"layers": 1, "hidden": 256, "heads": 4, "intermediate": 1024, "vocab": 1000},
    "dalle-paper": {"layers": 2, "hidden": 256, "heads": 4, "intermediate": 688},
    "nasrnn-cell": {},
}
"""Models, small enough that all of their programs can be tuned."""

COSTS = ("kernels", "fusion:epyc-1t", "fusion:llvm", "fusion, settled", "fusion, by turns")
LLVM = Target("llvm")
TASKS = "xrlflow.cost.measurement"
ALONE = (60, 1000, 60.0)
"""The same for programs alone, whose order is to be told."""

ROUNDS = (40, 400, 45.0)
"""At least and at most, and seconds after which no more are begun than the least."""


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


def operators(space: SearchSpace, chosen: Sequence[Selection]) -> list[list[Job]]:
    """The operators of each program, each as a kernel by itself."""
    paid = payable(space)
    jobs: dict[int, Job] = {}
    for i in {int(i) for s in chosen for i in s.choice[s.choice >= 0] if paid[i]}:
        if space.ops[i] not in VIEWS:
            k = kernel_of(space, i)
            jobs[i] = Job(k.key, k.op, partial(single_model, k, space))
    return [[jobs[i] for i in map(int, s.choice[s.choice >= 0]) if i in jobs] for s in chosen]


def remembered(jobs: Sequence[Job], trials: int, database: Database) -> dict[str, float]:
    """Latencies of these kernels as a search has them: timed once, and kept."""
    distinct = {j.key: j for j in jobs}
    with Bench(LLVM, database, trials) as bench:
        known = bench.remembered(distinct)
        bench.measure([j for key, j in distinct.items() if key not in known], known, time.monotonic() + 3600.0)
    return known


def together(
    models: Mapping[str, onnx.ModelProto], trials: int, database: Database, rounds: tuple[int, int, float]
) -> tuple[dict[str, list[float]], float]:
    """Milliseconds of programs and kernels, all of them once in each round: the machine is the same for all. And how
    many times slower it was than when the reference kernels were first timed; the figures are without that."""
    state = Bench(LLVM, database, trials).state_of("")
    first = {n: database.get(n, LLVM.fingerprint(), LLVM.threads, state) for n in REFERENCES}
    models = {**models, **{name: reference_model(name) for name in REFERENCES}}
    folder = str(database.schedules(LLVM.fingerprint()))
    with Worker() as worker:
        for key, model in models.items():
            try:
                args = (key, model.SerializeToString(), LLVM, folder, trials, 600.0)
                worker.call(f"{TASKS}:prepare_kernel", *args, timeout=900)
            except WorkerDied:
                raise
            except WorkerError as error:
                print(f"{key} does not run: {str(error)[:120]}", flush=True)
        figures: dict[str, list[float]] = worker.call(f"{TASKS}:time_kernels", *rounds, timeout=3600)
    slower = pace(figures, {name: found.ms for name, found in first.items() if found is not None})
    return {key: [ms / slower for ms in found] for key, found in figures.items() if key not in REFERENCES}, slower


def untuned(model: onnx.ModelProto) -> float:
    with Worker() as worker:
        worker.call(f"{TASKS}:prepare_kernel", "untuned", model.SerializeToString(), LLVM, "", 0, 0.0, timeout=600)
        return statistics.median(worker.call(f"{TASKS}:time_kernels", 3, 3, 0.0, timeout=600)["untuned"])


def kendall(a: Sequence[float], b: Sequence[float], sure: Sequence[float] | None = None) -> float | None:
    """Kendall's τ-b of two orders; `sure`: standard errors of b, pairs within two of their difference left out."""
    same = agree = ties = 0
    for i in range(len(a)):
        for j in range(i):
            if sure is not None and abs(b[i] - b[j]) <= 2 * math.hypot(sure[i], sure[j]):
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
    try:
        single = operators(space, chosen)
    except NotSingle:
        single = []
    alone = remembered([j for jobs in single for j in jobs], trials, database)
    rough = bind(fusion("epyc-1t"), space)
    record: dict[str, Any] = {
        "model": name, "sizes": sizes, "operators": len(graph.operators), "enodes": space.n_nodes,
        "trials": trials, "tuning_seconds": round(tuning, 1),
        "fusion:epyc-1t": [rough.total(s) for s in chosen], "fusion:llvm": [cost.total(s) for s in chosen],
        "kernels": [sum(alone[j.key] for j in jobs) for jobs in single] or None,
        "estimate_error": model.coverage.error, "failed": model.coverage.failed,
    }  # fmt: skip
    model.settle([(cost, s) for s in chosen], 600.0)
    record["fusion, settled"] = [cost.total(s) for s in chosen]
    # Once more, kernels and programs by turns.
    clusters = {j.key: j for s in chosen for j in model.jobs(cost, s)}
    models = {f"program {k}": to_onnx(space.to_graph(s)) for k, s in enumerate(chosen)}
    models |= {key: job.model() for key, job in clusters.items() if model.timings.known.get(key, math.inf) < math.inf}
    figures, slower = together(models, trials, database, ROUNDS)
    median = {key: statistics.median(found) for key, found in figures.items()}
    kept = [k for k in range(len(chosen)) if f"program {k}" in median]
    model.know({key: median[key] / clusters[key].copies for key in clusters if key in median}, [cost])
    record["fusion, by turns"] = [cost.total(s) for s in chosen]
    again, later = together({f"program {k}": models[f"program {k}"] for k in kept}, trials, database, ALONE)
    kept = [k for k in kept if f"program {k}" in again]  # TVM's fusion fails on some programs, not each time
    for kind in COSTS:
        if record.get(kind) is not None:
            record[kind] = [record[kind][k] for k in kept]
    runs = [figures[f"program {k}"] for k in kept]
    spread = [float(np.subtract(*np.percentile(f, [75, 25])) / np.median(f)) for f in runs]
    ordered = [again[f"program {k}"] for k in kept]
    quartiles = [float(np.subtract(*np.percentile(f, [75, 25]))) for f in ordered]
    return record | {
        "slower": [slower, later], "programs": len(kept), "ms": [statistics.median(f) for f in runs], "spread": spread,
        "order": [statistics.median(f) for f in ordered],
        "standard_error": [1.25 / 1.35 * q / len(f) ** 0.5 for q, f in zip(quartiles, ordered, strict=True)],
        "judges": judges(space, [chosen[k] for k in kept], database), "untuned": untuned(models["program 0"]),
        "onnxruntime": statistics.median(Session(models["program 0"]).time(number=3, repeat=9)),
    }  # fmt: skip


def judges(space: SearchSpace, chosen: Sequence[Selection], database: Database) -> int:
    """How many of the programs have every kernel above 5 % of their time tuned."""
    folder = str(database.schedules(LLVM.fingerprint()))
    found = 0
    with tempfile.TemporaryDirectory() as name, Worker() as worker:
        for selection in chosen:
            onnx.save(to_onnx(space.to_graph(selection)), f"{name}/model.onnx")
            path = f"{name}/model.onnx"
            try:
                found += worker.call(f"{TASKS}:tune_model", path, LLVM, folder, 0, 0.0, {}, timeout=600)["judge"]
            except WorkerError as error:
                print(f"a program cannot be tuned: {str(error)[:120]}", flush=True)
    return found


def summary(record: dict[str, Any], cost: str) -> tuple[str, ...]:
    """Error against the run, τ over all pairs and over those that are told apart, as texts."""
    ms = record["ms"]
    said = record.get(cost)
    if said is None or not all(map(math.isfinite, said)):
        return "", "", ""
    error = statistics.median(x / y - 1 for x, y in zip(said, ms, strict=True))
    taus = [kendall(said, record["order"]), kendall(said, record["order"], record["standard_error"])]
    return (f"{100 * error:+.0f} %", *("" if t is None else f"{t:.2f}" for t in taus))


def told_apart(record: dict[str, Any]) -> float:
    """Share of the pairs of programs that the runs tell apart."""
    ms, error = record["order"], record["standard_error"]
    pairs = list(itertools.combinations(range(len(ms)), 2))
    return sum(abs(ms[i] - ms[j]) > 2 * math.hypot(error[i], error[j]) for i, j in pairs) / max(1, len(pairs))


def report(records: list[dict[str, Any]]) -> str:
    lines = [
        "# What costs say and what programs take",
        "\n    python benchmarks/costs.py\n",
        f"{processor()}; {datetime.now(UTC):%Y-%m-%d}; xrlflow {xrlflow.__version__}, one thread.",
        "Error: the median over the programs of cost/run - 1. τ: Kendall's, between a cost and the run, over all",
        "pairs of programs; and over those that the runs tell apart, by two standard errors. `fusion:llvm`: kernels as",
        "a search first times them. *Settled*: timed once more, together, as its finalists' are. *By turns*: timed in",
        "the rounds that the programs are run in. Kernels and programs at the speed that the machine had when two",
        "reference kernels, which run along with them, were first timed; *slower*: how much slower it was when the",
        "programs ran.\n",
        "| model | programs | pairs told apart | cost | error | τ | τ of these |",
        "|---|--:|--:|---|--:|--:|--:|",
    ]
    for r in records:
        share = f"{100 * told_apart(r):.0f} %"
        rows = [f"{c} | {' | '.join(summary(r, c))} |" for c in COSTS]
        lines += [f"| {r['model']} | {r['programs']} | {share} | {row}" for row in rows]
    lines += [
        "\nThe input as it stands, in ms, and what tuning and timing took for all programs of a model. A program is *a",
        "judge* if each kernel above 5 % of its time is tuned. Spread: between the quartiles of a program's rounds.\n",
        "| model | untuned | tuned | ONNX Runtime | tuning, s | best program | worst | slower | spread | judges |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for r in records:
        times = [f"{ms:.3g}" for ms in (r["untuned"], r["ms"][0], r["onnxruntime"])]
        rest = [f"{r['tuning_seconds']:.0f}", f"{min(r['ms']):.3g}", f"{max(r['ms']):.3g}"]
        rest += [f"{100 * (r['slower'][0] - 1):+.0f} %"] if "slower" in r else [""]
        rest += [f"{100 * statistics.median(r['spread']):.1f} %", f"{r['judges']} of {r['programs']}"]
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
                  COSTS), flush=True)  # fmt: skip
            write(file, json.dumps(known, indent=0))
            write(RESULTS / "costs.md", report([known[n] for n in USUAL if n in known]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
