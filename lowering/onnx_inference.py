"""Types of a model's values by ONNX's own shape inference."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

from onnx import ModelProto, TensorProto, TypeProto, defs, shape_inference

from ..egraph.graph import TensorType
from .onnx_bodies import domain_of
from .onnx_tensor import ANONYMOUS, Symbols, anonymous, tensor_type

_LARGE = 1024
"""Tensors of more bytes are left out of the copy that shape inference gets: it reads only small ones."""


def inferred_types(model: ModelProto, symbols: Symbols, functions: Container[tuple[str, str]]) -> dict[str, TensorType]:
    """The types that ONNX's shape inference gives, by value name. Empty if it fails."""
    copy = skeleton(model)
    graph = copy.graph
    for value in graph.input:
        for axis, d in enumerate(value.type.tensor_type.shape.dim):
            if not d.HasField("dim_value") and d.dim_param in ANONYMOUS:
                d.dim_param = anonymous(value.name, axis)
    for tensor in model.graph.initializer:
        graph.initializer.append(_light(tensor))
    custom = set()
    for node in model.graph.node:
        domain = domain_of(node.domain)
        unknown = domain == "" and not defs.has(node.op_type)  # ONNX Runtime has some in ONNX's own domain
        if domain != "" or unknown or (domain, node.op_type) in functions:
            custom.update(node.output)
        attribute = node.attribute[0] if node.op_type == "Constant" and len(node.attribute) == 1 else None
        if attribute is not None and attribute.name == "value" and attribute.t.ByteSize() > _LARGE:
            graph.initializer.append(_light(attribute.t))
            graph.initializer[-1].name = node.output[0]
        else:
            graph.node.append(node)
    weights = {tensor.name for tensor in graph.initializer}
    for info in model.graph.value_info:
        if info.name in weights:  # torch lists its initializers here too; their own extents are known better
            continue
        graph.value_info.append(info)
        if info.name not in custom:
            _forget(graph.value_info[-1].type)
    for info in graph.output:
        if info.name not in custom:
            _forget(info.type)
    try:
        inferred = shape_inference.infer_shapes(copy, check_type=False, strict_mode=False, data_prop=True)
    except Exception:  # noqa: BLE001 (onnx raises several unrelated types)
        inferred = copy  # a model that ONNX cannot follow; the core type rules still can
    found: dict[str, TensorType] = {}
    for info in (*inferred.graph.value_info, *inferred.graph.output):
        kind = tensor_type(info.type, symbols)
        if kind is not None:
            found[info.name] = kind
    return found


def _forget(kind: TypeProto) -> None:
    """Drop extents and their names: those that exporters or later edits left may be stale."""
    if kind.HasField("tensor_type"):
        for d in kind.tensor_type.shape.dim:
            d.Clear()


def _light(tensor: TensorProto) -> TensorProto:
    """The tensor itself if it is small, else only its name and type."""
    if tensor.ByteSize() <= _LARGE and tensor.data_location != TensorProto.EXTERNAL:
        return tensor
    return TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)


def skeleton(model: ModelProto) -> ModelProto:
    """A copy of the model without nodes, weights and value infos."""
    copy = ModelProto()
    for field, value in model.ListFields():
        if field.name != "graph":
            _copy_field(copy, field.name, value)
    for field, value in model.graph.ListFields():
        if field.name not in ("node", "initializer", "sparse_initializer", "value_info", "quantization_annotation"):
            _copy_field(copy.graph, field.name, value)
    return copy


def _copy_field(target: Any, name: str, value: Any) -> None:
    if isinstance(value, (str, bytes, int, float)):
        setattr(target, name, value)
    elif hasattr(value, "CopyFrom"):
        getattr(target, name).CopyFrom(value)
    else:
        getattr(target, name).extend(value)
