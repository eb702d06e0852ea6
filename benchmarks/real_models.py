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
import hashlib
import json
import logging
import os
import platform
import shlex
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xrlflow
from xrlflow import zoo
from xrlflow.errors import UserError

if TYPE_CHECKING:
    import torch

ROOT = Path(__file__).resolve().parent.parent
METHODS = ("greedy", "saturation", "rl")
VERDICTS: dict[str, Any] = {}
"""Measurements of this run, so that methods which choose the same program share one."""
TOKENS = 128
NOISE = 0.02
"""Standard deviation of what is added to every fresh parameter."""

Example = tuple["torch.nn.Module", dict[str, "torch.Tensor"]]

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


def installed(package: str) -> str:
    """The installed version of a package, or "absent"."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


def model_file(name: str, folder: Path) -> Path:
    """The ONNX file of a model; an export is reused if the folder has one of this configuration and these versions."""
    path = folder / f"{name}.onnx"
    if name in EXPORTED:
        identity = [EXPORTED[name][1], TOKENS, NOISE, *map(installed, ("torch", "transformers", "onnxscript"))]
        path = folder / f"{name}-{hashlib.blake2b(json.dumps(identity).encode(), digest_size=4).hexdigest()}.onnx"
    if name in FROM_ZOO or not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        if name in EXPORTED:
            export(name, partial)
        else:
            partial.write_bytes(zoo.build(name).SerializeToString())
        agree(partial)
        os.replace(partial, path)
    return path


def export(name: str, path: Path, seed: int = 0) -> None:
    """Export a transformers model with static shapes, and compare ONNX Runtime's answer with PyTorch's."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        import onnxruntime
        import torch
        import transformers  # noqa: F401
    except ImportError as error:
        raise UserError(f"exporting {name} needs the `models` extra: pip install -e '.[models]' ({error})") from error

    class Positional(torch.nn.Module):
        """The model with its inputs by position and only tensors as outputs."""

        def __init__(self, model: torch.nn.Module, names: list[str]) -> None:
            super().__init__()
            self.model, self.names = model, names

        def forward(self, *values: torch.Tensor) -> tuple[torch.Tensor, ...]:
            outputs = self.model(**dict(zip(self.names, values, strict=True)))
            return tuple(v for v in outputs.to_tuple() if isinstance(v, torch.Tensor))

    # The exporter warns of every torchvision operator when torchvision is absent.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    torch.manual_seed(seed)
    model, inputs = EXPORTED[name][0]()
    # Fresh biases are 0 and fresh norms 1: exporters share equal tensors and rules drop neutral ones. No trained model
    # is like that.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(NOISE * torch.randn_like(parameter))
    wrapped = Positional(model, list(inputs)).eval()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        expected = wrapped(*inputs.values())
        program = torch.onnx.export(
            wrapped, tuple(inputs.values()), dynamo=True, input_names=list(inputs), external_data=False, verbose=False
        )
    assert program is not None
    program.save(path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    used = {i.name for i in session.get_inputs()}
    outputs = session.run(None, {k: v.numpy() for k, v in inputs.items() if k in used})
    for ours, theirs in zip(outputs, expected, strict=True):
        torch.testing.assert_close(torch.from_numpy(ours), theirs, rtol=1e-3, atol=1e-4)


def agree(path: Path) -> None:
    """Fail unless the file is valid ONNX with static shapes."""
    import onnx

    model = onnx.load(path)
    onnx.checker.check_model(model)
    for value in model.graph.input:
        if not all(d.HasField("dim_value") for d in value.type.tensor_type.shape.dim):
            raise ValueError(f"{path.name}: input {value.name} has a symbolic extent")


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
        if latency.get("original_ms") is None:
            cells += ["", latency.get("verdict") or "not measured"]
        else:
            cells.append(f"{latency['original_ms']:.3g} → {latency['optimized_ms']:.3g}")
            interval = f"{latency['ci_low']:.3f} to {latency['ci_high']:.3f}"
            verdict = latency["verdict"] if latency.get("judge", True) else "not a judge"
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


def processor() -> str:
    """The processor's own name and the number of its cores that this process may use."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        name = names[0] if names else name
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name}, {cores} cores"


def write(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(text)
    os.replace(partial, path)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS, metavar="NAME", help=", ".join(MODELS))
    parser.add_argument("--methods", nargs="+", default=METHODS, metavar="METHOD", help=", ".join(METHODS))
    parser.add_argument("--target", default="onnxruntime", help="where to measure (default: onnxruntime)")
    parser.add_argument("--budget", type=float, default=120.0, help="seconds for each run (default: 120)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=ROOT / ".build" / "models", help="where the models are kept")
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
