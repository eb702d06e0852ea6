"""Extractors on e-graphs that others made: `benchmarks/results/gym.md` and `gym.json`.

    python benchmarks/gym.py                                  # goes on where it was stopped
    python benchmarks/gym.py --extractors ilp --files vgg

Files of the public extraction gym (tests/data/egraphs), in its format and with its costs: what is chosen costs the sum
of its nodes, each once. Every run is a process of its own; memory is the most that it held beyond what it held when the
file was read. Each extractor gets 1, 10 and 60 seconds, in runs of their own, beginning after the file is read. Bounds
are what integer programming proved in that run.
"""

from __future__ import annotations

import argparse
import json
import resource
import shlex
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from exports import ROOT, processor, write

FILES = ROOT / "tests" / "data" / "egraphs"
RESULTS = ROOT / "benchmarks" / "results"
EXTRACTORS = ("tree", "dag", "greedy", "greedy-group", "climb", "beam", "mcts", "random", "ilp", "saturation")
BUDGETS = (1.0, 10.0, 60.0)
ONCE = ("tree", "dag")
"""Extractors that do the same whatever the budget."""


def measured(file: str, name: str, seconds: float) -> dict[str, Any]:
    """One run, in this process."""
    import numpy as np

    from xrlflow.cost.base import Cost
    from xrlflow.egraph.serialized import read_egraph
    from xrlflow.policy.base import Budget, extractor

    source = read_egraph(FILES / f"{file}.json")
    cost = Cost(source.space, source.costs, "file")
    chosen = extractor(name)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    found = chosen.extract(source.space, cost, Budget(seconds), np.random.default_rng(0))
    took = time.perf_counter() - start
    again = cost.total(source.space.selection(found.selection.choice))  # from scratch: raises if it is cyclic
    assert abs(again - found.cost) <= 1e-9 * max(1.0, again)
    return {
        "file": file, "extractor": name, "budget": seconds, "enodes": source.space.n_nodes,
        "classes": source.space.n_classes, "cost": found.cost, "bound": found.extras.get("lower_bound"),
        "proof": found.extras.get("proof"), "seconds": took, "best at": found.trace.points[-1][1],
        "evaluations": found.trace.evaluations, "reason": found.stop_reason,
        "mib": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024,
    }  # fmt: skip


def report(records: list[dict[str, Any]]) -> str:
    command = shlex.join(["python", "benchmarks/gym.py", *sys.argv[1:]])
    lines = [
        "# Extractors on e-graphs that others made",
        f"\n    {command}\n",
        f"{processor()}; {datetime.now(UTC):%Y-%m-%d}; one thread. Cost after 1, 10 and 60 seconds; *best at*: seconds",
        "until the last of these was found; *bound*: what the longest run proved that nothing is below; **bold**:",
        "proved optimal. Seconds and MiB (beyond what the e-graph takes) are those of the longest run.",
    ]
    for file in dict.fromkeys(r["file"] for r in records):
        own = [r for r in records if r["file"] == file]
        lines += [
            f"\n## {file}: {own[0]['enodes']} e-nodes, {own[0]['classes']} classes\n",
            "| extractor | 1 s | 10 s | 60 s | best at, s | bound | s | MiB |",
            "|---|--:|--:|--:|--:|--:|--:|--:|",
        ]
        for name in EXTRACTORS:
            runs = {r["budget"]: r for r in own if r["extractor"] == name}
            if not runs:
                continue
            last = runs[max(runs)]
            cells = [shown(runs[b]) if b in runs else "" for b in BUDGETS]
            if name in ONCE:
                cells = [shown(last)] * len(BUDGETS)
            bound = "" if last["bound"] is None else f"{last['bound']:.7g}"
            lines.append(
                f"| {name} | {' | '.join(cells)} | {last['best at']:.2f} | {bound} | {last['seconds']:.2f} "
                f"| {last['mib']:.0f} |"
            )
    return "\n".join(lines) + "\n"


def shown(record: dict[str, Any]) -> str:
    text = f"{record['cost']:.7g}"
    return f"**{text}**" if record["proof"] == "optimal" else text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    files = sorted(path.stem for path in FILES.glob("*.json"))
    parser.add_argument("--files", nargs="+", default=files, choices=files)
    parser.add_argument("--extractors", nargs="+", default=EXTRACTORS, choices=EXTRACTORS)
    parser.add_argument("--budgets", nargs="+", type=float, default=BUDGETS, help="seconds of each run")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=RESULTS / "gym", help="results, without suffix")
    options = parser.parse_args()
    if options.one:
        file, name, seconds = options.one
        print(json.dumps(measured(file, name, float(seconds))))
        return 0
    file = options.out.with_suffix(".json")
    records: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
    done = {(r["file"], r["extractor"], r["budget"]) for r in records}
    for seconds in options.budgets:
        for name in options.extractors:
            for source in options.files:
                if (source, name, seconds) in done or (name in ONCE and seconds != options.budgets[0]):
                    continue
                command = [sys.executable, __file__, "--one", source, name, str(seconds)]
                out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                records.append(json.loads(out.splitlines()[-1]))
                print(source, name, f"{seconds:g} s", f"{records[-1]['cost']:.7g}", records[-1]["proof"], flush=True)
                order = sorted(records, key=lambda r: (r["file"], EXTRACTORS.index(r["extractor"]), r["budget"]))
                write(file, json.dumps(order, indent=0))
                write(options.out.with_suffix(".md"), report(order))
    return 0


if __name__ == "__main__":
    sys.exit(main())
