"""The main job on two real models: SqueezeNet (from the onnx package) and a BERT encoder, by three methods.

    python benchmarks/demo.py [--target TARGET] [--budget 90] [--out FOLDER]

SqueezeNet is measured on ONNX Runtime, BERT on kernels that TVM compiles and tunes; `--target` puts both on one target.

The kernels of each search space are measured first, so that all methods search by the same prices. Then each model is
optimised by greedy search, by saturation and by the shipped RL policy; every result is verified against
the original and measured against it end to end. The table shows what the cost model predicted and what the measurement
says; where nothing was measured faster, the original is what is written.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import xrlflow
from xrlflow import zoo
from xrlflow.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
TARGETS = {"squeezenet": "onnxruntime", "bert": "llvm"}
METHODS = ("greedy", "saturation", "rl")
KERNEL_SECONDS = 60.0
"""For the kernels of one model; what is not measured by then is priced by the calibrated roofline."""
STEPS = 4000
"""Cost evaluations of each method."""
HEAD = (
    "model",
    "target",
    "method",
    "e-nodes",
    "predicted ms",
    "saved",
    "measured ms",
    "speed-up",
    "verdict",
    "verified",
)


def models() -> dict[str, object]:
    """The two models, weights seeded."""
    return {
        "squeezenet": zoo.build("squeezenet"),
        "bert": zoo.build("bert", layers=4, hidden=256, heads=4, intermediate=1024, tokens=128, vocab=8192),
    }


def measure_kernels(path: Path, target: str, trials: int, seconds: float) -> None:
    """Fill the database with the kernels that searches of the model's space ask for; the runs find them there."""
    from xrlflow.cost.base import bind
    from xrlflow.cost.target import parse_target
    from xrlflow.lowering.onnx_forms import meant_for
    from xrlflow.options import Options
    from xrlflow.pricing import cost_model, refine

    wanted, start = parse_target(target), time.monotonic()
    if wanted.measured:
        model = cost_model(wanted, None, Options(trials=trials), seconds, None)
        cost = bind(model, xrlflow.saturate(meant_for(xrlflow.load(path), wanted.kind)))
        refine(cost, seconds - (time.monotonic() - start))
        print(f"{path.stem}: {model.coverage}", flush=True)  # type: ignore[attr-defined]


def row(name: str, method: str, report: dict[str, Any]) -> tuple[str, ...]:
    cost, latency = report["cost"], report.get("latency")
    saved = 1 - cost["optimized"] / cost["original"]
    measured = speedup = verdict = "-"
    if latency and latency["original_ms"] is not None:
        measured = f"{latency['original_ms']:.2f} → {latency['optimized_ms']:.2f}"
        speedup = f"{latency['speedup']:.3f} [{latency['ci_low']:.3f}, {latency['ci_high']:.3f}]"
    if latency:
        verdict = latency["verdict"] if latency["judge"] else "not a judge"
    verified = report.get("verification", {}).get("verdict", "unchanged")
    predicted = f"{cost['original']:.3f} → {cost['optimized']:.3f}"
    return (
        name,
        report["target"],
        method,
        str(report["egraph"]["enodes"]),
        predicted,
        f"{saved:.1%}",
        measured,
        speedup,
        verdict,
        verified,
    )


def show(rows: list[tuple[str, ...]]) -> None:
    widths = [max(len(r[i]) for r in [HEAD, *rows]) for i in range(len(HEAD))]
    for r in [HEAD, tuple("-" * w for w in widths), *rows]:
        print("  ".join(cell.ljust(w) for cell, w in zip(r, widths, strict=True)).rstrip())


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--target", help="llvm, cuda, onnxruntime or roofline:DEVICE (default: one for each model)")
    p.add_argument("--budget", type=float, default=90.0, help="seconds for each result (default: %(default)s)")
    p.add_argument("--trials", type=int, default=4, help="schedules TVM tries for a kernel (default: %(default)s)")
    p.add_argument("--out", type=Path, default=ROOT / ".build" / "demo", help="where the results go")
    args = p.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    started, rows, notes = time.monotonic(), [], []
    verdicts: dict[str, Any] = {}
    for name, model in models().items():
        target = args.target or TARGETS[name]
        (args.out / f"{name}.onnx").write_bytes(model.SerializeToString())  # type: ignore[attr-defined]
        measure_kernels(args.out / f"{name}.onnx", target, args.trials, KERNEL_SECONDS)
        for method in METHODS:
            print(f"{time.monotonic() - started:4.0f} s  {name}, {method} …", flush=True)
            result = xrlflow.optimize(
                args.out / f"{name}.onnx", method=method, target=target, budget=args.budget,
                trials=args.trials, max_steps=STEPS, progress=None, verdicts=verdicts,
            )  # fmt: skip
            result.save(args.out / f"{name}-{method}.onnx")
            (args.out / f"{name}-{method}.json").write_text(json.dumps(result.report, indent=2))
            rows.append(row(name, method, result.report))
            notes.append((f"{name}, {method}", result.outcome, [str(s) for s in result.substitutions]))
    print()
    show(rows)
    print()
    for title, outcome, lines in notes:
        print(f"{title}: {outcome}")
        for line in lines[:3]:
            print(f"    {line}")
        if len(lines) > 3:
            print(f"    … and {len(lines) - 3} more kinds (in the JSON record)")
    where = args.out.relative_to(Path.cwd()) if args.out.is_relative_to(Path.cwd()) else args.out
    print(f"\nresults and records are in {where}; {time.monotonic() - started:.0f} s")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        print(f"demo: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
