"""ONNX models through ONNX Runtime on the CPU: the runtime most users deploy, with all its optimisations on."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import TargetUnavailable, UserError
from .tvm_module import InputSpec, input_specs, read_model, timing_inputs

if TYPE_CHECKING:
    import onnx

PROVIDER = "CPUExecutionProvider"

LEVELS = {
    "none": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "all": "ORT_ENABLE_ALL",
}
"""Optimisation levels of a session, by the names that users give."""


@functools.cache
def runtime() -> Any:
    """The module `onnxruntime`, its telemetry and log lines switched off."""
    import onnxruntime

    onnxruntime.disable_telemetry_events()
    onnxruntime.set_default_logger_severity(4)
    return onnxruntime


def providers(provider: str = PROVIDER) -> list[str]:
    """The providers of a session: this one, and the CPU's for what it does not know.

    Raises `TargetUnavailable` if the installed runtime has it not.
    """
    known = runtime().get_available_providers()
    if provider not in known:
        raise TargetUnavailable(f"provider {provider}: this onnxruntime has only {', '.join(known)}")
    return list(dict.fromkeys((provider, PROVIDER)))


def session_options(threads: int = 1, level: str = "none", custom_ops: Sequence[str] = (), mapped: bool = False) -> Any:
    """Options of a session: threads of one operator (operators run one after another) and what is optimised.

    level: one of `LEVELS`. custom_ops: shared libraries of operators. mapped: leave weights where they are,
    memory-mapped if they are external data; else kernels keep copies that are laid out for speed. Raises `UserError`
    for a library that is missing or cannot be loaded.
    """
    ort = runtime()
    options = ort.SessionOptions()
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, LEVELS[level])
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    if mapped:
        options.add_session_config_entry("session.disable_prepacking", "1")
    for library in custom_ops:
        if not os.path.isfile(library):
            raise UserError(f"custom operator library {library}: there is no such file")
        try:
            options.register_custom_ops_library(os.path.abspath(library))
        except Exception as error:  # noqa: BLE001  (the runtime has no type of its own for it)
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(f"custom operator library {library} cannot be loaded: {reason}") from None
    return options


class Session:
    """An ONNX Runtime session.

    model: a proto, its bytes or a path (needed for weights in external files).
    threads: of one operator; operators run one after another.
    symbols: extents of named dimensions for `specs`; the others are 1.
    custom_ops: shared libraries of operators. provider: what runs it, where it can. level: one of `LEVELS`.
    """

    def __init__(
        self,
        model: onnx.ModelProto | bytes | str | os.PathLike[str],
        threads: int = 1,
        symbols: Mapping[str, int] | None = None,
        custom_ops: Sequence[str] = (),
        provider: str = PROVIDER,
        level: str = "all",
    ) -> None:
        import onnx

        ort = runtime()
        start = time.perf_counter()
        options = session_options(threads, level, custom_ops)
        # Idle threads that spin would disturb whoever shares the processor, the other side of a comparison included.
        options.add_session_config_entry("session.intra_op.allow_spinning", "1" if threads > 1 else "0")
        if isinstance(model, (str, os.PathLike)):
            source: Any = os.fspath(model)
            proto = onnx.load(source, load_external_data=False)
        else:
            proto = read_model(model)
            source = model if isinstance(model, bytes) else proto.SerializeToString()
        self._session = ort.InferenceSession(source, options, providers=providers(provider))
        self.specs: list[InputSpec] = input_specs(proto, symbols)
        self.seconds = time.perf_counter() - start

    def run(self, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """The outputs, in the model's order."""
        return list(self._session.run(None, dict(inputs)))

    def time(
        self, inputs: Mapping[str, np.ndarray] | None = None, number: int = 1, repeat: int = 5, warm: bool = True
    ) -> list[float]:
        """Milliseconds of one run: `repeat` figures, each the mean of `number` runs. warm: after one that is not
        counted."""
        feed = dict(inputs) if inputs is not None else timing_inputs(self.specs)
        run, out = self._session.run, []
        if warm:
            run(None, feed)
        for _ in range(repeat):
            start = time.perf_counter()
            for _ in range(number):
                run(None, feed)
            out.append(1e3 * (time.perf_counter() - start) / number)
        return out


def optimised_digest(
    path: str, threads: int = 1, custom_ops: Sequence[str] = (), provider: str = PROVIDER, level: str = "all"
) -> str:
    """Digest of the graph that ONNX Runtime runs after its optimisations, the names of values left out.

    Two models with equal digests run the same operators on the same constants in the same order.
    """
    import hashlib
    import tempfile

    import onnx

    from .onnx_files import RESIDENT, locations, stored_bytes
    from .onnx_storage import read
    from .onnx_tensor import stored_weight

    ort = runtime()
    options = session_options(threads, level, custom_ops)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "optimised.onnx"
        options.optimized_model_filepath = str(file)
        if locations(Path(path)) or stored_bytes(Path(path)) > RESIDENT:  # messages end at 2 GiB
            entry = "session.optimized_model_external_initializers"
            options.add_session_config_entry(f"{entry}_file_name", "optimised.data")
            options.add_session_config_entry(f"{entry}_min_size_in_bytes", "65536")
        ort.InferenceSession(path, options, providers=providers(provider))
        data, store = read(file)
        graph, digest = onnx.load_model_from_string(data).graph, hashlib.blake2b(digest_size=16)
        names: dict[str, str] = {"": ""}
        for tensor in graph.initializer:
            names[tensor.name] = stored_weight(tensor, tensor.name, store).digest
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
