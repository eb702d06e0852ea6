"""Models through TVM's own pipeline, without and with the pass: `benchmarks/results/tvm_models.md`.

    python benchmarks/tvm_models.py [--budget 180] [--models light_squeezenet bert]       # goes on where it was stopped

A model whose kernels were not all tuned within the budget, so that its verdict is none, gets three times as much, twice
if need be: tuned kernels are remembered.

The light models of the onnx package and exports of transformers, each by TVM's ONNX importer (`from_onnx`), as they
are and after `Optimize(method="saturation", target="llvm")`; both compiled by TVM's zero and default pipelines with the
same tuned schedules, and run on the same inputs. Reported: how much of a model the reader knows (opaque operators by
name), and the verdict of the pass's own measurement. Whatever that says, the cheapest program by `fusion:epyc-1t` is
put in the model's place, too, compiled whole, and compared: the largest difference of the outputs.

Needs the `models` extra for the exports.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from exports import ROOT, processor, write

import xrlflow
from xrlflow.cost.target import Target
from xrlflow.lowering.relax import ACCOUNT, Optimize, UnreadFunction, compiled, regions
from xrlflow.lowering.tvm_module import Program, import_onnx, input_specs, tvm, tvm_target

RESULTS = ROOT / "benchmarks" / "results"
LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
EXPORTED = ("bert", "distilbert", "gpt2", "opt", "llama", "qwen3", "vit", "swin", "convnext", "segformer")


ATTEMPTS = (1, 3, 3)
"""Times the budget."""

GAIN = {"light_shufflenet": 0.5}
"""Size of drawn weights where that of 1 makes a softmax say exactly 0 and 1, whatever is put in."""


def names() -> list[str]:
    return [*sorted(p.stem for p in LIGHT.glob("light_*.onnx")), *EXPORTED]


def model_of(name: str) -> onnx.ModelProto:
    if name.startswith("light_"):
        return materialised(onnx.load(LIGHT / f"{name}.onnx"), GAIN.get(name, 1.0))
    from catalogue import Variant

    return onnx.load(Variant(name, "dynamo", False).file())  # TVM's importer fails on most of the other exporter's


def materialised(model: onnx.ModelProto, gain: float) -> onnx.ModelProto:
    """The model with its weights as initializers: the light models make them by ConstantOfShape, of shapes that TVM's
    importer does not know then. Drawn anew, for all numbers of such a tensor are the same, and so would outputs be."""
    rng = np.random.default_rng(0)
    shapes = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    for node in [n for n in model.graph.node if n.op_type == "ConstantOfShape" and n.input[0] in shapes]:
        shape = [int(d) for d in shapes[node.input[0]]]
        if len(shape) > 1:  # so that results are of about their operand's size
            array = rng.standard_normal(shape) * (gain / np.prod(shape[1:])) ** 0.5
        else:  # of normalisations, too: a variance must be positive
            array = 0.5 + rng.random(shape)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(np.float32), node.output[0]))
        model.graph.node.remove(node)
    return model


def inputs_of(specs: Any) -> dict[str, np.ndarray]:
    """Normal numbers; token numbers and masks that lookups can take."""
    rng = np.random.default_rng(0)
    return {
        s.name: rng.integers(0, 2, s.shape).astype(s.dtype)
        if np.issubdtype(np.dtype(s.dtype), np.integer) or s.dtype == "bool"
        else rng.standard_normal(s.shape).astype(s.dtype)
        for s in specs
    }


def examined(name: str, budget: float) -> dict[str, Any]:
    model = model_of(name)
    module = import_onnx(model)
    opaque: Counter[str] = Counter()
    operators = 0
    for region in regions(module):
        nodes = [region.graph.nodes[i] for i in region.graph.operators]
        operators += len(nodes)
        opaque.update(n.op.removeprefix("::relax.") for n in nodes if n.opaque)
    record: dict[str, Any] = {"model": name, "operators": operators, "opaque": dict(opaque.most_common())}
    record["budget"] = budget
    start = time.monotonic()
    find: Any = Optimize(method="saturation", target="llvm", budget=budget)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", UnreadFunction)
        found = find(module)
    record["seconds"] = time.monotonic() - start
    record["left"] = [str(w.message) for w in told if issubclass(w.category, UnreadFunction)]
    record["regions"] = [
        {k: v for k, v in r.items() if k != "substitutions"} | {"substitutions": len(r.get("substitutions", ()))}
        for r in json.loads(found.attrs[ACCOUNT])["regions"]
    ]
    return record | forced(model, module)


def forced(model: onnx.ModelProto, module: Any) -> dict[str, Any]:
    """How the outputs differ once the cheapest program is in the model's place, measured faster or not."""
    options: dict[str, Any] = {"target": "roofline:epyc-1t", "cost": "fusion:epyc-1t", "max_steps": 1000}
    find: Any = Optimize(method="saturation", verify=False, **options)
    found, specs, target = find(module), input_specs(model), tvm_target("llvm")
    told = [r for r in json.loads(found.attrs[ACCOUNT])["regions"] if r.get("improved")]
    inputs = inputs_of(specs)
    outputs = [Program(compiled(side, target), specs, "llvm").run(inputs) for side in (module, found)]
    difference = max(
        float(np.abs(a.astype(float) - b.astype(float)).max() / max(1e-9, np.abs(a.astype(float)).max()))
        for a, b in zip(*outputs, strict=True)
    )
    return {"difference": difference, "changed": sum(len(r["substitutions"]) for r in told)}


def judged(record: dict[str, Any]) -> bool:
    """Whether the pass measured the model, with all kernels tuned, or found nothing to measure."""
    return "error" not in record and all(
        r["latency"]["judge"] if r.get("latency") else "found nothing" in r["outcome"] or not r["operators"]
        for r in record["regions"]
    )


def report(records: list[dict[str, Any]], budget: float) -> str:
    columns = ("seconds", "outcome", "before, ms", "after, ms", "ratio", "verdict", "rewrites", "difference")
    lines = [
        "# Models through TVM's pipeline, without and with the pass",
        f"\n    python benchmarks/tvm_models.py --budget {budget:g}\n",
        f"{processor()}; {datetime.now(UTC):%Y-%m-%d}; xrlflow {xrlflow.__version__}, apache-tvm {tvm().__version__},",
        f"{Target('llvm')}, one thread.",
        "Seconds: the budget. ms: before and after, by the pass's own measurement, tuned alike. Opaque: operators that",
        "the reader keeps as they are. Rewrites, difference: of the cheapest program by fusion:epyc-1t, put in its",
        "place whether it is faster or not; the largest difference of any output, as a share of that output's largest",
        "number.\n",
        f"| model | operators | opaque | {' | '.join(columns)} |",
        "|---|--:|---|--:|---|--:|--:|--:|---|--:|--:|",
    ]
    for r in records:
        if "error" in r:
            lines.append(f"| {r['model']} | | | | {r['error']} | | | | | | |")
            continue
        main = max(r["regions"], key=lambda g: g["operators"])
        opaque = ", ".join(f"{n}×{op}" for op, n in r["opaque"].items())
        latency = main.get("latency") or {}
        ms = [f"{latency[k]:.3g}" if latency.get(k) else "" for k in ("original_ms", "optimized_ms", "speedup")]
        verdict = latency.get("verdict", "") + ("" if latency.get("judge", True) else ", not a judge")
        cells = [r["model"], str(r["operators"]), opaque, f"{r.get('budget', 0):g}", main["outcome"], *ms, verdict]
        cells += [str(r.get("changed", "")), f"{r['difference']:.1e}" if "changed" in r else ""]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=names())
    parser.add_argument("--budget", type=float, default=180.0, help="seconds of the pass for each model at first")
    options = parser.parse_args()
    file = RESULTS / "tvm_models.json"
    known: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    for name, attempt in ((n, k) for n in options.models for k in range(len(ATTEMPTS))):
        record, budget = known.get(name, {}), ATTEMPTS[attempt] * options.budget
        if record and (record.get("attempt", -1) >= attempt or judged(record)):
            continue
        try:
            known[name] = examined(name, budget) | {"attempt": attempt}
        except Exception as error:  # noqa: BLE001 (importers and compilers have errors of many types)
            known[name] = {"model": name, "error": f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"}
            known[name] |= {"budget": budget, "attempt": attempt}
        print(name, {k: v for k, v in known[name].items() if k != "regions"}, flush=True)
        print("   ", [r["outcome"] for r in known[name].get("regions", ())], flush=True)
        write(file, json.dumps(known, indent=0))
        write(RESULTS / "tvm_models.md", report([known[n] for n in names() if n in known], options.budget))
    return 0


if __name__ == "__main__":
    sys.exit(main())
