"""What worker processes do: compile, tune and time one model. Called by name, with plain arguments and results."""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROUND_MS = 2.0
"""A figure of kernel timing covers at least about this many milliseconds, so that the clock's grain does not show."""


def measure_kernel(
    model: bytes, kind: str, threads: int, folder: str, trials: int, seconds: float, custom_ops: Sequence[str] = ()
) -> dict[str, Any]:
    """Latency of a model that is one kernel: `ms`, the least of seven figures, since noise only adds; their median,
    `usual_ms`; and what tuning was done.

    folder: of tuned schedules, which this call adds to. trials, seconds: limits of its tuning (TVM only).
    """
    detail: dict[str, Any] = {}
    program: Any
    if kind == "onnxruntime":
        from ..lowering.ort_session import Session

        program = Session(model, threads, custom_ops=custom_ops)
    else:
        from ..lowering import tvm_module, tvm_tuner

        target = tvm_module.tvm_target(kind, threads)
        fused = tvm_module.fuse(tvm_module.import_onnx(model), target)
        schedules = None
        if trials > 0:
            tuning = tvm_tuner.tune(fused, target, Path(folder), trials, seconds)
            detail = {"trials": sum(t.trials for t in tuning.tasks), "complete": tuning.complete}
            schedules = tvm_tuner.recorded(fused, target, Path(folder))
        executable = tvm_module.compile_module(fused, target, schedules)
        program = tvm_module.Program(executable, tvm_module.input_specs(tvm_module.read_model(model)), kind)
    inputs = _inputs(program)
    once = program.time(inputs, 1, 1)[0]
    number = max(1, min(1000, int(ROUND_MS / max(once, 1e-4))))
    figures = program.time(inputs, number, 7 if once < 200 else 3)
    return {"ms": min(figures), "usual_ms": statistics.median(figures), **detail}


def _inputs(program: Any, given: str = "") -> dict[str, np.ndarray]:
    if given:
        from ..lowering.feeds import load_arrays

        arrays = load_arrays(given)
        return {s.name: arrays[s.name] for s in program.specs if s.name in arrays}
    from ..lowering.tvm_module import timing_inputs

    return timing_inputs(program.specs)


def warm_up(kind: str) -> None:
    """Import what measuring on this kind of target needs, so that the first kernel is not charged for it."""
    if kind == "onnxruntime":
        from ..lowering.ort_session import runtime

        runtime()
    else:
        from ..lowering import tvm_module, tvm_tuner  # noqa: F401

        tvm_module.tvm_target(kind)


# The two sides of a confirmation


def tune_model(
    path: str, kind: str, threads: int, folder: str, trials: int, seconds: float, symbols: dict[str, int],
    part: tuple[int, int] = (0, 1),
) -> dict[str, Any]:  # fmt: skip
    """Tune a whole model's kernels, or each n-th of them, into `folder`; the tuning's summary."""
    from ..lowering import tvm_module, tvm_tuner

    target = tvm_module.tvm_target(kind, threads)
    fused = tvm_module.fuse(tvm_module.import_onnx(path, symbols), target)
    return tvm_tuner.tune(fused, target, Path(folder), trials, seconds, part=part).summary()


def compile_model(
    path: str, kind: str, threads: int, folder: str, symbols: dict[str, int], library: str
) -> dict[str, Any]:
    """Compile a model to `library` with the schedules in `folder` ("" for none); its `digest` and kernel summary."""
    from ..lowering import tvm_module, tvm_tuner

    target = tvm_module.tvm_target(kind, threads)
    fused = tvm_module.fuse(tvm_module.import_onnx(path, symbols), target)
    known = Path(folder) if folder else None
    tuning = tvm_tuner.tune(fused, target, known, 0, 0.0)
    schedules = tvm_tuner.recorded(fused, target, known) if known else None
    executable = tvm_module.compile_module(fused, target, schedules)
    handle, temporary = tempfile.mkstemp(dir=os.path.dirname(library), suffix=".so")
    os.close(handle)
    executable.export_library(temporary)
    os.replace(temporary, library)
    return {"digest": tvm_module.code_digest(fused), **tuning.summary()}


_loaded: dict[str, Any] = {}


def load_side(
    path: str, kind: str, threads: int, library: str, inputs: str, symbols: dict[str, int],
    custom_ops: Sequence[str] = (),
) -> float:  # fmt: skip
    """Make this process ready to run one side, warm it up, and say how many milliseconds a run takes."""
    program: Any
    if kind == "onnxruntime":
        from ..lowering.ort_session import Session

        program = Session(path, threads, symbols, custom_ops)
    else:
        import onnx

        from ..lowering import tvm_module

        proto = onnx.load(path, load_external_data=False)
        program = tvm_module.load_program(library, tvm_module.input_specs(proto, symbols), kind)
    _loaded["program"], _loaded["inputs"] = program, _inputs(program, inputs)
    return float(min(program.time(_loaded["inputs"], 1, 3)))


def time_side(number: int) -> float:
    """Milliseconds of a run of the loaded side, the mean of `number`."""
    return float(_loaded["program"].time(_loaded["inputs"], number, 1)[0])


def digest_optimised(path: str, threads: int, custom_ops: Sequence[str] = ()) -> str:
    """Digest of what ONNX Runtime makes of a model, names left out: equal digests run the same operators."""
    from ..lowering.ort_session import optimised_digest

    return optimised_digest(path, threads, custom_ops)
