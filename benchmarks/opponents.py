"""Other tools that rewrite ONNX models, each run in every form that might be its best.

ONNX Runtime's transformer optimiser needs to be told the kind of model, the number of heads and the hidden size, and
has four levels; onnxsim and onnxslim take a model as it is. Needs the `bench` extra: pip install -e '.[bench]'.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import onnx
from exports import FOLDER, installed, write
from onnx import ModelProto, helper

from xrlflow.lowering.ort_session import runtime, session_options

PACKAGES = ("onnx", "onnxruntime", "onnxsim", "onnxslim", "sympy")
"""On whose versions the results depend."""

HEADS, HIDDEN = 4, 32
"""Heads and hidden size of the models of the catalogue."""

KINDS: dict[str, tuple[str, ...]] = {
    "bert": ("bert",), "distilbert": ("bert",), "deberta": ("bert",), "gpt2": ("gpt2",), "opt": ("gpt2",),
    "llama": ("gpt2", "qwen3"), "llama-cached": ("gpt2", "qwen3"), "gemma3": ("gpt2", "qwen3"),
    "qwen3": ("qwen3", "gpt2"), "bloom": ("gpt2",), "mixtral": ("gpt2", "qwen3"), "t5": ("t5",), "bart": ("bart",),
    "whisper": ("bart",), "vit": ("vit", "bert"), "clip": ("clip", "bert"), "swin": ("swin", "bert"),
}  # fmt: skip
"""The model types that the transformer optimiser has for a family; "bert", its default, where it has none."""

LEVELS = (0, 1, 2, 99)
"""`opt_level` of the transformer optimiser: what ONNX Runtime itself does to the graph first."""


def quiet() -> None:
    """Let the tools print nothing."""
    logging.getLogger("onnxruntime").setLevel(logging.CRITICAL)
    for name in ("onnxruntime.transformers", "onnxslim", "ONNXSlim"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    runtime().set_default_logger_severity(4)


def by_runtime(path: Path, family: str) -> Iterator[tuple[str, Callable[[], ModelProto]]]:
    """The transformer optimiser at every level, for every model type that might fit, attention each way."""
    from onnxruntime.transformers import optimizer
    from onnxruntime.transformers.fusion_options import FusionOptions

    def run(kind: str, level: int, attention: str) -> ModelProto:
        options = FusionOptions(kind)
        # the other format of masks supposes that only the end of a sequence is masked
        options.use_raw_attention_mask(True)
        options.use_multi_head_attention = attention == "MultiHeadAttention"
        options.enable_attention = attention != "no attention"
        found = optimizer.optimize_model(
            str(path), model_type=kind, num_heads=HEADS, hidden_size=HIDDEN, opt_level=level,
            optimization_options=options, only_onnxruntime=False,
        )  # fmt: skip
        model: ModelProto = found.model
        return model

    for kind in KINDS.get(family, ("bert",)):
        for level in LEVELS:
            for attention in ("Attention", "MultiHeadAttention", "no attention"):
                form = f"{kind}, level {level}, {attention}"
                yield form, partial(run, kind, level, attention)


def by_onnxsim(path: Path, family: str) -> Iterator[tuple[str, Callable[[], ModelProto]]]:
    import onnxsim

    yield "as it is", lambda: onnxsim.simplify(onnx.load(path))[0]


def by_onnxslim(path: Path, family: str) -> Iterator[tuple[str, Callable[[], ModelProto]]]:
    import onnxslim

    yield "as it is", lambda: onnxslim.slim(onnx.load(path))


TOOLS: dict[str, Callable[[Path, str], Iterator[tuple[str, Callable[[], ModelProto]]]]] = {
    "onnxruntime": by_runtime,
    "onnxsim": by_onnxsim,
    "onnxslim": by_onnxslim,
}


def versions() -> dict[str, str]:
    return {package: installed(package) for package in PACKAGES}


def results(tool: str, path: Path, family: str, folder: Path = FOLDER.parent / "opponents") -> dict[str, Path | str]:
    """What a tool makes of a model: by form a file, kept in `folder`, or why there is none; equal files once."""
    key = hashlib.blake2b(f"2 {path.name} {versions()} {HEADS} {HIDDEN}".encode(), digest_size=4).hexdigest()
    folder.mkdir(parents=True, exist_ok=True)
    quiet()
    found: dict[str, Path | str] = {}
    seen: set[bytes] = set()
    for number, (form, make) in enumerate(TOOLS[tool](path, family)):
        file = folder / f"{path.stem}-{tool}-{number}-{key}.onnx"
        failure = file.with_suffix(".txt")
        if not file.exists() and not failure.exists():
            try:
                write(file, make().SerializeToString())
            except Exception as error:  # noqa: BLE001 (whatever a tool raises is its result)
                write(failure, f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:200]}")
        if failure.exists():
            found[form] = failure.read_text()
            continue
        content = hashlib.blake2b(file.read_bytes()).digest()
        if content not in seen:
            seen.add(content)
            found[form] = file
    return found


# Types of all values, so that a graph can be priced


def pinned(model: ModelProto, inputs: dict[str, np.ndarray]) -> ModelProto:
    """The model at the extents of these inputs, with the types of all its values as a run of it shows them.

    ONNX infers no types for operators of other domains; a run knows them all.
    """
    run = ModelProto()
    run.CopyFrom(model)
    graph = run.graph
    del graph.value_info[:]
    for info in graph.input:
        if info.name in inputs:
            info.CopyFrom(_info(info.name, inputs[info.name]))
    outputs = {o.name for o in graph.output}
    inner = [name for node in graph.node for name in node.output if name and name not in outputs]
    pinned_model = ModelProto()
    pinned_model.CopyFrom(run)
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in inner)
    options = session_options()
    names = [*(o.name for o in graph.output)]
    session = runtime().InferenceSession(run.SerializeToString(), options, providers=["CPUExecutionProvider"])
    known = {i.name for i in session.get_inputs()}
    values = session.run(names, {k: v for k, v in inputs.items() if k in known})
    for name, value in zip(names, values, strict=True):
        if not isinstance(value, np.ndarray) or value.dtype == object:
            continue
        if name in outputs:
            next(o for o in pinned_model.graph.output if o.name == name).CopyFrom(_info(name, value))
        else:
            pinned_model.graph.value_info.append(_info(name, value))
    return pinned_model


def _info(name: str, array: np.ndarray) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)


def size(path: os.PathLike[str]) -> int:
    """Operators of a model's main graph."""
    return len(onnx.load(path, load_external_data=False).graph.node)
