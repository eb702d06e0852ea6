"""Inputs made up for a graph: random, but such that the graph can run on them."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx

from ..egraph.graph import Graph, TensorType
from ..errors import UserError
from .onnx_tensor import OnnxSource, numpy_dtype, stored_weight

DISTRIBUTIONS = ("normal", "uniform", "wide")
"""Of floating-point inputs: standard normal; uniform in [0, 1); normal with deviation 4 and some zeros."""

DEFAULT_EXTENT = 2
"""Extent of a symbolic dimension that no binding is given for."""

# Operators whose integer result is, for the question "how large may this index be?", still their first operand.
_PASSING = (
    "Reshape", "Transpose", "Slice", "Concat", "Split", "Get", "::Cast", "::Identity", "::Unsqueeze", "::Squeeze",
    "::Expand", "::Reshape", "::Flatten", "::Tile", "::Slice", "::Concat", "::Split", "::Transpose",
)  # fmt: skip

# Operand that holds indices, and the operand (and its axis, None: attribute `axis`) that they point into.
_INDEXING: dict[str, tuple[tuple[int, int, int | None], ...]] = {
    "::Gather": ((1, 0, None),),
    "::GatherElements": ((1, 0, None),),
    "::ScatterElements": ((1, 0, None),),
    "com.microsoft::EmbedLayerNormalization": ((0, 2, 0), (1, 4, 0)),
}


def random_inputs(
    graph: Graph, seed: int, symbols: Mapping[str, int] | None = None, distribution: str = "normal"
) -> dict[str, np.ndarray]:
    """One array for each input of the graph; the same seed gives the same arrays.

    Integer inputs that index something are in its range; other integers are 1 with a few 0 (masks), 8-bit ones take
    any value. Symbolic dimensions are taken from `symbols`, else they are `DEFAULT_EXTENT`. Inputs that the model has
    a default for get it. Raises `UserError` for inputs of unknown rank or of no tensor type.
    """
    bounds = _index_bounds(graph)
    found: dict[str, np.ndarray] = {}
    kinds = {str(n.attrs["name"]): n.type for n in graph.nodes if n.op == "Input"}
    defaults = graph.source.defaults if isinstance(graph.source, OnnxSource) else {}
    for name in graph.input_names:
        kind = kinds[name]
        if name in defaults:
            path = graph.source.path
            found[name] = np.array(stored_weight(defaults[name], name, path.parent if path else None).load())
            continue
        if not isinstance(kind, TensorType) or kind.shape is None:
            raise UserError(f"input {name!r} has no known rank: give the model's inputs shapes first")
        shape = tuple(d if isinstance(d, int) else (symbols or {}).get(d, DEFAULT_EXTENT) for d in kind.shape)
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])  # by name: other inputs do not matter
        found[name] = _array(rng, shape, kind.dtype, bounds.get(name), distribution)
    return found


def _array(
    rng: np.random.Generator, shape: tuple[int, ...], dtype: str, bound: int | None, distribution: str
) -> np.ndarray:
    if dtype == "string":
        return np.full(shape, "text", dtype=object)
    if dtype == "bool":
        return np.asarray(rng.random(shape) < 0.5)
    try:
        kind = numpy_dtype(dtype)
    except KeyError as error:
        raise UserError(f"inputs of type {dtype} cannot be made up") from error
    if "int" in dtype:
        if bound is not None:
            return np.asarray(rng.integers(0, max(1, bound), shape)).astype(kind)
        if dtype in ("int8", "uint8"):
            info = np.iinfo(dtype)
            return np.asarray(rng.integers(info.min, info.max, shape, endpoint=True)).astype(kind)
        mask = np.asarray(rng.random(shape) < 0.9)
        if mask.ndim:
            mask[..., :1] = True  # a row that is masked out as a whole would be NaN in many models
        else:
            mask = np.asarray(True)
        return mask.astype(kind)
    if distribution == "uniform":
        values = rng.random(shape)
    else:
        values = rng.standard_normal(shape)
        if distribution == "wide":
            values = values * 4 * (rng.random(shape) < 0.9)
    return np.asarray(values).astype(kind)


def _index_bounds(graph: Graph) -> dict[str, int]:
    """For integer inputs that are used as indices: the smallest extent that they point into."""
    origins: dict[int, set[str]] = {}
    bounds: dict[str, int] = {}
    for i, node in enumerate(graph.nodes):
        if node.op == "Input":
            if isinstance(node.type, TensorType) and "int" in node.type.dtype:
                origins[i] = {str(node.attrs["name"])}
            continue
        for index, target, axis in _INDEXING.get(node.op, ()):
            if index >= len(node.inputs) or target >= len(node.inputs):
                continue
            extent = _extent(graph, node.inputs[target], _axis(graph, node.attrs) if axis is None else axis)
            for name in origins.get(node.inputs[index], ()) if extent is not None else ():
                bounds[name] = min(extent or 0, bounds.get(name, extent or 0))
        if node.op == "::OneHot":
            depth = graph.nodes[node.inputs[1]]
            weight = graph.weights.get(str(depth.attrs.get("digest")))
            for name in origins.get(node.inputs[0], ()) if weight is not None and weight.value is not None else ():
                bounds[name] = min(int(weight.value.reshape(-1)[0]), bounds.get(name, 1 << 31))  # type: ignore[union-attr]
        if node.op in _PASSING:
            passed = {name for k in node.inputs for name in origins.get(k, ())}
            if passed:
                origins[i] = passed
    return bounds


def _axis(graph: Graph, attrs: dict[str, Any]) -> int:
    proto = onnx.NodeProto.FromString(graph.opaques[str(attrs["proto"])])
    return next((a.i for a in proto.attribute if a.name == "axis"), 0)


def _extent(graph: Graph, index: int, axis: int) -> int | None:
    kind = graph.nodes[index].type
    if not isinstance(kind, TensorType) or kind.shape is None or not -len(kind.shape) <= axis < len(kind.shape):
        return None
    extent = kind.shape[axis]
    return extent if isinstance(extent, int) else None
