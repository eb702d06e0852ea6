"""How often a verdict is wrong on this machine: `benchmarks/results/confirmation.md`.

    python benchmarks/confirmation.py --searches 300 --planted 0 --seconds 8      # again: goes on
    python benchmarks/confirmation.py --searches 0 --planted 100 --seconds 40

*A/A*: a search among candidates that are the original with other weights, so that none is faster and none is the same
program. Each is timed shortly, the one that looks best goes to `confirm`; what is called faster is an error.
*Planted*: the candidate does 5 % more work, in products of which everything else is equal, and should be called slower.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from exports import ROOT, processor, write
from onnx import helper, numpy_helper

import xrlflow
from xrlflow.cost.confirm import confirm
from xrlflow.cost.database import Database
from xrlflow.cost.target import parse_target
from xrlflow.lowering.ort_session import Session

RESULTS = ROOT / "benchmarks" / "results"
ROWS, WIDTH, LAYERS = 64, 256, 20


def network(seed: int, layers: int = LAYERS) -> onnx.ModelProto:
    """A chain of products and activations: about 1.7 ms a run on one core of 2026. One layer more is 5 % more work."""
    rng = np.random.default_rng(seed)
    nodes, weights = [], []
    for k in range(layers):
        weight = (rng.standard_normal((WIDTH, WIDTH)) / WIDTH**0.5).astype(np.float32)
        weights.append(numpy_helper.from_array(weight, f"w{k}"))
        nodes.append(helper.make_node("MatMul", [f"v{k}", f"w{k}"], [f"m{k}"]))
        nodes.append(helper.make_node("Relu", [f"m{k}"], [f"v{k + 1}"]))
    ends = [helper.make_tensor_value_info(n, 1, [ROWS, WIDTH]) for n in ("v0", f"v{layers}")]
    graph = helper.make_graph(nodes, "network", ends[:1], ends[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def looks_best(candidates: list[onnx.ModelProto]) -> int:
    """The candidate that a short timing puts first, as the best of a search is found."""
    times = []
    for model in candidates:
        session = Session(model)
        times.append(min(session.time(number=2, repeat=5)))
    return int(np.argmin(times))


def search(number: int, seconds: float, folder: Path) -> dict[str, Any]:
    """One A/A search."""
    candidates = [network(1000 + 10 * number + k) for k in range(8)]
    chosen = candidates[looks_best(candidates)]
    return judged("A/A", number, network(number), chosen, seconds, folder)


def planted(number: int, seconds: float, folder: Path) -> dict[str, Any]:
    return judged("planted", number, network(number), network(number, LAYERS + 1), seconds, folder)


def judged(kind: str, number: int, original: Any, candidate: Any, seconds: float, folder: Path) -> dict[str, Any]:
    start = time.monotonic()
    found = confirm(original, candidate, parse_target("onnxruntime"), seconds, database=Database(folder), seed=number)
    return {
        "kind": kind, "number": number, "limit": seconds, "verdict": found.verdict, "speedup": found.speedup,
        "low": found.ci_low, "high": found.ci_high, "margin": found.settings.get("margin"),
        "blocks": found.settings.get("blocks"),
        "original_ms": found.original_ms, "seconds": round(time.monotonic() - start, 2),
    }  # fmt: skip


def report(records: list[dict[str, Any]]) -> str:
    lines = [
        "# How often verdicts are wrong",
        "\n    python benchmarks/confirmation.py --searches 300 --planted 0 --seconds 8",
        "    python benchmarks/confirmation.py --searches 0 --planted 100 --seconds 40\n",
        f"xrlflow {xrlflow.__version__}, onnxruntime, one thread.",
        "A/A: the best of 8 candidates that are no faster; so many searches side by side. Planted: 5 % more work.\n",
        "| | machine | most seconds | side by side | number | faster | tie | slower | median ratio | margin | s |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for kind in ("A/A", "planted"):
        series = ("limit", "jobs", "machine")
        for which in sorted({tuple(r[s] for s in series) for r in records if r["kind"] == kind}):
            own = [r for r in records if r["kind"] == kind and tuple(r[s] for s in series) == which]
            limit, jobs, machine = which
            count = Counter(r["verdict"] for r in own)
            middle = [statistics.median(r[k] for r in own) for k in ("speedup", "margin")]
            counts = " | ".join(str(count[verdict]) for verdict in ("faster", "tie", "slower"))
            took = statistics.mean(r["seconds"] for r in own)
            lines.append(
                f"| {kind} | {machine} | {limit:g} | {jobs} | {len(own)} | {counts} | {middle[0]:.3f} "
                f"| {100 * middle[1]:.1f} % | {took:.1f} |"
            )
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--searches", type=int, default=300)
    parser.add_argument("--planted", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=20.0, help="of one verdict, at most")
    parser.add_argument("--jobs", type=int, default=1, help="comparisons side by side: noisier, if there are few cores")
    options = parser.parse_args()
    file = RESULTS / "confirmation.json"
    records: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
    machine = f"{processor()}; {datetime.now(UTC):%Y-%m-%d}"
    settings = {"limit": options.seconds, "jobs": options.jobs}
    done = {(r["kind"], r["number"]) for r in records if settings.items() <= r.items()}
    # in turn, so that a run that is cut short has some of both
    todo = [
        (kind, run, number)
        for number in range(max(options.searches, options.planted))
        for kind, run, wanted in (("A/A", search, options.searches), ("planted", planted, options.planted))
        if number < wanted and (kind, number) not in done
    ]
    lock = threading.Lock()

    def one(item: tuple[str, Callable[[int, float, Path], dict[str, Any]], int]) -> None:
        record = item[1](item[2], options.seconds, Path(folder)) | {"jobs": options.jobs, "machine": machine}
        with lock:
            records.append(record)
            print(json.dumps(record), flush=True)
            write(file, json.dumps(sorted(records, key=lambda r: (r["kind"], r["limit"], r["number"])), indent=0))
            write(RESULTS / "confirmation.md", report(records))

    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(one, todo))
    print(report(records))
    return 0


if __name__ == "__main__":
    sys.exit(main())
