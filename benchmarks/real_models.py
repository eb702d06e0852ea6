"""What xrlflow does to real models: the table `benchmarks/results/real_models.md`.

    python benchmarks/real_models.py                        # export, optimise, measure, write the table
    python benchmarks/real_models.py --export-only          # only write the models
    python benchmarks/real_models.py --models bert --methods greedy rl --budget 60

BERT, ViT and a Llama-like decoder are built by `transformers` with random weights and exported as a user would,
`torch.onnx.export(..., dynamo=True)` with everything else at its default; SqueezeNet and ResNet-50 come from the zoo.
Sizes are small, so that a model runs in 5 to 100 ms on one CPU thread; the operators and their order are the real ones.
The exports are kept in a folder that git ignores and made again when a configuration or a version changes.

Needs the `models` extra for the exports: pip install -e '.[models]'.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import shlex
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from exports import FOLDER, ROOT, Example, cached, check, export, installed, processor, write

import xrlflow
from xrlflow import zoo
from xrlflow.errors import UserError

METHODS = ("greedy", "saturation", "rl")
VERDICTS: dict[str, Any] = {}
"""Measurements of this run, so that methods which choose the same program share one."""
TOKENS = 128

BERT = {
    "num_hidden_layers": 4, "hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 1024, "vocab_size": 8192,
}  # fmt: skip
VIT = {
    "num_hidden_layers": 4, "hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768, "num_labels": 1000,
}  # fmt: skip
LLAMA = {
    "num_hidden_layers": 4, "hidden_size": 256, "num_attention_heads": 8, "num_key_value_heads": 4,
    "intermediate_size": 688, "vocab_size": 4096, "use_cache": False,
}  # fmt: skip


def bert() -> Example:
    import torch
    from transformers import BertConfig, BertModel

    ids = torch.randint(0, BERT["vocab_size"], (1, TOKENS))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
    return BertModel(BertConfig(**BERT)), inputs


def vit() -> Example:
    import torch
    from transformers import ViTConfig, ViTForImageClassification

    return ViTForImageClassification(ViTConfig(**VIT)), {"pixel_values": torch.randn(1, 3, 224, 224)}


def llama() -> Example:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**LLAMA)), {"input_ids": torch.randint(0, LLAMA["vocab_size"], (1, TOKENS))}


EXPORTED: dict[str, tuple[Callable[[], Example], dict[str, Any]]] = {
    "bert": (bert, BERT),
    "vit": (vit, VIT),
    "llama": (llama, LLAMA),
}
FROM_ZOO = ("squeezenet", "resnet50")
MODELS = (*EXPORTED, *FROM_ZOO)


def model_file(name: str, folder: Path) -> Path:
    """The ONNX file of a model; an export is reused if the folder has one of this configuration and these versions."""
    if name in EXPORTED:
        build, configuration = EXPORTED[name]
        return cached(folder, name, [configuration, TOKENS], partial(export, build))
    path = folder / f"{name}.onnx"
    folder.mkdir(parents=True, exist_ok=True)
    model = zoo.build(name)
    check(model, dynamic=False)
    write(path, model.SerializeToString())
    return path


def optimise(name: str, path: Path, method: str, options: argparse.Namespace) -> dict[str, Any]:
    """One row of the table. A method that fails gives a row with the reason, not the end of the run."""
    started = time.perf_counter()
    row: dict[str, Any] = {"model": name, "method": method}
    try:
        report = xrlflow.optimize(
            path, method=method, target=options.target, budget=options.budget, seed=options.seed, verdicts=VERDICTS
        ).report
    except UserError as error:
        return row | {"error": str(error), "seconds": time.perf_counter() - started}
    rules: Counter[str] = Counter()
    for substitution in report["substitutions"]:
        rules.update(dict.fromkeys(substitution["rules"], substitution["scope"]))
    return row | {
        "operators": report["graph"]["nodes"],
        "coverage": report["graph"]["coverage"],
        "enodes": report.get("egraph", {}).get("enodes"),
        "cost": report.get("cost"),
        "latency": report.get("latency"),
        "verification": report.get("verification"),
        "outcome": report["outcome"],
        "rules": dict(sorted(rules.items(), key=lambda item: (-item[1], item[0]))),
        "substitutions": report["substitutions"],
        "notes": report["notes"],
        "seconds": time.perf_counter() - started,
    }


COLUMNS = """\
- *operators*: operators of the model as it came in; *e-nodes*: size of the saturated e-graph.
- *cost*: what the cost model of the search predicts for the model before and after, in ms.
- *measured*: median latency before and after, in ms, from fresh processes that run both in random order.
- *speed-up*: ratio of the two with its confidence interval, and the verdict that follows (`faster` only if the interval
  says so, and beyond the noise of the original against itself; else the original file is what the user gets). "not a
  judge": kernels that matter were not tuned. Methods that chose the same program share one measurement.
- *verified*: whether the result computes what the original computes, on random inputs.
- *rules*: at how many sites of the result each rule is part of a substitution.
- *s*: wall-clock seconds of the whole run, loading, saturation, search, measuring and verification included.
"""


HEAD = """\
| model | method | operators | e-nodes | cost, ms | measured, ms | speed-up | verified | rules | s |
|---|---|--:|--:|--:|--:|---|---|---|--:|"""


def line(row: dict[str, Any]) -> str:
    """A row of the record as a row of the Markdown table."""
    cells = [row["model"], row["method"]]
    if "error" in row:
        cells += [*[""] * 6, row["error"]]
    else:
        cost, latency = row["cost"], row["latency"] or {}
        cells += [str(row["operators"]), str(row["enodes"] or "")]
        cells.append(f"{cost['original']:.4g} → {cost['optimized']:.4g}" if cost else "")
        verdict = latency.get("verdict") or "not measured"
        if not latency.get("judge", True):
            verdict = "not a judge"
        if latency.get("original_ms") is None:
            cells += ["", verdict]
        else:
            cells.append(f"{latency['original_ms']:.3g} → {latency['optimized_ms']:.3g}")
            interval = f"{latency['ci_low']:.3f} to {latency['ci_high']:.3f}"
            cells.append(f"{latency['speedup']:.3f} ({interval}) {verdict}")
        cells.append((row["verification"] or {}).get("verdict") or "")
        cells.append(", ".join(f"{rule} × {count}" for rule, count in row["rules"].items()))
    return "| " + " | ".join([*cells, f"{row['seconds']:.0f}"]) + " |"


def page(record: dict[str, Any]) -> str:
    """The record as a Markdown page."""
    versions = ", ".join(f"{package} {number}" for package, number in record["versions"].items())
    settings = f"Target `{record['target']}`, {record['budget']:g} s for each run, seed {record['seed']}."
    return "\n".join(
        [
            "# Real models",
            "",
            f"    {record['command']}",
            "",
            f"{record['machine']}; {record['date']}; {versions}. {settings}",
            "Weights are random; the graphs are the real ones.",
            "",
            HEAD,
            *map(line, record["rows"]),
            "",
            COLUMNS,
        ]
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS, metavar="NAME", help=", ".join(MODELS))
    parser.add_argument("--methods", nargs="+", default=METHODS, metavar="METHOD", help=", ".join(METHODS))
    parser.add_argument("--target", default="onnxruntime", help="where to measure (default: onnxruntime)")
    parser.add_argument("--budget", type=float, default=120.0, help="seconds for each run (default: 120)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the models are kept")
    parser.add_argument(
        "--output", type=Path, default=ROOT / "benchmarks" / "results" / "real_models", help="no suffix"
    )
    parser.add_argument("--export-only", action="store_true", help="write the models and stop")
    options = parser.parse_args()
    record: dict[str, Any] = {
        "command": shlex.join(["python", "benchmarks/real_models.py", *sys.argv[1:]]),
        "machine": processor(),
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "versions": {
            "xrlflow": xrlflow.__version__,
            **{p: installed(p) for p in ("torch", "transformers", "onnxruntime", "apache-tvm", "egglog")},
        },
        "target": options.target,
        "budget": options.budget,
        "seed": options.seed,
        "rows": [],
    }
    try:
        paths = {name: model_file(name, options.folder) for name in options.models}
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    for name, path in paths.items():
        print(f"{name}: {path.name}, {path.stat().st_size / 1e6:.1f} MB")
    if options.export_only:
        return 0
    options.output.parent.mkdir(parents=True, exist_ok=True)
    for name, path in paths.items():
        for method in options.methods:
            record["rows"].append(optimise(name, path, method, options))
            # Written after every row, so that an interrupted run leaves what it found.
            write(options.output.with_suffix(".json"), json.dumps(record, indent=1) + "\n")
            write(options.output.with_suffix(".md"), page(record))
            print(line(record["rows"][-1]), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
