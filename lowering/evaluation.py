"""The reference evaluator: every core operator in torch, in float64 unless asked otherwise, integers exactly."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ..egraph.dimension import Polynomial
from ..egraph.dimension import evaluate as extent_of
from ..egraph.fused import FUSED
from ..egraph.graph import Graph, Node, TupleType, Type
from .fused_evaluation import Speller
from .onnx_tensor import numpy_dtype
from .semantics import RULES, NotEvaluable, Tensor, Value, cast

__all__ = ["NotEvaluable", "Tensor", "bind_symbols", "bound", "evaluate", "evaluate_node", "to_numpy", "to_torch"]


def to_torch(array: np.ndarray) -> Tensor:
    """The array as a tensor of the same element type. Raises `NotEvaluable` for types that torch lacks."""
    array = np.asarray(array)
    if str(array.dtype) == "bfloat16":
        return torch.from_numpy(_owned(array.view(np.int16))).view(torch.bfloat16)
    try:
        return torch.from_numpy(_owned(array))
    except TypeError as error:
        raise NotEvaluable(f"tensors of type {array.dtype}") from error


def _owned(array: np.ndarray) -> np.ndarray:
    """An array that torch may wrap: contiguous, writable, at least as many dimensions as before."""
    return np.require(array, requirements=["C", "W", "O"]).reshape(array.shape)


def to_numpy(tensor: Tensor, dtype: str) -> np.ndarray:
    """The tensor rounded to `dtype`, a name as in `TensorType`."""
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.to(torch.float32)
    with np.errstate(over="ignore"):
        return tensor.contiguous().numpy().astype(numpy_dtype(dtype), copy=False)


Opaque = Callable[[int, list[np.ndarray | None]], list[np.ndarray]]


def evaluate(
    graph: Graph, inputs: Mapping[str, np.ndarray], dtype: str = "float64", opaque: Opaque | None = None
) -> list[np.ndarray]:
    """The graph's outputs for these inputs, in the graph's order.

    Floating-point tensors, weights included, are computed and returned in `dtype`; integers and booleans as they
    are. `opaque` computes the operators that are not core, given the node's index and its operands (None where one is
    absent). Raises `NotEvaluable` naming the operator if there is none, `KeyError` for an input that is not given.
    Weights are loaded for each operator that reads them and not kept.
    """
    width = getattr(torch, dtype)

    def widened(array: np.ndarray) -> Tensor:
        array = np.asarray(array)
        if array.dtype.kind == "f" and dtype == "float64":
            return torch.from_numpy(array.astype(np.float64))  # one copy; torch would make two of a mapped array
        tensor = to_torch(array)
        return tensor.to(width) if tensor.is_floating_point() else tensor

    def stored(k: int) -> np.ndarray:
        return graph.weights[str(graph.nodes[k].attrs["digest"])].load()

    def operand(k: int) -> Value:
        return widened(stored(k)) if graph.nodes[k].op == "Weight" else values[k]

    binding: dict[str, int] = {}
    values: dict[int, Value] = {}
    last_use = {k: i for i in graph.live for k in (*graph.nodes[i].inputs, i)}
    last_use.update(dict.fromkeys(graph.outputs, len(graph.nodes)))
    with torch.no_grad():
        for i in graph.live:
            node = graph.nodes[i]
            if node.op == "Input":
                values[i] = widened(inputs[str(node.attrs["name"])])
                bind_symbols(node.type, values[i], binding)
            elif node.opaque and opaque is not None:
                operands = [stored(k) if graph.nodes[k].op == "Weight" else _plain(values.get(k)) for k in node.inputs]
                results = tuple(widened(array) for array in opaque(i, operands))
                values[i] = results if isinstance(node.type, TupleType) else results[0]
                bind_symbols(node.type, values[i], binding)
            elif node.op not in ("Weight", "Absent"):
                present = (k for k in node.inputs if graph.nodes[k].op != "Absent")
                values[i] = _apply(node, [operand(k) for k in present], binding, width)
            for k in dict.fromkeys(node.inputs):
                if last_use[k] == i:
                    values.pop(k, None)
    found = [operand(i) for i in graph.outputs]
    return [to_numpy(v, str(v.dtype).removeprefix("torch.")) for v in found if isinstance(v, Tensor)]


def _plain(value: Value | None) -> np.ndarray | None:
    return to_numpy(value, str(value.dtype).removeprefix("torch.")) if isinstance(value, Tensor) else None


def bind_symbols(kind: Type, value: Value, binding: dict[str, int]) -> None:
    """Note the extents that a value gives to the symbols of its type; the first one to tell counts."""
    if isinstance(kind, TupleType):
        for item, part in zip(kind.items, value, strict=False):
            bind_symbols(item, part, binding)
    elif isinstance(value, Tensor) and kind.shape is not None and len(kind.shape) == value.ndim:
        for d, extent in zip(kind.shape, value.shape, strict=True):
            if isinstance(d, Polynomial) and d.name:
                binding.setdefault(d.name, extent)


def bound(attrs: Mapping[str, Any], binding: Mapping[str, int]) -> dict[str, Any]:
    """Attributes with the dimensions in them evaluated. Raises `NotEvaluable` where a symbol has no extent."""
    try:
        return {
            k: tuple(extent_of(d, binding) if isinstance(d, Polynomial) else d for d in v)
            if isinstance(v, tuple)
            else v
            for k, v in attrs.items()
        }
    except KeyError as error:
        raise NotEvaluable(f"the extent {error.args[0]} is not known") from error


def _apply(node: Node, operands: list[Value], binding: Mapping[str, int], width: torch.dtype) -> Value:
    if node.op == "Get":
        parts = operands[0]
        assert isinstance(parts, tuple)
        return parts[node.attrs["index"]]
    present = [v for v in operands if isinstance(v, Tensor)]
    if node.op == "Cast":
        return cast(present[0], str(node.attrs["to"]), width, lenient=True)
    return evaluate_node(node.op, bound(node.attrs, binding), present, width)


def evaluate_node(
    op: str, attrs: Mapping[str, Any], inputs: Sequence[Tensor], width: torch.dtype = torch.float64
) -> Value:
    """The result of one core operator (a tuple for Split); floating-point operands are all of type `width`.

    Raises `NotEvaluable` for opaque operators and for element types that the operator has no meaning for.
    """
    if op == "Cast":
        return cast(inputs[0], str(attrs["to"]), width)
    if op in FUSED:
        spell = Speller(
            lambda o, a, xs: evaluate_node(o, a, xs, width), lambda array: torch.from_numpy(array).to(width), _extents
        )
        found: Value = spell(op, attrs, inputs)
        return found
    rule = RULES.get(op)
    if rule is None:
        raise NotEvaluable(f"operator {op.removeprefix('::')} has no reference implementation")
    if any(t.is_complex() for t in inputs):
        raise NotEvaluable(f"{op} of complex numbers")
    try:
        return rule(dict(attrs), list(inputs))
    except (RuntimeError, NotImplementedError) as error:
        types = ", ".join(f"{str(t.dtype).removeprefix('torch.')}{list(t.shape)}" for t in inputs)
        raise NotEvaluable(f"{op} of {types}: {str(error).splitlines()[0]}") from error


def _extents(x: Tensor) -> Sequence[int]:
    return tuple(x.shape)
