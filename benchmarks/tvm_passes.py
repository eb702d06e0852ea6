"""TVM's own graph rewrites beside this package's pass: `benchmarks/results/tvm_passes.md`.

    python benchmarks/tvm_passes.py

For each of TVM's passes over Relax that rewrites algebra: an example made for it, and models. All are given constant
weights, constants are folded on both sides, and cost is what the predicted fusion with one roofline (`fusion:a100`)
says of what is left. Nothing is timed. "Ours" is `Optimize` with saturation, by that cost.
"""

from __future__ import annotations

import json
import sys
import textwrap
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any

import numpy as np
from exports import ROOT, processor, write

import xrlflow
from xrlflow.cost.base import bind
from xrlflow.cost.fusion import fusion
from xrlflow.egraph.saturate import saturate
from xrlflow.lowering import fold_constants
from xrlflow.lowering.relax import Optimize, regions
from xrlflow.lowering.tvm_module import import_onnx, tvm, tvm_target
from xrlflow.zoo import build

RESULTS = ROOT / "benchmarks" / "results"
DEVICE = "a100"
STEPS = 2000

EXAMPLES = {
    "CombineParallelMatmul": """
def main(
    x: R.Tensor((64, 256), "float32"), w0: R.Tensor((256, 256), "float32"),
    w1: R.Tensor((256, 256), "float32"), w2: R.Tensor((256, 256), "float32"),
):
    with R.dataflow():
        a = R.matmul(x, w0)
        b = R.matmul(x, w1)
        c = R.matmul(x, w2)
        y = R.multiply(R.nn.relu(a), R.add(b, c))
        R.output(y)
    return y
""",
    "FoldBatchnormToConv2D": """
def main(
    x: R.Tensor((1, 64, 28, 28), "float32"), w0: R.Tensor((64, 64, 3, 3), "float32"),
    w1: R.Tensor((64,), "float32"), w2: R.Tensor((64,), "float32"), w3: R.Tensor((64,), "float32"),
    w4: R.Tensor((64,), "float32"),
):
    with R.dataflow():
        a = R.nn.conv2d(x, w0, padding=1)
        b = R.nn.batch_norm(a, w1, w2, w3, w4, axis=1, training=False)
        y = R.nn.relu(b[0])
        R.output(y)
    return y
""",
    "AdjustMatmulOrder": """
def main(x: R.Tensor((512, 16), "float32"), z: R.Tensor((16, 512), "float32"), w0: R.Tensor((512, 8), "float32")):
    with R.dataflow():
        a = R.matmul(x, z)
        y = R.matmul(a, w0)
        R.output(y)
    return y
""",
    "AdjustMatmulOrder, constants": """
def main(x: R.Tensor((4, 512), "float32"), w0: R.Tensor((512, 512), "float32"), w1: R.Tensor((512, 512), "float32")):
    with R.dataflow():
        a = R.matmul(x, w0)
        y = R.matmul(a, w1)
        R.output(y)
    return y
""",
    "ExpandMatmulOfSum": """
def main(
    x: R.Tensor((16, 256), "float32"), w0: R.Tensor((256, 256), "float32"), z: R.Tensor((256, 4), "float32"),
    v: R.Tensor((4, 256), "float32"),
):
    with R.dataflow():
        a = R.add(w0, R.matmul(z, v))
        y = R.matmul(x, a)
        R.output(y)
    return y
""",
    "ReorderPermuteDimsAfterConcat": """
def main(x: R.Tensor((64, 32), "float32"), z: R.Tensor((64, 32), "float32")):
    with R.dataflow():
        a = R.permute_dims(x, axes=[1, 0])
        b = R.permute_dims(z, axes=[1, 0])
        y = R.concat((a, b), axis=1)
        R.output(y)
    return y
""",
    "ReorderTakeAfterMatmul": """
def main(x: R.Tensor((4, 256), "float32"), i: R.Tensor((1,), "int64"), w0: R.Tensor((16, 256, 64), "float32")):
    with R.dataflow():
        a = R.take(w0, i, axis=0)
        y = R.matmul(x, a)
        R.output(y)
    return y
""",
    "RemoveRedundantReshape": """
def main(x: R.Tensor((4, 256), "float32")):
    with R.dataflow():
        a = R.reshape(x, R.shape([4, 16, 16]))
        b = R.reshape(a, R.shape([8, 128]))
        y = R.nn.relu(b)
        R.output(y)
    return y
""",
    "EliminateCommonSubexpr": """
def main(x: R.Tensor((64, 256), "float32"), w0: R.Tensor((256, 256), "float32")):
    with R.dataflow():
        a = R.matmul(x, w0)
        b = R.matmul(x, w0)
        y = R.multiply(R.nn.relu(a), R.sigmoid(b))
        R.output(y)
    return y
""",
    "DecomposeOpsForInference": """
def main(
    x: R.Tensor((1, 64, 28, 28), "float32"), w1: R.Tensor((64,), "float32"), w2: R.Tensor((64,), "float32"),
    w3: R.Tensor((64,), "float32"), w4: R.Tensor((64,), "float32"),
):
    with R.dataflow():
        b = R.nn.batch_norm(x, w1, w2, w3, w4, axis=1, training=False)
        y = R.nn.relu(b[0])
        R.output(y)
    return y
""",
}  # fmt: skip

TRIES = 5
"""How often TVM's passes are run where they find something, each time on a module that is made anew."""

MODELS = ("bert", "vit", "gpt2", "llama", "t5", "squeezenet", "resnet50-paper", "inception-v3-paper", "nasrnn-paper")


def passes() -> dict[str, Callable[[], Any]]:
    """TVM's passes by name."""
    from tvm import relax

    t = relax.transform
    names = (
        "CombineParallelMatmul", "FoldBatchnormToConv2D", "AdjustMatmulOrder", "ExpandMatmulOfSum",
        "ReorderPermuteDimsAfterConcat", "ReorderTakeAfterMatmul", "RemoveRedundantReshape", "EliminateCommonSubexpr",
        "DecomposeOpsForInference",
    )  # fmt: skip
    return {name: getattr(t, name) for name in names}


Side = tuple[Any, dict[str, Any], Any]
"""A module with its weights as parameters, their values, and the module with them as constants."""


def example(text: str) -> Side:
    """An example, its weights drawn."""
    from tvm import relax

    source = "@I.ir_module\nclass Module:\n    @R.function\n" + textwrap.indent(text.strip("\n"), "    ")
    module = tvm().script.from_source(source)
    values = drawn(module)
    return module, values, relax.transform.BindParams("main", values)(module)


def drawn(module: Any) -> dict[str, Any]:
    """Values for those parameters whose names begin with w."""
    rng = np.random.default_rng(0)
    return {
        str(p.name): (0.5 + rng.random([int(d) for d in p.ty.shape.values])).astype("float32")
        for p in module["main"].params
        if str(p.name).startswith("w")
    }


def imported(name: str) -> Side:
    """A model of the zoo."""
    from tvm import relax
    from tvm.relax.frontend.onnx import from_onnx

    module, values = relax.frontend.detach_params(from_onnx(build(name), keep_params_in_input=True))
    arrays = values["main"]
    names = [str(p.name) for p in module["main"].params][-len(arrays) :]
    return module, dict(zip(names, arrays, strict=True)), import_onnx(build(name))


def told(module: Any) -> dict[str, Any]:
    """Operators and cost of a module, constants folded."""
    from tvm import relax

    t = relax.transform
    clean = [t.FoldConstant(), t.CanonicalizeBindings(), t.DeadCodeElimination()]
    with tvm_target("llvm"):
        module = tvm().ir.transform.Sequential(clean)(module)
    operators: dict[str, int] = {}
    ms = 0.0
    for region in regions(module):
        graph = fold_constants(region.graph)
        space = saturate(graph, rules=[])
        ms += bind(fusion(DEVICE), space).total(space.original)
        for op, n in graph.count().items():
            operators[op] = operators.get(op, 0) + n
    return {"operators": operators, "us": 1e3 * ms}


def theirs(make: Callable[[], Any], given: Any, values: dict[str, Any], module: Any) -> dict[str, Any]:
    """What a pass of TVM makes of a module; some look for parameters, some for constants: the better of both counts."""
    from tvm import relax

    bound: Any = relax.transform.BindParams("main", values)
    found: list[dict[str, Any]] = []
    for late in (False, True):
        try:
            with tvm_target("llvm"):
                found.append(told(bound(make()(given)) if late else make()(module)))
        except Exception as error:  # noqa: BLE001 (what TVM raises where a pass does not apply)
            failure = {"error": str(error).splitlines()[0][:120]}
    return min(found, key=lambda f: f["us"]) if found else failure


def examined(name: str, source: Callable[[], Side]) -> dict[str, Any]:
    """What each pass, and ours, make of what `source` makes."""
    given, values, module = source()
    record: dict[str, Any] = {"name": name, "before": told(module), "after": {}}
    wanted = name.partition(",")[0]
    for label, make in passes().items():
        if wanted in passes() and label != wanted:
            continue
        found = [theirs(make, given, values, module)]
        if found[0] != record["before"]:  # what CombineParallelMatmul finds depends on addresses: the best counts
            found += [theirs(make, *source()) for _ in range(TRIES - 1)]
        record["after"][label] = min(found, key=lambda f: f.get("us", float("inf")))
    options: dict[str, Any] = {
        "method": "saturation",
        "target": f"roofline:{DEVICE}",
        "cost": f"fusion:{DEVICE}",
        "max_steps": STEPS,
        "verify": wanted in passes(),
    }
    ours: Any = Optimize(budget=600.0, max_weight_growth=1.05, **options)
    record["ours"] = told(ours(module))
    return record


def summary(found: dict[str, Any]) -> str:
    if "error" in found:
        return f"fails: {found['error']}"
    count = sum(found["operators"].values())
    return f"{count}, {found['us']:.1f}"


def report(records: list[dict[str, Any]]) -> str:
    examples = [r for r in records if r["name"].partition(",")[0] in passes()]
    models = [r for r in records if r not in examples]
    lines = [
        "# TVM's graph rewrites and ours",
        "\n    python benchmarks/tvm_passes.py\n",
        f"{processor()}; {datetime.now(UTC):%Y-%m-%d}; xrlflow {xrlflow.__version__}, apache-tvm {tvm().__version__}.",
        f"Operators, and µs by fusion:{DEVICE}; constants folded on all sides. Nothing is timed.",
        f"What CombineParallelMatmul finds depends on addresses: the best of {TRIES} runs counts.\n",
        "An example made for each of TVM's passes:\n",
        "| pass | before | TVM's pass | ours | what is left, TVM's | ours |",
        "|---|--:|--:|--:|---|---|",
    ]
    for r in examples:
        (theirs,) = r["after"].values()
        left = [" ".join(f"{n}×{op}" for op, n in f.get("operators", {}).items()) for f in (theirs, r["ours"])]
        cells = [r["name"], summary(r["before"]), summary(theirs), summary(r["ours"]), *left]
        lines.append(f"| {' | '.join(cells)} |")
    names = list(passes())
    lines += [
        "\nModels of the zoo, by TVM's ONNX importer; a pass that changes neither number is a dash:\n",
        f"| model | before | ours | {' | '.join(names)} |",
        f"|---|--:|--:|{'--:|' * len(names)}",
    ]
    for r in models:
        before = summary(r["before"])
        cells = ["–" if (s := summary(r["after"][n])) == before else s for n in names]
        lines.append(f"| {r['name']} | {before} | {summary(r['ours'])} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    tvm()
    warnings.simplefilter("ignore")
    records = []
    for name, text in EXAMPLES.items():
        records.append(examined(name, partial(example, text)))
        print(name, summary(records[-1]["before"]), summary(records[-1]["ours"]), records[-1]["after"], flush=True)
    for name in MODELS:
        records.append(examined(name, partial(imported, name)))
        print(name, summary(records[-1]["before"]), summary(records[-1]["ours"]), flush=True)
        write(RESULTS / "tvm_passes.json", json.dumps(records, indent=0))
        write(RESULTS / "tvm_passes.md", report(records))
    return 0


if __name__ == "__main__":
    sys.exit(main())
