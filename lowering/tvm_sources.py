"""What TVM compiles: ONNX models, and Relax modules that were written as programs of their own."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from .tvm_module import InputSpec, compile_module, fuse, import_onnx, input_specs, read_model, tvm, tvm_target

if TYPE_CHECKING:
    import onnx

    Source: TypeAlias = onnx.ModelProto | bytes | str | os.PathLike[str]


def imported(model: Source, symbols: Mapping[str, int] | None = None) -> tuple[Any, list[InputSpec]]:
    """The Relax module of a model, and its inputs. symbols: extents of named dimensions; others become 1.

    Raises whatever TVM's importer raises where it does not know an operator.
    """
    data = _program(model)
    if data is not None:
        module = load_program(data, symbols)
        return module, program_specs(module)
    proto = read_model(model)
    return import_onnx(proto, symbols), input_specs(proto, symbols)


def specs_of(path: str, symbols: Mapping[str, int] | None = None) -> list[InputSpec]:
    """The inputs of a model in a file; its weights are not read if they lie elsewhere."""
    data = _program(path)
    if data is not None:
        return program_specs(load_program(data, symbols))
    import onnx

    return input_specs(onnx.load(path, load_external_data=False), symbols)


def _program(model: Source) -> bytes | None:
    """The text of a module; None for ONNX models, none of which begins as JSON does."""
    if isinstance(model, bytes):
        return model if model[:1] == b"{" else None
    if isinstance(model, (str, os.PathLike)):
        with open(model, "rb") as file:
            return Path(model).read_bytes() if file.read(1) == b"{" else None
    return None


def load_program(data: bytes, symbols: Mapping[str, int] | None = None) -> Any:
    """The module that `RelaxModel.SerializeToString` wrote, symbols bound to extents (1 where none is told)."""
    from tvm import relax

    module = plain_program(data)
    function = module["main"]
    known = {
        v: int((symbols or {}).get(v.name, 1))
        for p in function.params
        for v in relax.analysis.definable_tir_vars_in_type(p.ty)
    }
    if not known:
        return module
    module.update_func(module.get_global_var("main"), function.bind_symbolic_vars(known))
    return module


def plain_program(data: bytes) -> Any:
    """The module that `RelaxModel.SerializeToString` wrote."""
    return tvm().ir.load_json(data.decode())


OUTSIDE = 3
"""Extents that a program reads and none of its inputs has, where nobody says what they are."""


class Main:
    """A module's function "main", compiled for this machine's processor and run by one thread.

    schedules: folder of tuned ones; without them it is many times slower.
    """

    def __init__(self, module: Any, schedules: Path | None = None) -> None:
        from tvm import relax

        target = tvm_target("llvm")
        fused, known = fuse(module, target), None
        if schedules is not None:
            from .tvm_tasks import recorded

            known = recorded(fused, target, schedules)
        self.params = list(module["main"].params)
        self.machine = relax.VirtualMachine(compile_module(fused, target, known), tvm().cpu())

    def __call__(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The outputs. Parameters beyond the arrays are tensors of extents from outside: their content is not read."""
        further = [np.zeros([OUTSIDE] * len(p.ty.shape.values), bool) for p in self.params[len(arrays) :]]
        tensors = [tvm().runtime.tensor(np.asarray(a, order="C"), tvm().cpu()) for a in (*arrays, *further)]
        found = self.machine["main"](*tensors)
        parts = [found] if hasattr(found, "numpy") else list(found)
        return [part.numpy() for part in parts]


def program_specs(module: Any) -> list[InputSpec]:
    """The inputs of a module's function "main"; extents that are not numbers count as 1."""
    specs = []
    for param in module["main"].params:
        values = param.ty.shape.values if param.ty.shape is not None else ()
        shape = tuple(int(v) if hasattr(v, "value") else 1 for v in values)
        specs.append(InputSpec(str(param.name), shape, str(param.ty.dtype)))
    return specs
