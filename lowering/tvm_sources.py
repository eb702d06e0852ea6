"""What TVM compiles: ONNX models, and Relax modules that were written as programs of their own."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from .relax_file import bound, is_packed, program_specs, specs_of_program, unpacked
from .tvm_module import InputSpec, compile_module, flat, fuse, import_onnx, input_specs, read_model, tvm, tvm_target

if TYPE_CHECKING:
    import onnx

    Source: TypeAlias = onnx.ModelProto | bytes | str | os.PathLike[str]


def imported(model: Source, symbols: Mapping[str, int] | None = None) -> tuple[Any, list[InputSpec]]:
    """The Relax module of a model, and its inputs. symbols: extents of named dimensions; others become 1.

    Raises whatever TVM's importer raises where it does not know an operator.
    """
    if _is_program(model):
        module = bound(unpacked(model if isinstance(model, bytes) else Path(model)), symbols)
        return module, program_specs(module)
    proto = read_model(model)
    return import_onnx(proto, symbols), input_specs(proto, symbols)


def specs_of(path: str, symbols: Mapping[str, int] | None = None) -> list[InputSpec]:
    """The inputs of a model in a file; its weights are not read."""
    if _is_program(path):
        return specs_of_program(Path(path), symbols)
    import onnx

    return input_specs(onnx.load(path, load_external_data=False), symbols)


def _is_program(model: Source) -> bool:
    """Whether a model is a Relax program; no ONNX model begins like one."""
    if isinstance(model, (str, os.PathLike)):
        with open(model, "rb") as file:
            return is_packed(file.read(16))
    return isinstance(model, bytes) and is_packed(model)


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
        """The outputs. Parameters beyond the arrays have extents from outside: their content is not read.

        Raises `TypeError` for what is no array.
        """
        if not all(isinstance(a, np.ndarray) for a in arrays):
            raise TypeError("inputs that are no tensors")
        further = [np.zeros(OUTSIDE, bool) for _ in self.params[len(arrays) :]]
        tensors = [tvm().runtime.tensor(np.asarray(a, order="C"), tvm().cpu()) for a in (*arrays, *further)]
        return [part.numpy() for part in flat(self.machine["main"](*tensors))]
