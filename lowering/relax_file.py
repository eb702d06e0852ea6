"""Relax programs as bytes: TVM's JSON of the module, and its large weights behind it as they are.

In JSON a weight takes a third more room and a hundred times as long. Layout: `MAGIC`, the length of a header in eight
bytes, the header (JSON: the module, and name, type and shape of each weight), the weights one after the other. Header
and weights begin at multiples of `ALIGNED` bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .tvm_module import InputSpec, tvm

MAGIC = b"\xffxrlflow"

ALIGNED = 64

LARGE = 1 << 14
"""Bytes from which on a weight is kept apart."""


def packed(module: Any, weights: Mapping[str, np.ndarray]) -> bytes:
    """A module whose function "main" has these weights as its last parameters."""
    return b"".join(pieces(module, weights))


def pieces(module: Any, weights: Mapping[str, np.ndarray]) -> list[Any]:
    """What `packed` puts together: what a file can take piece by piece."""
    arrays = [np.ascontiguousarray(a) for a in weights.values()]
    told = [{"name": n, "dtype": str(a.dtype), "shape": a.shape} for n, a in zip(weights, arrays, strict=True)]
    header = json.dumps({"module": str(tvm().ir.save_json(module)), "weights": told}).encode()
    start = MAGIC + len(header).to_bytes(8, "little")
    flat: list[Any] = [x for a in arrays for x in (a.reshape(-1).view(np.uint8).data, _gap(a.nbytes))]
    return [start, _gap(len(start)), header, _gap(len(header)), *flat]


def _gap(size: int) -> bytes:
    """What comes behind so many bytes."""
    return bytes(-size % ALIGNED)


def _header(start: bytes) -> tuple[int, int]:
    """Where a program's header begins and ends, by the program's first bytes."""
    return ALIGNED, ALIGNED + int.from_bytes(start[len(MAGIC) : len(MAGIC) + 8], "little")


def is_packed(data: bytes) -> bool:
    """Whether the first bytes of something are those of a program."""
    return data[: len(MAGIC)] == MAGIC


def unpacked(data: bytes | Path) -> Any:
    """The module, its weights as constants again."""
    buffer = np.fromfile(data, np.uint8) if isinstance(data, Path) else np.frombuffer(data, np.uint8)
    start, end = _header(buffer[:ALIGNED].tobytes())
    header = json.loads(buffer[start:end].tobytes())
    module = tvm().ir.load_json(header["module"])
    arrays = {}
    for told in header["weights"]:
        end += -end % ALIGNED
        dtype, shape = np.dtype(told["dtype"]), tuple(told["shape"])
        size = dtype.itemsize * int(np.prod(shape))
        arrays[told["name"]] = buffer[end : end + size].view(dtype).reshape(shape)
        end += size
    return with_weights(module, arrays)


def with_weights(module: Any, weights: Mapping[str, np.ndarray]) -> Any:
    """The module with the last parameters of its function "main" as constants."""
    from tvm import relax

    if not weights:
        return module
    function = module["main"]
    last = dict(zip(function.params[len(function.params) - len(weights) :], weights.values(), strict=True))
    whole = function.bind_params({var: relax.const(np.asarray(a, order="C")) for var, a in last.items()})
    found = tvm().IRModule(dict(module.functions_items()), module.attrs, module.global_infos)
    found.update_func(module.get_global_var("main"), whole)
    return found


def bound(module: Any, symbols: Mapping[str, int] | None = None) -> Any:
    """The module with its symbols bound to extents (1 where none is told)."""
    from tvm import relax

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


def specs_of_program(path: Path, symbols: Mapping[str, int] | None = None) -> list[InputSpec]:
    """The inputs of a program in a file, its symbols bound; its weights are not read."""
    with path.open("rb") as file:
        start, end = _header(file.read(ALIGNED))
        header = json.loads(file.read(end - start))
    return program_specs(bound(tvm().ir.load_json(header["module"]), symbols), len(header["weights"]))


def program_specs(module: Any, weights: int = 0) -> list[InputSpec]:
    """The inputs of a module's function "main", the last parameters left out if these are weights; extents that are
    not numbers count as 1."""
    from tvm import tirx

    params = module["main"].params
    specs = []
    for param in params[: len(params) - weights]:
        values = param.ty.shape.values if param.ty.shape is not None else ()
        shape = tuple(int(v) if isinstance(v, tirx.IntImm) else 1 for v in values)
        specs.append(InputSpec(str(param.name), shape, str(param.ty.dtype)))
    return specs
