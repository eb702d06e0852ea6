"""ONNX models through ONNX Runtime on the CPU: the runtime most users deploy, with all its optimisations on."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .tvm_module import InputSpec, input_specs, read_model, timing_inputs

if TYPE_CHECKING:
    import onnx

PIPELINE = "ORT_ENABLE_ALL"


@functools.cache
def runtime() -> Any:
    """The module `onnxruntime`, its telemetry and log lines switched off."""
    import onnxruntime

    onnxruntime.disable_telemetry_events()
    onnxruntime.set_default_logger_severity(4)
    return onnxruntime


class Session:
    """An ONNX Runtime session on the CPU provider.

    model: a proto, its bytes or a path (needed for weights in external files).
    threads: of one operator; operators run one after another.
    symbols: extents of named dimensions for `specs`; the others are 1.
    """

    def __init__(
        self,
        model: onnx.ModelProto | bytes | str | os.PathLike[str],
        threads: int = 1,
        symbols: Mapping[str, int] | None = None,
    ) -> None:
        import onnx

        ort = runtime()
        start = time.perf_counter()
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # Idle threads that spin would disturb whoever shares the processor, the other side of a comparison included.
        options.add_session_config_entry("session.intra_op.allow_spinning", "1" if threads > 1 else "0")
        if isinstance(model, (str, os.PathLike)):
            source: Any = os.fspath(model)
            proto = onnx.load(source, load_external_data=False)
        else:
            proto = read_model(model)
            source = model if isinstance(model, bytes) else proto.SerializeToString()
        self._session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        self.specs: list[InputSpec] = input_specs(proto, symbols)
        self.seconds = time.perf_counter() - start

    def run(self, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """The outputs, in the model's order."""
        return list(self._session.run(None, dict(inputs)))

    def time(self, inputs: Mapping[str, np.ndarray] | None = None, number: int = 1, repeat: int = 5) -> list[float]:
        """Milliseconds of one run: `repeat` figures, each the mean of `number` runs, after one that is not counted."""
        feed = dict(inputs) if inputs is not None else timing_inputs(self.specs)
        run, out = self._session.run, []
        run(None, feed)
        for _ in range(repeat):
            start = time.perf_counter()
            for _ in range(number):
                run(None, feed)
            out.append(1e3 * (time.perf_counter() - start) / number)
        return out


def optimised_digest(path: str, threads: int = 1) -> str:
    """Digest of the graph that ONNX Runtime runs after its optimisations, the names of values left out.

    Two models with equal digests run the same operators on the same constants in the same order.
    """
    import hashlib
    import tempfile

    import onnx

    ort = runtime()
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads = threads
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = os.path.join(folder, "optimised.onnx")
        ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        model = onnx.load(options.optimized_model_filepath)
    graph, digest = model.graph, hashlib.blake2b(digest_size=16)
    names: dict[str, str] = {"": ""}
    for tensor in graph.initializer:
        name, tensor.name = tensor.name, ""
        names[name] = hashlib.blake2b(tensor.SerializeToString(deterministic=True), digest_size=16).hexdigest()
    for k, value in enumerate(graph.input):
        names.setdefault(value.name, f"input {k}")
    for k, node in enumerate(graph.node):
        operands = [names.get(i, i) for i in node.input]
        for j, out in enumerate(node.output):
            names[out] = f"{k}:{j}" if out else ""
        attributes = sorted(a.SerializeToString(deterministic=True) for a in node.attribute)
        digest.update(repr((node.domain, node.op_type, operands, attributes)).encode())
    digest.update(repr([names.get(o.name, o.name) for o in graph.output]).encode())
    return digest.hexdigest()
