"""Models run by ONNX Runtime as they are, to see what they compute: slow, but the same on every run."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from onnx import ModelProto

from ..egraph.graph import Graph
from .onnx_files import RESIDENT, save, stored_bytes
from .onnx_writer import to_onnx
from .ort_session import runtime, session_options

Model: TypeAlias = Graph | ModelProto | bytes | str | os.PathLike[str]


class PlainSession:
    """A model in ONNX Runtime, without optimisation and on one thread: results do not depend on the machine's load."""

    def __init__(self, model: Model, path: Path, fold: bool, custom_ops: Sequence[str] = ()) -> None:
        source = _runnable(model, path, fold)
        large = isinstance(source, str) and stored_bytes(Path(source)) > RESIDENT
        options = session_options(custom_ops=custom_ops, mapped=large)
        self.session = runtime().InferenceSession(source, options, providers=["CPUExecutionProvider"])
        self.inputs = [i.name for i in self.session.get_inputs()]
        self.outputs = [o.name for o in self.session.get_outputs()]

    def run(self, inputs: Mapping[str, Any]) -> list[Any]:
        known = {*self.inputs, *(i.name for i in self.session.get_overridable_initializers())}
        return list(self.session.run(self.outputs, {k: v for k, v in inputs.items() if k in known}))


def _runnable(model: Model, path: Path, fold: bool) -> str | bytes:
    if isinstance(model, Graph):
        if model.weight_bytes > RESIDENT:
            save(model, path, fold, external=True)
            return str(path)
        return to_onnx(model, fold).SerializeToString()
    if isinstance(model, ModelProto):
        return model.SerializeToString()
    return bytes(model) if isinstance(model, (bytes, bytearray)) else str(Path(model))


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


_LACKING = (
    r"Could not find an implementation for (\w+)\(\d+\) node with name '(.*?)'",
    r"Fatal error: ([\w.:]+?)\(-?\d+\) is not a registered function/op",
    r"No Op registered for (\w+) with domain_version",
    r"No opset import for domain '?([\w.]+)'?",
)


def why(error: BaseException, runtime: str = "ONNX Runtime") -> str:
    """Why a runtime cannot load the original; the operator that it lacks, if that is why."""
    text = str(error)
    for pattern in _LACKING:
        if match := re.search(pattern, text):
            node = match.group(2) if match.lastindex == 2 and match.group(2) else ""
            where = f" (node {node!r})" if node else ""
            hint = "; --custom-ops gives it the library of one" if ":" in match.group(1) else ""
            return f"ONNX Runtime lacks the operator {match.group(1)}{where}{hint}"
    return f"{runtime} cannot load the original: {first_line(error)}"
