"""Models converted to another opset, on a copy without large weights: upward by ONNX's version converter.

The converter (onnx 1.23) loses what its own representation has no place for: documentation and metadata, annotations,
sparse weights, functions, extents' names. All of that is put back by name here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper

from ..errors import UserError
from .onnx_bodies import domain_of
from .onnx_downgrade import downgrade
from .onnx_functions import fitting, functions_of, inline

OLDEST_OPSET = 7
"""Before opset 7 broadcasting was an attribute."""

_LARGE = 1024
"""Bytes from which a tensor is left out of the copy that is converted."""


def opset_of(model: ModelProto) -> int | None:
    """Version of the default operator set that the model imports; None if it imports none."""
    return next((o.version for o in model.opset_import if not domain_of(o.domain)), None)


def check_opset(opset: int) -> None:
    """Raises `UserError` for an opset that cannot be written."""
    newest = onnx.defs.onnx_opset_version()
    if not OLDEST_OPSET <= opset <= newest:
        raise UserError(f"opset must be between {OLDEST_OPSET} and {newest}, not {opset}")


def convert_opset(model: ModelProto, opset: int, label: str = "the model") -> ModelProto:
    """The model in another opset, itself if it is in that one. Weights are shared, not copied where they are large.

    The IR version is raised only where the opset needs a newer one. Raises `UserError` if ONNX cannot convert it.
    """
    check_opset(opset)
    now = opset_of(model)
    if now is None or now == opset:
        return model
    where = f"{label} cannot be converted from opset {now} to {opset}"
    source = _without_functions(model, opset, where)
    light = _light(source)
    try:
        if opset > now:
            converted = onnx.version_converter.convert_version(light, opset)
        else:
            downgrade(converted := light, opset)
    except Exception as error:
        raise UserError(f"{where}: {_reason(error)}") from error
    _check_inputs(source, converted, where)
    _restore(source, converted)
    needed = helper.find_min_ir_version_for([helper.make_opsetid("", opset)])
    converted.ir_version = max(source.ir_version, needed) if opset > now else source.ir_version
    if source.ir_version < 4 <= converted.ir_version:
        # weights that had to be inputs up to IR version 3 would become inputs that callers may override
        weights = {t.name for t in converted.graph.initializer}
        kept = [i for i in converted.graph.input if i.name not in weights]
        _replace(converted.graph.input, kept)
    return converted


def _reason(error: Exception) -> str:
    """The first line of what the converter says, without its source file."""
    text = (str(error).strip().splitlines() or [type(error).__name__])[0]
    text = text.rpartition(" failed: ")[2] if " failed: " in text else text
    missing = re.match(r"No Adapter (From|To) Version \$?(\d+) for (\w+)", text)
    return f"onnx cannot convert {missing[3]} {missing[1].lower()} version {missing[2]}" if missing else text[:300]


def _without_functions(model: ModelProto, opset: int, where: str) -> ModelProto:
    """The model with those functions inlined whose operators are others in the new opset."""
    if not model.functions:
        return model
    versions = {domain_of(o.domain): o.version for o in model.opset_import}
    copy = ModelProto()
    copy.CopyFrom(model)
    functions = functions_of(copy)
    stale = {key for key, f in functions.items() if not fitting(f, functions, {**versions, "": opset})}
    if stale:
        inline(copy, stale)
        left = stale & functions_of(copy).keys()
        if left:
            domain, name, _ = min(left)
            raise UserError(f"{where}: the function {domain}::{name} imports another opset than the model")
    return copy


def _small(tensor: TensorProto) -> bool:
    return tensor.data_location != TensorProto.EXTERNAL and tensor.ByteSize() <= _LARGE


def _light(model: ModelProto) -> ModelProto:
    """A copy in which tensors have no data, except small ones, which the converter may have to read."""
    copy = ModelProto(ir_version=model.ir_version)
    copy.opset_import.extend(model.opset_import)
    for o in copy.opset_import:
        o.domain = domain_of(o.domain)
    graph = copy.graph
    graph.name = model.graph.name or "graph"
    graph.input.extend(model.graph.input)
    graph.output.extend(model.graph.output)
    for tensor in model.graph.initializer:
        graph.initializer.append(tensor if _small(tensor) else _placeholder(tensor))
    for sparse in model.graph.sparse_initializer:
        graph.initializer.append(_placeholder(sparse.values, sparse.dims))
    for node in model.graph.node:
        graph.node.append(_bare(node) if _is_large_constant(node) else node)
    return copy


def _placeholder(tensor: TensorProto, dims: Sequence[int] | None = None) -> TensorProto:
    return TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims if dims is None else dims)


def _is_large_constant(node: NodeProto) -> bool:
    return node.op_type == "Constant" and any(a.HasField("t") and not _small(a.t) for a in node.attribute)


def _bare(node: NodeProto) -> NodeProto:
    """A constant without its data."""
    value = next(a.t for a in node.attribute if a.HasField("t"))
    return helper.make_node("Constant", [], list(node.output), node.name, value=_placeholder(value))


def _replace(field: Any, values: Sequence[Any]) -> None:
    """Set a repeated field to messages that may be in it now."""
    data = [(type(v), v.SerializeToString()) for v in values]
    del field[:]
    field.extend(kind.FromString(text) for kind, text in data)


def _check_inputs(source: ModelProto, converted: ModelProto, where: str) -> None:
    """Refuse what the converter made of a model that it did not understand."""
    for old, new in ((source.graph.input, converted.graph.input), (source.graph.output, converted.graph.output)):
        if [v.name for v in old] != [v.name for v in new]:
            raise UserError(f"{where}: the converter changed its inputs or outputs")


def _constants(model: ModelProto) -> Iterator[tuple[str, NodeProto]]:
    for node in model.graph.node:
        if _is_large_constant(node):
            yield node.output[0], node


def _restore(source: ModelProto, converted: ModelProto) -> None:
    """Put back what the light copy had not or the converter lost, in place."""
    old, new = source.graph, converted.graph
    tensors = {t.name: t for t in old.initializer}
    sparse = {s.values.name for s in old.sparse_initializer}
    copies = onnx.GraphProto()
    copies.initializer.extend(tensors.get(t.name, t) for t in new.initializer if t.name not in sparse)
    del new.initializer[:]
    new.initializer.MergeFrom(copies.initializer)
    new.sparse_initializer.extend(old.sparse_initializer)
    constants = dict(_constants(source))
    before = {n.output[0]: n for n in old.node if n.output}
    for node in new.node:
        if not node.output:
            continue
        known = before.get(node.output[0])
        if known is None or known.op_type != node.op_type:
            continue
        node.name, node.doc_string = known.name, known.doc_string
        node.overload = known.overload
        node.metadata_props.extend(known.metadata_props)
        if node.output[0] in constants:
            node.CopyFrom(constants[node.output[0]])
    _replace(new.input, list(old.input))
    _replace(new.output, list(old.output))
    infos = {i.name: i for i in new.value_info}
    infos.update({i.name: i for i in old.value_info})
    made = {name for n in new.node for name in n.output} | {t.name for t in new.initializer}
    _replace(new.value_info, [i for name, i in infos.items() if name in made])
    del new.quantization_annotation[:], new.metadata_props[:]
    new.quantization_annotation.extend(old.quantization_annotation)
    new.metadata_props.extend(old.metadata_props)
    new.name, new.doc_string = old.name, old.doc_string
    versions = {domain_of(o.domain): o.version for o in converted.opset_import}
    for field, value in source.ListFields():
        if field.name in ("producer_name", "producer_version", "domain", "model_version", "doc_string"):
            setattr(converted, field.name, value)
        elif field.name in ("metadata_props", "training_info", "functions", "configuration"):
            target = getattr(converted, field.name)
            del target[:]
            target.extend(value)
    del converted.opset_import[:]
    for o in source.opset_import:
        converted.opset_import.add(domain=o.domain, version=versions.get(domain_of(o.domain), o.version))
