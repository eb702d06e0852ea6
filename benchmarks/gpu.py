"""What TVM's CUDA kernels compute and how fast, and what searches gain there: operators and models on one GPU.

    python benchmarks/gpu.py --out FILE.json [--seconds N] [--trials N] [--only TEXT]    # again: goes on in FILE
    python benchmarks/gpu.py --compile-only --out FILE.json
    python benchmarks/gpu.py --target llvm --only bert --out FILE.json                    # the same on a CPU

Four sorts of cases: operators (errors; latencies under default and tuned schedules, and of torch's library kernel);
`model-…` (errors and latencies of whole models, and against these the sum of their fused kernels as the cost `fusion`
has it); `search-…` (`xrlflow.optimize` from start to verdict: predicted and measured, before and after). The last two
need egglog for what a search does, and say so where it is missing; else onnx, numpy, apache-tvm and torch are enough,
and no installed xrlflow. Cases run in a child process, which is started anew after a crash or hang, so that each costs
itself only; the file is written after every case, and a call with the same file goes on with what it lacks. Exit code 4
without a GPU; `--compile-only` needs none and compiles every case for sm_90, through `nvcc` to a cubin where it exists.
"""

from __future__ import annotations

import argparse
import datetime as dt
import importlib.metadata
import importlib.util
import json
import os
import platform
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
CASE_SECONDS = 180.0
TOLERANCE = {"float32": 1e-4, "float16": 2e-2}
"""Largest error allowed, relative to the largest result."""

MATMULS = [(1, 4096, 4096), (64, 768, 3072), (128, 768, 768), (512, 1024, 1024), (2048, 2048, 2048)]
"""Rows, inner extent and columns."""

CONVOLUTIONS = [
    # channels, outputs, extent, kernel, stride, groups
    (3, 64, 224, 7, 2, 1), (64, 64, 56, 3, 1, 1), (256, 64, 56, 1, 1, 1), (512, 512, 7, 3, 1, 1),
    (128, 128, 28, 3, 1, 32), (256, 256, 28, 3, 1, 256),
]  # fmt: skip

MODELS: dict[str, dict[str, int]] = {
    "mlp-tower": {}, "inception-block": {}, "squeezenet": {}, "bert": {"layers": 2}, "vit": {"layers": 2},
    "nasrnn": {}, "gpt2": {"layers": 2}, "llama": {"layers": 2}, "t5": {"layers": 1}, "dalle-paper": {"layers": 2},
    "resnext50": {}, "resnet50": {}, "mobilenet-v2": {}, "inception-v3": {},
}  # fmt: skip
"""Entries of the zoo, with sizes."""

SEARCH_SECONDS = 150.0
"""Budget of a search."""


def package() -> None:
    """Make `xrlflow` importable from this checkout if it is not installed."""
    if importlib.util.find_spec("xrlflow") is not None:
        return
    spec = importlib.util.spec_from_file_location(
        "xrlflow", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["xrlflow"] = module
    spec.loader.exec_module(module)


# Cases: name -> function that makes the model


def operator_model(op: str, x: tuple[int, ...], dtype: str, weights: dict[str, tuple[int, ...]], **attrs: Any) -> Any:
    """One operator on input `x` with seeded weights."""
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    code = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}[dtype]
    initializers = [
        numpy_helper.from_array((rng.standard_normal(s) / np.sqrt(np.prod(s[1:]) or 1)).astype(dtype), n)
        for n, s in weights.items()
    ]
    graph = helper.make_graph(
        [helper.make_node(op, ["x", *weights], ["y"], **attrs)], op, [helper.make_tensor_value_info("x", code, x)],
        [helper.make_tensor_value_info("y", code, None)], initializers,
    )  # fmt: skip
    import onnx

    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return onnx.shape_inference.infer_shapes(model)


def cases() -> dict[str, Callable[[], Any]]:
    """All cases by name, cheap ones first."""
    found: dict[str, Callable[[], Any]] = {}

    def add(name: str, *args: Any, **attrs: Any) -> None:
        found[name] = lambda: operator_model(*args, **attrs)

    for dtype in ("float32", "float16"):
        for m, k, n in MATMULS:
            add(f"matmul-{m}x{k}x{n}-{dtype}", "MatMul", (m, k), dtype, {"w": (k, n)})
        for c, o, hw, kernel, stride, group in CONVOLUTIONS:
            add(
                f"conv-{c}-{o}-{hw}-k{kernel}s{stride}g{group}-{dtype}", "Conv", (1, c, hw, hw), dtype,
                {"w": (o, c // group, kernel, kernel), "b": (o,)},
                strides=[stride] * 2, pads=[kernel // 2] * 4, group=group,
            )  # fmt: skip
        add(f"softmax-12x128x128-{dtype}", "Softmax", (12, 128, 128), dtype, {}, axis=-1)
        add(
            f"layernorm-128x768-{dtype}", "LayerNormalization", (128, 768), dtype, {"s": (768,), "b": (768,)},
            axis=-1, epsilon=1e-5,
        )  # fmt: skip
    for kind in ("model", "search"):
        for name, sizes in MODELS.items():
            found[f"{kind}-{name}"] = partial(zoo_model, name, sizes)
    return found


def zoo_model(name: str, sizes: dict[str, int]) -> Any:
    package()
    from xrlflow.zoo import build

    return build(name, **sizes)


# One case


def reference(model: Any, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    """The model's outputs in float64 by the torch evaluator, or by onnx's reference where that does not know all."""
    from xrlflow.lowering import NotEvaluable, evaluate, load

    try:
        return evaluate(load(model), inputs)
    except NotEvaluable:
        from onnx.reference import ReferenceEvaluator

        return [np.asarray(o) for o in ReferenceEvaluator(model).run(None, inputs)]


def run_case(name: str, kind: str, trials: int, seconds: float) -> dict[str, Any]:
    """Correctness and latencies (ms) of a case: default schedules, tuned ones, and torch's library kernel."""
    package()
    model = cases()[name]()
    if name.startswith("search-"):
        return search(model, kind, trials)
    folder = Path(tempfile.mkdtemp(prefix="xrlflow-gpu-"))
    try:
        row = run(model, kind, trials, seconds, folder)
        if name.startswith("model-"):
            row |= fused_sum(model, kind, trials, seconds, folder, row.get("tuned_ms", row["default_ms"]))
        return row
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def run(model: Any, kind: str, trials: int, seconds: float, folder: Path) -> dict[str, Any]:
    """Errors and latencies of a model; schedules go to where the database in `folder` has them."""
    from xrlflow.cost.database import Database
    from xrlflow.cost.target import Target
    from xrlflow.lowering import tvm_module, tvm_tasks, tvm_tuner

    specs = tvm_module.input_specs(model)
    inputs = tvm_module.timing_inputs(specs)
    target = tvm_module.tvm_target(kind)
    start = time.perf_counter()
    fused = tvm_module.fuse(tvm_module.import_onnx(model), target)
    program = tvm_module.Program(tvm_module.compile_module(fused, target), specs, kind)
    row: dict[str, Any] = {"compile_s": round(time.perf_counter() - start, 3)}
    expected = reference(model, inputs)
    row |= errors(program.run(inputs), expected, specs[0].dtype, "default")
    row["default_ms"] = float(np.median(program.time(inputs, 10, 10)))
    library = library_ms(model, inputs)
    if library is not None:
        row["library_ms"] = library
    if trials:
        schedules = Database(folder).schedules(Target(kind).fingerprint())
        tuning = tvm_tuner.tune(fused, target, schedules, trials, seconds)
        known = tvm_tasks.recorded(fused, target, schedules)
        tuned = tvm_module.Program(tvm_module.compile_module(fused, target, known), specs, kind)
        row |= errors(tuned.run(inputs), expected, specs[0].dtype, "tuned")
        row |= {"tuned_ms": float(np.median(tuned.time(inputs, 10, 10))), "tuning": tuning.summary()}
        if "library_ms" in row:
            row["of_library"] = round(min(row["tuned_ms"], row["default_ms"]) / row["library_ms"], 3)
    good = all(row[k] for k in row if k.endswith("_correct"))
    return row | {"status": "passed" if good else "wrong"}


def fused_sum(model: Any, kind: str, trials: int, seconds: float, folder: Path, ms: float) -> dict[str, Any]:
    """The model's latency as the cost `fusion` sums it up from timed kernels, beside that of a run."""
    if importlib.util.find_spec("egglog") is None:
        return {"fused_skipped": "egglog is not installed"}
    from xrlflow import load, saturate
    from xrlflow.cost.base import bind
    from xrlflow.cost.database import Database
    from xrlflow.cost.fused import FusedKernels
    from xrlflow.cost.target import Target
    from xrlflow.lowering.onnx_forms import meant_for

    space = saturate(meant_for(load(model), kind), [], max_iterations=1)
    costs = FusedKernels(Target(kind), Database(folder), trials, seconds)
    total = bind(costs, space).total(space.original)
    return {"fused_ms": total, "fused_error": total / ms - 1, "fused_kernels": str(costs.coverage)}


def search(model: Any, kind: str, trials: int) -> dict[str, Any]:
    """A whole search for this target: what was promised, and what fresh processes say."""
    if importlib.util.find_spec("egglog") is None:
        return {"status": "skipped", "error": "egglog is not installed"}
    from xrlflow import optimize

    start = time.perf_counter()
    result = optimize(model, target=kind, budget=SEARCH_SECONDS, trials=trials)
    before, after = result.predicted or (None, None)
    verdict = result.verdict
    return {
        "status": "passed" if result.exit_code == 0 else "wrong", "outcome": result.outcome,
        "predicted_before_ms": before, "predicted_after_ms": after, "improved": result.improved,
        "verdict": None if verdict is None else verdict.as_dict(),
        "verification": None if result.verification is None else result.verification.verdict,
        "rules": sorted({r for s in result.substitutions for r in s.rules}), "notes": result.notes,
        "search_s": round(time.perf_counter() - start, 1),
    }  # fmt: skip


def errors(found: list[np.ndarray], expected: list[np.ndarray], dtype: str, which: str) -> dict[str, Any]:
    """Largest error relative to the largest result, and whether it is within the tolerance."""
    worst = 0.0
    for a, b in zip(found, expected, strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        error = np.abs(a - b).max() / max(np.abs(b).max(), 1e-9) if a.size else 0.0
        worst = max(worst, float(error) if np.isfinite(error) else float("inf"))
    return {f"{which}_error": worst, f"{which}_correct": worst <= TOLERANCE.get(dtype, 1e-4)}


def library_ms(model: Any, inputs: dict[str, np.ndarray]) -> float | None:
    """Milliseconds of torch's kernel (cuBLAS, cuDNN; no TF32) for a single MatMul or Conv; None for other models."""
    import torch
    from onnx import helper, numpy_helper

    node = model.graph.node[0]
    if len(model.graph.node) > 1 or node.op_type not in ("MatMul", "Conv") or not torch.cuda.is_available():
        return None
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    x = torch.from_numpy(inputs["x"]).cuda()
    weights = [torch.from_numpy(numpy_helper.to_array(w).copy()).cuda() for w in model.graph.initializer]
    if node.op_type == "MatMul":
        run = lambda: torch.matmul(x, weights[0])  # noqa: E731
    else:
        a = {k.name: helper.get_attribute_value(k) for k in node.attribute}
        run = lambda: torch.nn.functional.conv2d(  # noqa: E731
            x, weights[0], weights[1], a["strides"][0], a["pads"][0], 1, a["group"]
        )
    for _ in range(5):
        run()
    figures = []
    for _ in range(10):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        for _ in range(10):
            run()
        end.record()
        torch.cuda.synchronize()
        figures.append(begin.elapsed_time(end) / 10)
    return float(np.median(figures))


def compile_case(name: str) -> dict[str, Any]:
    """Compile a case for sm_90 without a GPU: number of kernels and whether nvcc accepts them."""
    package()
    from xrlflow.lowering import tvm_module

    start = time.perf_counter()
    source = tvm_module.cuda_source(tvm_module.compile_cuda(cases()[name](), arch="sm_90"))
    found = set(re.findall(r"(\w+_kernel)\(", source))
    row: dict[str, Any] = {"kernels": len(found), "compile_s": round(time.perf_counter() - start, 3)}
    if not row["kernels"]:
        return row | {"status": "wrong", "error": "no kernel came out"}
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        return row | {"status": "passed", "cubin": "nvcc is missing"}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernels.cu"
        path.write_text(source)
        command = [nvcc, "-cubin", "-arch=sm_90", "-w", "-o", str(path.with_suffix(".cubin")), str(path)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=CASE_SECONDS, check=False)
        if done.returncode:
            return row | {"status": "wrong", "error": done.stderr[-500:]}
        return row | {"status": "passed", "cubin_bytes": path.with_suffix(".cubin").stat().st_size}


# The child, and the parent that survives it


def child(args: argparse.Namespace) -> None:
    """Run the cases named on stdin, one a line, and answer each with a line of JSON."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    for line in sys.stdin:
        name = line.strip()
        try:
            row = (
                compile_case(name) if args.compile_only else run_case(name, args.target, args.trials, CASE_SECONDS / 4)
            )
        except Exception as e:  # noqa: BLE001  (whatever a case does wrong, the next one runs)
            row = {"status": "failed", "error": f"{type(e).__name__}: {e}"[:1000]}
        answers.write(json.dumps(row) + "\n")


class Child:
    """A child process and the lines it answers."""

    def __init__(self, arguments: list[str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-u", __file__, "--child", *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        self.lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._collect, daemon=True).start()

    def _collect(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put("")

    def ask(self, name: str, timeout: float) -> dict[str, Any]:
        """The row of a case; a failed one if the child dies or takes too long, after which it is gone."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(name + "\n")
            self.process.stdin.flush()
            line = self.lines.get(timeout=timeout)
        except queue.Empty:
            self.close()
            return {"status": "failed", "error": f"no answer after {timeout:.0f} s"}
        except OSError:
            line = ""
        if not line:
            code = self.process.wait()
            self.close()
            return {"status": "failed", "error": f"the process ended with code {code}"}
        return dict(json.loads(line))

    def close(self) -> None:
        self.process.kill()
        self.process.wait()

    @property
    def gone(self) -> bool:
        return self.process.poll() is not None


def write(path: Path, result: dict[str, Any]) -> None:
    """Write through a temporary file, so that the file is whole at any moment."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(json.dumps(result, indent=1) + "\n")
    os.replace(temporary, path)


def device(args: argparse.Namespace, gpu: str | None) -> str:
    """What the results are of."""
    from xrlflow.cost.target import cpu_model

    if args.compile_only:
        return "none (compiled for sm_90)"
    return str(gpu) if args.target == "cuda" else cpu_model().split("  ")[0]


def done_before(path: Path, device: str) -> list[dict[str, Any]]:
    """Cases that an earlier call finished, skipped ones not; none of another device's file."""
    try:
        known = json.loads(path.read_text())
    except (OSError, ValueError):
        return []
    if known.get("device") != device:
        return []
    return [row for row in known["cases"] if row["status"] != "skipped"]


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("apache-tvm", "apache-tvm-ffi", "torch", "onnx", "numpy"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n", maxsplit=1)[0])
    parser.add_argument("--out", type=Path, help="file for the results (JSON)")
    parser.add_argument("--seconds", type=float, default=480.0, help="stop after about this time")
    parser.add_argument("--trials", type=int, default=16, help="tuning candidates per kernel; 0 for none")
    parser.add_argument("--only", default="", help="only cases whose name contains this")
    parser.add_argument("--target", choices=("cuda", "llvm"), default="cuda", help="llvm tries the script on a CPU")
    parser.add_argument("--again", action="store_true", help="begin anew where FILE has results")
    parser.add_argument("--compile-only", action="store_true", help="compile for sm_90; needs no GPU")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args)
        return 0
    package()
    from xrlflow.cost.target import gpu_name

    gpu = gpu_name()
    if gpu is None and not args.compile_only and args.target == "cuda":
        print("gpu.py: no CUDA GPU is found on this machine; --compile-only needs none", file=sys.stderr)
        return 4
    if args.out is None:
        parser.error("--out is needed")
    start = time.monotonic()
    names = [n for n in cases() if args.only in n and not (args.compile_only and n.startswith("search-"))]
    result: dict[str, Any] = {
        "device": device(args, gpu),
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "command": f"python benchmarks/gpu.py {'--compile-only ' * args.compile_only}--trials {args.trials}",
        "stop_reason": "running",
        "cases": [] if args.again else done_before(args.out, device(args, gpu)),
    }
    flags = ["--trials", str(args.trials), "--target", args.target, *["--compile-only"] * args.compile_only]
    done = {row["name"] for row in result["cases"]}
    worker: Child | None = None
    stop = "done"
    for name in (n for n in names if n not in done):
        left = args.seconds - (time.monotonic() - start)
        if left <= 5:
            stop = "time limit"
            break
        if worker is None or worker.gone:
            worker = Child(flags)
        begin = time.monotonic()
        row = worker.ask(name, min(CASE_SECONDS, left))
        row = {"name": name, **row, "seconds": round(time.monotonic() - begin, 2)}
        if row["status"] == "failed" and left < CASE_SECONDS:
            stop = "time limit"  # that is what it failed of, perhaps: the next call tries it again
            break
        result["cases"].append(row)
        write(args.out, result)
        shown = ("default_ms", "tuned_ms", "library_ms", "fused_ms", "kernels", "outcome", "error")
        print(name, row["status"], *(f"{k}={row[k]}" for k in shown if k in row), flush=True)
    if worker is not None:
        worker.close()
    result["stop_reason"] = stop
    write(args.out, result)
    bad = sum(row["status"] not in ("passed", "skipped") for row in result["cases"])
    print(f"{len(result['cases'])} cases, {bad} not passed, {stop}; written to {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
