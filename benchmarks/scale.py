"""How load, saturation and climbing grow with the model: `benchmarks/results/scale.md` and `scale.json`.

    python benchmarks/scale.py [--sizes 1000 2000 …] [--models deep-decoder nas-cells] [--out FILE without suffix]

Models of the zoo that come in any size: a decoder whose layers are all alike, and random cells of which no two are.
Each run is a process of its own; seconds are those of its processor (wall seconds are in the record), memory is the
most that it held. Climbing under roofline:epyc-1t may price one program for each operator. The exponent is the slope of
log(seconds) over log(operators): 1 is linear.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import math
import platform
import resource
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results" / "scale"
SIZES = {"deep-decoder": (1000, 2000, 5000, 10000, 20000), "nas-cells": (625, 1250, 2500, 5000)}
STAGES = ("load", "saturate", "climb")
ENODES = 1_000_000
DEVICE = "epyc-1t"


def measured(name: str, operators: int) -> dict[str, Any]:
    """One model of the zoo, through all stages, in this process."""
    import numpy as np

    from xrlflow import load, saturate, zoo
    from xrlflow.cost.base import bind
    from xrlflow.cost.roofline import roofline
    from xrlflow.egraph.rules import rule_set
    from xrlflow.policy.base import Budget, extractor

    model = zoo.build(name, operators=operators).SerializeToString()
    rules = len(rule_set())  # read before anything is timed
    found: dict[str, Any] = {"model": name, "rules": rules}
    clock = [time.process_time(), time.monotonic()]

    def lap(stage: str) -> None:
        now = [time.process_time(), time.monotonic()]
        found[stage], found[f"{stage} wall"] = now[0] - clock[0], now[1] - clock[1]
        clock[:] = now

    graph = load(model)
    lap("load")
    space = saturate(graph, max_enodes=ENODES)
    lap("saturate")
    cost = bind(roofline(DEVICE), space)
    climbed = extractor("climb").extract(space, cost, Budget(None, len(graph.operators)), np.random.default_rng(0))
    lap("climb")
    before = float(cost.prices[space.baseline].sum())
    return found | {
        "operators": len(graph.operators), "enodes": space.n_nodes, "classes": space.n_classes,
        "iterations": space.report.iterations, "stop": space.report.stop_reason, "saved": 1 - climbed.cost / before,
        "climbed": climbed.stop_reason, "total": sum(found[s] for s in STAGES),
        "MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }  # fmt: skip


def exponent(runs: list[dict[str, Any]], what: str) -> float:
    """Slope of log(what) over log(operators) by least squares."""
    x = [math.log(r["operators"]) for r in runs]
    y = [math.log(max(r[what], 1e-3)) for r in runs]
    mean = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mean[0]) * (b - mean[1]) for a, b in zip(x, y, strict=True)) / sum((a - mean[0]) ** 2 for a in x)


def table(runs: list[dict[str, Any]]) -> list[str]:
    columns = [
        "model",
        "operators",
        "e-nodes",
        "load, s",
        "saturate, s",
        "climb, s",
        "total, s",
        "MiB",
        "stopped",
        "saved",
    ]
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    for r in runs:
        seconds = " | ".join(f"{r[s]:.2f}" for s in (*STAGES, "total"))
        lines.append(
            f"| {r['model']} | {r['operators']} | {r['enodes']} | {seconds} | {r['MiB']:.0f} | {r['stop']} "
            f"| {r['saved']:.1%} |"
        )
    for name in dict.fromkeys(r["model"] for r in runs):
        own = [r for r in runs if r["model"] == name]
        if len(own) > 1:
            slopes = " | ".join(f"{exponent(own, s):.2f}" for s in (*STAGES, "total"))
            lines.append(
                f"| {name} | exponent | {exponent(own, 'enodes'):.2f} | {slopes} | {exponent(own, 'MiB'):.2f} | | |"
            )
    return lines


def main() -> int:
    p = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    p.add_argument("--models", nargs="+", default=list(SIZES), choices=list(SIZES))
    p.add_argument("--sizes", nargs="+", type=int, help="numbers of operators (default: those of each model)")
    p.add_argument("--out", type=Path, default=RESULTS)
    p.add_argument("--one", nargs=2, metavar=("MODEL", "OPERATORS"), help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.one:
        print(json.dumps(measured(args.one[0], int(args.one[1]))))
        return 0
    runs: list[dict[str, Any]] = []
    for name in args.models:
        for size in SIZES[name] if args.sizes is None else args.sizes:
            done = subprocess.run(
                [sys.executable, __file__, "--one", name, str(size)], capture_output=True, text=True, check=True
            )
            runs.append(json.loads(done.stdout.splitlines()[-1]))
            r = runs[-1]
            print(f"{name} {r['operators']}: {r['total']:.2f} s, {r['enodes']} e-nodes, {r['MiB']:.0f} MiB", flush=True)
    from xrlflow.cost.target import cpu_model

    command = shlex.join(["python", "benchmarks/scale.py", *sys.argv[1:]])
    facts = f"{cpu_model().split('  ')[0]}, Python {platform.python_version()}; {dt.datetime.now(dt.UTC).date()}"
    lines = [
        "# Growth with the size of the model", "", f"    {command}", "",
        f"{facts}; {runs[0]['rules']} rules. Seconds of the processor, one thread; *saved* is under roofline:{DEVICE}.",
        "", *table(runs), "",
    ]  # fmt: skip
    args.out.with_suffix(".json").write_text(
        json.dumps({"command": command, "facts": facts, "runs": runs}, indent=1) + "\n"
    )
    args.out.with_suffix(".md").write_text("\n".join(lines))
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
