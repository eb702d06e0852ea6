"""Whether any model goes through, whole: the table `benchmarks/results/fidelity.md`.

    python benchmarks/fidelity.py                         # export, examine, write the table
    python benchmarks/fidelity.py --models bert t5        # only these families
    python benchmarks/fidelity.py --light                 # only the models that onnx brings along

Every model of `catalogue.py` and the nine `light_*` models of onnx's own tests are loaded and saved, then optimised for
a roofline target and saved, and each file is held against the original: valid, the same interface, the same results.

Needs the `models` extra for the exports: pip install -e '.[models]'.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import shlex
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import onnx
from catalogue import FAMILIES, Variant, variants
from exports import ROOT, installed, processor, write

import xrlflow
from xrlflow.egraph.dimension import evaluate
from xrlflow.egraph.graph import Graph, TensorType
from xrlflow.errors import UserError
from xrlflow.lowering import load, save, verify
from xrlflow.lowering.bindings import candidates
from xrlflow.lowering.inputs import random_inputs
from xrlflow.lowering.ort_session import runtime, session_options

TARGET = "roofline:epyc-1t"
STEPS = 100
ENODES = 20_000
BINDINGS = 3


class Unfaithful(Exception):
    """A model did not come back as it went in; the message says what differs."""


def light_models() -> list[Path]:
    """The models that onnx ships with its tests: real architectures, their weights made by ConstantOfShape."""
    return sorted((Path(onnx.__file__).parent / "backend/test/data/light").glob("*.onnx"))


def valid(model: onnx.ModelProto) -> bool:
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError):
        return False
    return True


def strictly_typed(model: onnx.ModelProto) -> bool:
    try:
        onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    except onnx.shape_inference.InferenceError:
        return False
    return True


def interface(model: onnx.ModelProto) -> dict[str, Any]:
    """What callers see: names, types and named axes of inputs and outputs, versions, metadata."""
    defaults = {t.name for t in model.graph.initializer}
    return {
        "inputs": [(i.name, i.type) for i in model.graph.input if i.name not in defaults],
        "outputs": [(o.name, o.type) for o in model.graph.output],
        "opset": sorted((o.domain, o.version) for o in model.opset_import),
        "IR version": model.ir_version,
        "metadata": sorted((p.key, p.value) for p in model.metadata_props),
    }


def compare(before: onnx.ModelProto, path: Path) -> None:
    """Raise `Unfaithful` unless the file is as valid as the original and has its interface."""
    after = onnx.load(path)
    if valid(before):
        onnx.checker.check_model(after, full_check=True)
    if strictly_typed(before) and not strictly_typed(after):
        raise Unfaithful("strict shape inference fails, which passed before")
    was, now = interface(before), interface(after)
    for what in was:
        kept = now[what]
        if what == "opset":  # an import that nothing uses may go
            kept = sorted({*kept, *(o for o in was[what] if o[0] not in ("", "ai.onnx"))})
        if was[what] != kept:
            raise Unfaithful(f"{what}: {now[what]} instead of {was[what]}")


def same_results(before: Path, after: Path | onnx.ModelProto, dynamic: bool, seed: int = 0) -> dict[str, Any]:
    """Raise `Unfaithful` unless both compute the same, for a dynamic model at three bindings or more."""
    found = verify(before, after, seed=seed)
    if not found.passed:
        raise Unfaithful(str(found))
    if dynamic and len(found.bindings) < BINDINGS:
        raise Unfaithful(f"compared at {len(found.bindings)} bindings only: {found}")
    return {
        "judge": found.judge, "samples": found.samples, "bindings": list(found.bindings), "max_rel": found.max_rel,
        "notes": list(found.notes),
    }  # fmt: skip


def check_types(path: Path) -> int:
    """Raise `Unfaithful` unless what loading knows of every value's shape is what ONNX Runtime finds, at `BINDINGS`
    bindings; returns how many extents were compared (0 if the runtime cannot run the model)."""
    graph, model = load(path), onnx.load(path)
    kinds = {n.names[0]: n.type for n in graph.nodes if n.names and isinstance(n.type, TensorType)}
    made = [name for node in model.graph.node for name in node.output if name in kinds]
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in made)
    try:
        session = runtime().InferenceSession(
            model.SerializeToString(), session_options(), providers=["CPUExecutionProvider"]
        )
    except Exception:  # noqa: BLE001 (the runtime has no kernel for some operator)
        return 0
    wanted = [i.name for i in session.get_inputs()]
    compared = ran = 0
    for binding in candidates(graph):
        inputs = random_inputs(graph, 0, binding)
        try:
            found = session.run(made, {name: inputs[name] for name in wanted})
        except Exception:  # noqa: BLE001 (extents at which the model cannot run)
            continue
        for name, value in zip(made, found, strict=True):
            for d, extent in zip(kinds[name].shape or (), value.shape, strict=False):
                if isinstance(d, int) or all(s in binding for s in d.symbols):
                    compared += 1
                    if evaluate(d, binding) != extent:
                        raise Unfaithful(f"{name} is {kinds[name]}, but has shape {value.shape} at {binding}")
        ran += 1
        if ran == BINDINGS:
            break
    return compared


@contextmanager
def measured(into: dict[str, Any], name: str) -> Iterator[None]:
    """Seconds, and megabytes of memory beyond what there was (None where the system cannot tell)."""
    before, start = _memory(reset=True), time.perf_counter()
    yield
    after = _memory(reset=False)
    into[f"{name}_s"] = round(time.perf_counter() - start, 3)
    into[f"{name}_mb"] = None if before is None or after is None else round((after - before) / 1e6, 1)


def _memory(reset: bool) -> int | None:
    """Bytes resident now (after the peak was reset), or at the peak since then. Linux only."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    wanted = "VmRSS:" if reset else "VmHWM:"
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(wanted)), None)


def opaque(graph: Graph) -> dict[str, int]:
    """How often each operator that rules do not know occurs."""
    found = Counter(graph.nodes[i].op.removeprefix("::") for i in graph.operators if graph.nodes[i].opaque)
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def examine(path: Path, dynamic: bool, steps: int = STEPS) -> dict[str, Any]:
    """Send one model through and hold what comes out against it. Raises `Unfaithful` or `UserError`."""
    row: dict[str, Any] = {}
    original = onnx.load(path)
    with tempfile.TemporaryDirectory() as name:
        kept, optimised = Path(name) / "kept.onnx", Path(name) / "optimised.onnx"
        with measured(row, "load"):
            graph = load(path)
        row |= {"operators": len(graph.operators), "coverage": round(graph.coverage, 3), "opaque": opaque(graph)}
        save(graph, kept)
        compare(original, kept)
        row["saved"] = same_results(path, kept, dynamic)
        row["extents"] = check_types(path) if dynamic else 0
        with measured(row, "optimise"):
            # The policy's network would only add to the time: what is in question is the way in and out.
            result = xrlflow.optimize(
                path, method="saturation", target=TARGET, max_steps=steps, max_enodes=ENODES, budget=600.0
            )
        if result.exit_code:
            raise Unfaithful(result.outcome)
        result.save(optimised)
        compare(original, optimised)
        assert result.space is not None
        row |= {
            "enodes": result.space.n_nodes, "saturate_s": round(result.seconds["saturate"], 3),
            "substitutions": sum(s.scope for s in result.substitutions), "outcome": result.outcome,
        }  # fmt: skip
        if result.improved:
            # Once more, with other inputs than the run itself verified with, and from the file.
            row["optimised"] = same_results(path, optimised, dynamic, seed=1)
    return row


Subject: TypeAlias = Path | Variant
"""A model of the table: a file that onnx brings along, or an export."""


def account(subject: Subject, steps: int = STEPS) -> dict[str, Any]:
    """The row of a model: what `examine` found, or an `error`. Makes the export if need be, on one thread."""
    import torch

    torch.set_num_threads(1)
    if isinstance(subject, Variant):
        row: dict[str, Any] = {"model": subject.name, "kind": FAMILIES[subject.family].kind}
    else:
        row = {"model": subject.stem, "kind": "from onnx"}
    try:
        if isinstance(subject, Variant):
            return row | examine(subject.file(), subject.dynamic, steps)
        return row | examine(subject, False, steps)
    except (Unfaithful, UserError) as error:
        return row | {"error": str(error)}
    except Exception as error:  # noqa: BLE001 (a crash is a row as well)
        return row | {"error": f"{type(error).__name__}: {error}"}


HEAD = """\
| model | kind | operators | core | e-nodes | sites changed | compared by | bindings | load, s | load, MB | optimise, s | optimise, MB | opaque operators |
|---|---|--:|--:|--:|--:|---|--:|--:|--:|--:|--:|---|"""  # noqa: E501

COLUMNS = """\
- *operators*: operators of the model as it came in; *core*: the share of them that rules know; *opaque operators*: how
  often each of the others occurs. They are kept as they are.
- *e-nodes*: size of the saturated e-graph; *sites changed*: where the result differs from the original (— where nothing
  cheaper was found within the weight limit: the original's bytes are the result).
- *compared by*: what computed both models' outputs: ONNX Runtime, or the float64 reference evaluator where the runtime
  lacks a kernel (it has few for bfloat16). *bindings*: at how many bindings of the symbolic dimensions; 1 if there are
  none. The JSON beside this page has the bindings, and what else there is to say: some `light` models have constant
  weights, so that their outputs do not depend on the inputs, which shows less. It also has how many extents of
  intermediate values were held against the shapes that ONNX Runtime found (`extents`).
- *s*, *MB*: seconds, and memory beyond what the process held before, of loading and of the whole optimisation (load,
  saturate, extract, write, verify).
"""


def text(record: dict[str, Any]) -> str:
    """The record as JSON, one line for each row."""
    rows = ",\n  ".join(json.dumps(row, ensure_ascii=False) for row in record["rows"])
    head = json.dumps({k: v for k, v in record.items() if k != "rows"}, indent=1, ensure_ascii=False)
    return head.removesuffix("\n}") + f',\n "rows": [\n  {rows}\n ]\n}}\n'


def line(row: dict[str, Any]) -> str:
    """A row of the record as a row of the Markdown table."""
    if "error" in row:
        return f"| {row['model']} | {row['kind']} | " + " | ".join([*[""] * 10, f"**{row['error']}**"]) + " |"
    last = row.get("optimised") or row["saved"]
    cells = [
        row["model"], row["kind"], row["operators"], f"{row['coverage']:.0%}", row["enodes"],
        row["substitutions"] if "optimised" in row else "—", last["judge"], max(1, len(last["bindings"])),
        f"{row['load_s']:.2f}", row["load_mb"], f"{row['optimise_s']:.1f}", row["optimise_mb"],
        ", ".join(f"{op} {count}" for op, count in row["opaque"].items()),
    ]  # fmt: skip
    return "| " + " | ".join(map(str, cells)) + " |"


def page(record: dict[str, Any]) -> str:
    """The record as a Markdown page."""
    versions = ", ".join(f"{package} {number}" for package, number in record["versions"].items())
    rows = record["rows"]
    passed = [r for r in rows if "error" not in r]
    lacking = [f"- {name} by {how}: {why}" for name, f in FAMILIES.items() for how, why in f.lacking.items()]
    summary = (
        f"{len(passed)} of {len(rows)} models came back whole: loaded and saved, and optimised and saved, they are "
        "valid where they were, strictly typed where they were, with the same inputs, outputs, dynamic axes, opset, "
        "IR version and metadata, and compute the same."
    )
    return "\n".join(
        [
            "# Fidelity",
            "",
            f"    {record['command']}",
            "",
            f"{record['machine']}; {record['date']}; {versions}. Target `{TARGET}`, {STEPS} cost evaluations.",
            "",
            summary,
            "",
            HEAD,
            *map(line, rows),
            "",
            COLUMNS,
            "Not exported:",
            "",
            *lacking,
            "",
        ]
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--models", nargs="+", choices=FAMILIES, default=list(FAMILIES), metavar="NAME", help=", ".join(FAMILIES)
    )
    parser.add_argument("--light", action="store_true", help="only the models that onnx brings along")
    parser.add_argument("--only", default="", metavar="TEXT", help="only exports with this in their names")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "fidelity", help="no suffix")
    options = parser.parse_args()
    packages = ("torch", "transformers", "onnxscript", "onnx", "onnxruntime", "egglog")
    record: dict[str, Any] = {
        "command": shlex.join(["python", "benchmarks/fidelity.py", *sys.argv[1:]]),
        "machine": processor(),
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "versions": {"xrlflow": xrlflow.__version__, **{p: installed(p) for p in packages}},
        "rows": [],
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    models: list[Subject] = light_models() if options.light or options.models == list(FAMILIES) else []
    if not options.light:
        models += [v for name in options.models for v in variants(name)]
    for model in models:
        if options.only not in (model.name if isinstance(model, Variant) else model.stem):
            continue
        row = account(model)
        record["rows"].append(row)
        # Written after every row, so that an interrupted run leaves what it found.
        write(options.output.with_suffix(".json"), text(record))
        write(options.output.with_suffix(".md"), page(record))
        print(line(row), flush=True)
    return 1 if any("error" in row for row in record["rows"]) else 0


if __name__ == "__main__":
    sys.exit(main())
