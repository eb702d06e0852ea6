"""Models exported to ONNX as users export them, by both of torch's exporters.

Static and with dynamic axes, in any floating-point type. Needs the `models` extra: pip install -e '.[models]'.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import warnings
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError

if TYPE_CHECKING:
    import onnx
    import torch

EXPORTERS = ("dynamo", "legacy")
"""`torch.onnx.export` with dynamo=True, and the TorchScript exporter (dynamo=False)."""

DTYPES = ("float32", "float16", "bfloat16")
NOISE = 0.02
"""Standard deviation of what is added to every fresh parameter."""

RECIPE = 1
"""To be raised when `export` writes other files than before."""

PACKAGES = ("torch", "transformers", "onnxscript", "onnx")
"""Packages on whose versions an export depends."""

Example = tuple["torch.nn.Module", dict[str, "torch.Tensor"]]
Axes = Mapping[str, Mapping[int, str]]
"""For inputs, the names of their dynamic axes."""


def installed(package: str) -> str:
    """The installed version of a package, or "absent"."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


def cached(folder: Path, name: str, identity: list[Any], make: Callable[[Path], None]) -> Path:
    """The file `NAME-HASH.onnx` of that identity and of the exporter's versions, made if the folder lacks it."""
    text = json.dumps([*identity, NOISE, RECIPE, *map(installed, PACKAGES)], sort_keys=True)
    path = folder / f"{name}-{hashlib.blake2b(text.encode(), digest_size=4).hexdigest()}.onnx"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            make(partial)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    return path


def export(
    build: Callable[[], Example],
    path: Path,
    exporter: str = "dynamo",
    axes: Axes | None = None,
    dtype: str = "float32",
    seed: int = 0,
) -> None:
    """Export the model that `build` makes, check the file and compare ONNX Runtime's answer with PyTorch's.

    axes: dynamic axes of the inputs; None exports static shapes. dtype: of the floating-point parameters and inputs.
    The legacy exporter gets attention written out ("eager"), for it cannot trace the way the fused one makes masks.
    Raises `UserError` if a package is missing; whatever torch raises if it cannot export the model.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        import onnx
        import torch
        import transformers
    except ImportError as error:
        raise UserError(f"exporting a model needs the `models` extra: pip install -e '.[models]' ({error})") from error

    class Positional(torch.nn.Module):
        """The model with its inputs by position and only tensors as outputs."""

        def __init__(self, model: torch.nn.Module, names: list[str]) -> None:
            super().__init__()
            self.model, self.names = model, names

        def forward(self, *values: torch.Tensor) -> tuple[torch.Tensor, ...]:
            found = self.model(**dict(zip(self.names, values, strict=True)))
            if isinstance(found, torch.Tensor):
                return (found,)
            items = found.to_tuple() if hasattr(found, "to_tuple") else found
            return tuple(v for v in items if isinstance(v, torch.Tensor))

    # The exporters warn of every torchvision operator when torchvision is absent, and legacy of every constant.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    transformers.logging.set_verbosity_error()
    torch.manual_seed(seed)
    model, inputs = build()
    # Fresh biases are 0 and fresh norms 1: exporters share equal tensors and rules drop neutral ones. No trained model
    # is like that.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(NOISE * torch.randn_like(parameter))
    kind = getattr(torch, dtype)
    model = model.to(kind)
    inputs = {k: v.to(kind) if v.is_floating_point() else v for k, v in inputs.items()}
    attention = getattr(model, "set_attn_implementation", None)
    if exporter == "legacy" and attention is not None:
        attention("eager")
    wrapped, values, names = Positional(model, list(inputs)).eval(), tuple(inputs.values()), list(inputs)
    dynamic: dict[str, dict[int, str]] = {name: dict((axes or {}).get(name, {})) for name in names}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        expected = wrapped(*values)
        if exporter == "dynamo":
            shapes = (tuple(dynamic.values()),) if axes else None
            program = torch.onnx.export(
                wrapped, values, dynamo=True, input_names=names, external_data=False, verbose=False,
                dynamic_shapes=shapes,
            )  # fmt: skip
            assert program is not None
            program.save(path)
        else:
            torch.onnx.export(
                wrapped, values, path, dynamo=False, input_names=names, dynamic_axes=dynamic if axes else None
            )
    if dtype == "bfloat16":
        _raise_opset(path, 22)
    check(onnx.load(path), dynamic=bool(axes))
    # numpy has no bfloat16, and ONNX Runtime lacks it for many operators
    if dtype != "bfloat16":
        _agree(path, inputs, expected, *((1e-3, 1e-4) if dtype == "float32" else (2e-2, 2e-2)))


def _raise_opset(path: Path, opset: int) -> None:
    """Let a model be one of a later opset: Conv and others take bfloat16 from 22 on. No operator here means another."""
    import onnx

    model = onnx.load(path)
    model.opset_import[0].version = opset
    model.ir_version = max(model.ir_version, 10)
    onnx.save(model, path)


def check(model: onnx.ModelProto, dynamic: bool) -> None:
    """Raise unless the model is valid ONNX and has symbolic extents in its inputs, or none."""
    import onnx

    onnx.checker.check_model(model, full_check=True)
    symbolic = [
        value.name
        for value in model.graph.input
        if not all(d.HasField("dim_value") for d in value.type.tensor_type.shape.dim)
    ]
    if bool(symbolic) != dynamic:
        raise ValueError(f"inputs with symbolic extents: {', '.join(symbolic) or 'none'}")


def _agree(path: Path, inputs: dict[str, Any], expected: tuple[Any, ...], rtol: float, atol: float) -> None:
    """Fail unless ONNX Runtime computes what PyTorch computed."""
    import onnxruntime
    import torch

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    used = {i.name for i in session.get_inputs()}
    outputs = session.run(None, {k: v.numpy() for k, v in inputs.items() if k in used})
    for ours, theirs in zip(outputs, expected, strict=True):
        torch.testing.assert_close(torch.from_numpy(ours), theirs, rtol=rtol, atol=atol)
