"""Inputs that the user gives: read, compared with the model's inputs, and the extents that follow from them."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..egraph.dimension import evaluate
from ..egraph.graph import UNKNOWN, Graph, TensorType
from ..errors import UserError
from .onnx_tensor import OnnxSource, numpy_dtype


def read_inputs(source: str | os.PathLike[str] | Mapping[str, Any], graph: Graph) -> dict[str, np.ndarray]:
    """The model's inputs from an .npz file or a mapping of arrays, in the model's element types.

    An array of another type is converted if every value survives. Inputs that the model has a default for may be left
    out. Raises `UserError` for a file that cannot be read (pickled objects are refused), a missing or unknown name, or
    an array whose type or shape is not the model's.
    """
    label = "inputs"
    if not isinstance(source, Mapping):
        label, source = os.path.basename(os.fspath(source)), _arrays(source)
    names = list(graph.input_names)
    for name in source:
        if name not in names:
            raise UserError(f"{label}: the model has no input {name!r}; its inputs are {', '.join(map(repr, names))}")
    defaults = graph.source.defaults if isinstance(graph.source, OnnxSource) else {}
    kinds = {str(n.attrs["name"]): n.type for n in graph.nodes if n.op == "Input"}
    found = {}
    for name in names:
        kind = kinds[name]
        assert isinstance(kind, TensorType)
        if name in source:
            found[name] = _checked(name, source[name], kind, label)
        elif name not in defaults:
            raise UserError(f"{label}: the input {name!r} ({kind}) is missing")
    bound_symbols(graph, found, label)
    return found


def bound_symbols(graph: Graph, arrays: Mapping[str, Any], label: str = "inputs") -> dict[str, int]:
    """The extents that the arrays give to the symbols of the model's inputs. Raises `UserError` if they disagree."""
    kinds = {str(n.attrs["name"]): n.type for n in graph.nodes if n.op == "Input"}
    binding: dict[str, int] = {}
    origin: dict[str, str] = {}
    pairs = []
    for name, array in arrays.items():
        kind = kinds.get(name)
        if isinstance(kind, TensorType) and kind.shape is not None and isinstance(array, np.ndarray):
            pairs += [(name, axis, d, array.shape[axis]) for axis, d in enumerate(kind.shape)]
    for name, axis, d, extent in pairs:
        symbol = None if isinstance(d, int) else d.name
        if symbol is not None and binding.setdefault(symbol, extent) != extent:
            raise UserError(
                f"{label}: {symbol!r} is {binding[symbol]} in input {origin[symbol]!r}, but {extent} in {name!r} "
                f"(axis {axis})"
            )
        if symbol is not None:
            origin.setdefault(symbol, name)
    for name, axis, d, extent in pairs:
        known = isinstance(d, int) or all(s in binding for s in d.symbols)
        if known and evaluate(d, binding) != extent:
            raise UserError(f"{label}: input {name!r} has extent {extent} on axis {axis}, the model expects {d}")
    return binding


def _arrays(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    label = os.path.basename(os.fspath(path))
    if not Path(path).is_file():
        raise UserError(f"{label}: there is no such file of inputs")
    if not zipfile.is_zipfile(path):
        raise UserError(f"{label}: is no .npz file; write one with numpy.savez({label!r}, NAME=array, ...)")
    try:
        with np.load(path, allow_pickle=False) as data:
            found = {}
            for name in data.files:
                try:
                    found[name] = data[name]
                except ValueError as error:
                    raise UserError(f"{label}: array {name!r} cannot be read: {_line(error)}") from None
    except (OSError, ValueError, zipfile.BadZipFile, EOFError, KeyError) as error:
        raise UserError(f"{label}: cannot be read: {_line(error)}") from None
    bad = [name for name, array in found.items() if not isinstance(array, np.ndarray)]
    if bad:
        raise UserError(f"{label}: {bad[0]!r} is no array")
    return found


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _checked(name: str, value: Any, kind: TensorType, label: str) -> np.ndarray:
    if kind.dtype == UNKNOWN:
        raise UserError(f"{label}: input {name!r} is no tensor in the model and cannot be given as an array")
    try:
        array = np.asarray(value)
    except (ValueError, TypeError) as error:
        raise UserError(f"{label}: input {name!r} is no array: {_line(error)}") from None
    given = f"{array.dtype}[{','.join(map(str, array.shape))}]"
    wrong = f"{label}: input {name!r} is {given}, the model expects {kind}"
    if kind.shape is not None and (
        array.ndim != len(kind.shape)
        or any(isinstance(d, int) and d != n for d, n in zip(kind.shape, array.shape, strict=True))
    ):
        raise UserError(wrong)
    if kind.dtype == "string":
        if array.dtype.kind not in "USO" or (array.dtype == object and not all(isinstance(v, str) for v in array.flat)):
            raise UserError(wrong)
        text = np.char.decode(array, "utf-8") if array.dtype.kind == "S" else array
        return np.asarray(text, object)
    to = numpy_dtype(kind.dtype)
    if array.dtype.kind == "V" and array.dtype.itemsize == to.itemsize and array.dtype != to:
        array = array.view(to)  # numpy's files have no names for bfloat16 and the like
    if array.dtype == to:
        return np.ascontiguousarray(array).reshape(array.shape)
    if array.dtype.kind in "USOMmV" or (array.dtype.kind == "c" and to.kind != "c"):
        raise UserError(wrong)
    with np.errstate(all="ignore"):
        cast = array.astype(to)
        back = cast.astype(array.dtype)
    if not np.array_equal(back, array, equal_nan=array.dtype.kind in "fc"):
        raise UserError(f"{wrong}, and not every value fits that type")
    return np.asarray(cast)


def save_arrays(path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays of any names and types where `load_arrays` finds them."""
    stored: dict[str, Any] = {"names": np.array(json.dumps([[n, str(a.dtype)] for n, a in arrays.items()]))}
    for k, array in enumerate(arrays.values()):
        plain = array.astype(str) if array.dtype == object else array
        stored[f"a{k}"] = plain.view(f"u{plain.dtype.itemsize}") if plain.dtype.kind == "V" else plain
    with open(path, "wb") as f:
        np.savez(f, **stored)


def load_arrays(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """What `save_arrays` wrote."""
    with np.load(path, allow_pickle=False) as data:
        found = {}
        for k, (name, dtype) in enumerate(json.loads(str(data["names"]))):
            array = data[f"a{k}"]
            if dtype == "object":
                found[name] = np.asarray(array, object)
            else:
                to = np.dtype(dtype) if dtype in np.sctypeDict else numpy_dtype(dtype)
                found[name] = array if array.dtype == to else array.view(to)
    return found
