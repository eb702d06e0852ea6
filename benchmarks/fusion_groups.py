"""How well TVM's fusion is predicted: `benchmarks/results/fusion_groups.md`.

    python benchmarks/fusion_groups.py                      # the zoo's graphs and random candidates of each
    python benchmarks/fusion_groups.py --models bert vit --candidates 3

Each graph, and some programs that random moves through its search space lead to, is written as ONNX and given to TVM,
which legalises it, folds constants and runs `FuseOps`. A kernel counts as predicted if the `fusion` cost forms one of
the same functions with a result of the same type; each kernel of TVM's is matched once.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter
from datetime import UTC, datetime
from typing import Any

import numpy as np
from exports import ROOT, processor, write

import xrlflow
from xrlflow.cost.base import bind
from xrlflow.cost.fusion import fusion
from xrlflow.cost.ledger import settled
from xrlflow.cost.units import Units
from xrlflow.egraph.graph import Graph, TensorType, TupleType
from xrlflow.egraph.saturate import saturate
from xrlflow.lowering import load, to_onnx, tvm_module
from xrlflow.policy.state import State
from xrlflow.policy.substitution import Substitutions
from xrlflow.zoo import build

Kernel = tuple[tuple[str, ...], str]
"""The names of a kernel's functions, sorted, and the type of its result."""

USUAL = (
    "squeezenet-paper", "squeezenet", "inception-v3-paper", "inception-v3", "resnext50-paper", "resnext-tiny",
    "vgg19-bn-tiny", "resnet50-v1.5", "mobilenet-v2", "efficientnet", "nasnet-a-tiny", "nasnet-a-paper-tiny",
    "nasrnn-cell", "bert-paper", "bert", "vit-paper", "vit", "dalle-paper", "dalle", "transducer-paper-tiny",
    "transducer-tiny", "gpt2-tiny", "llama-tiny", "t5-tiny", "whisper-tiny", "convnext-tiny", "channels-last",
    "mlp-tower",
)  # fmt: skip


def formed(model: Any) -> Counter[Kernel]:
    """The kernels that TVM forms of a model; parts of tuples and what is left of constants are none."""
    t = tvm_module.tvm()
    from tvm import relax

    passes = [
        relax.transform.LegalizeOps(), relax.transform.AnnotateTIROpPattern(), relax.transform.FoldConstant(),
        relax.transform.FuseOps(),
    ]  # fmt: skip
    with tvm_module.tvm_target("llvm"):
        module = t.ir.transform.Sequential(passes)(tvm_module.import_onnx(model))
    found: Counter[Kernel] = Counter()
    for binding in bindings(module["main"]):
        call = binding.value
        if type(call).__name__ != "Call":
            continue
        name = call.op.name if hasattr(call.op, "name") else ""
        if name == "relax.call_tir":
            found[(plain(call.args[0].name_hint),), typed(binding.var)] += 1
        elif hasattr(call.op, "name_hint"):
            inner = [b.value for b in bindings(module[call.op]) if type(b.value).__name__ == "Call"]
            found[tuple(sorted(plain(c.args[0].name_hint) for c in inner)), typed(binding.var)] += 1
    return found


def bindings(function: Any) -> list[Any]:
    return [b for block in function.body.blocks for b in block.bindings]


def plain(name: str) -> str:
    """A function's name without the number that tells it from its namesakes; of a reshape there are several names."""
    name = re.sub(r"\d+$", "", name)
    return "reshape" if name in ("expand_dims", "squeeze") else name


def typed(var: Any) -> str:
    kind = var.ty
    if hasattr(kind, "fields"):
        return ", ".join(one(f) for f in kind.fields)
    return one(kind)


def one(kind: Any) -> str:
    return f"{kind.dtype}[{','.join(str(int(d)) for d in kind.shape)}]"


def predicted(graph: Graph) -> Counter[Kernel]:
    """The kernels that the `fusion` cost forms of a graph."""
    units = Units.of_graph(graph)
    model = fusion("epyc-1t")
    ledger, _ = settled(model.fuser(units, [(units, 1.0)]), list(range(len(graph.nodes))), graph.live)
    found: Counter[Kernel] = Counter()
    for members in ledger.kernels():
        names = sorted(plain(n) for i, j in members for n in ledger.fuser.found[i][j].names)
        if not names:
            continue
        i, j = members[-1]
        kind = units.types[units.value[i]]
        if j < len(ledger.fuser.found[i]) - 1:
            kind = units.types[units.kids[i][max(0, ledger.fuser.found[i][j].reads[0])]]
            if names == ["transpose"] and isinstance(kind, TensorType):  # an operand of Gemm
                kind = TensorType((kind.shape or ())[::-1], kind.dtype)
        items = kind.items if isinstance(kind, TupleType) else (kind,)
        found[tuple(names), ", ".join(f"{t.dtype}[{','.join(map(str, t.shape or ()))}]" for t in items)] += 1
    return found


def candidates(graph: Graph, number: int, seed: int = 0) -> list[Graph]:
    """Programs that random walks through the graph's search space end at, the graph itself first."""
    space = saturate(graph, seconds=20.0, max_enodes=20_000)
    cost = bind(fusion("epyc-1t"), space)
    state = State(Substitutions(space, cost))
    start, rng = state.snapshot(), np.random.default_rng(seed)
    found = [graph]
    for _ in range(number):
        state.restore(start)
        for _ in range(int(rng.integers(3, 40))):
            legal = np.flatnonzero(state.legal)
            if not len(legal):
                break
            state.apply(int(rng.choice(legal)))
        found.append(space.to_graph(state.selection()))
    return found


def compared(name: str, number: int, verbose: bool) -> dict[str, Any]:
    record: dict[str, Any] = {"model": name, "programs": 0, "kernels": 0, "predicted": 0, "failed": 0}
    for graph in candidates(load(build(name)), number):
        model = to_onnx(graph)
        try:
            theirs = formed(model)
        except Exception as error:  # noqa: BLE001 (TVM's importer raises what it likes)
            record["failed"] += 1
            record["error"] = (str(error).splitlines() or [""])[-1][:120]
            continue
        ours = predicted(load(model))
        record["programs"] += 1
        record["kernels"] += sum(theirs.values())
        record["predicted"] += sum((theirs & ours).values())
        if verbose:
            for kernel, n in (theirs - ours).items():
                print("  TVM", n, kernel)
            for kernel, n in (ours - theirs).items():
                print("  we ", n, kernel)
    return record


def report(records: list[dict[str, Any]], command: str) -> str:
    kernels, right = (sum(r[k] for r in records) for k in ("kernels", "predicted"))
    rows = [
        f"| {r['model']} | {r['programs']} | {r['kernels']} | {100 * r['predicted'] / max(1, r['kernels']):.1f} % |"
        for r in records
    ]
    failed = [f"- {r['model']}: {r['failed']} programs ({r['error']})" for r in records if r["failed"]]
    about = f"{processor()}; {datetime.now(UTC):%Y-%m-%d}; xrlflow {xrlflow.__version__}."
    total = f"| all | {sum(r['programs'] for r in records)} | {kernels} | **{100 * right / max(1, kernels):.2f} %** |"
    lines = [
        "# Kernels that TVM forms, predicted",
        f"\n    {command}\n",
        f"{about} A kernel is predicted if it is of the same functions and gives a result of the same type.\n",
        "| model | programs | kernels | predicted |",
        "|---|--:|--:|--:|",
        *rows,
        total,
    ]
    if failed:
        lines += ["\nPrograms that TVM's importer refuses:\n", *failed]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(USUAL), help="models of the zoo")
    parser.add_argument("--candidates", type=int, default=4, help="random programs of each model, beside its own")
    parser.add_argument("--verbose", action="store_true", help="print the kernels that differ")
    options = parser.parse_args()
    records = []
    for name in options.models:
        records.append(compared(name, options.candidates, options.verbose))
        print(json.dumps(records[-1]), flush=True)
    if options.models == list(USUAL):
        text = report(records, "python benchmarks/fusion_groups.py")
        write(ROOT / "benchmarks" / "results" / "fusion_groups.md", text)
        print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
