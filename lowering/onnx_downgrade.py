"""Operators rewritten in the form of an older opset, in place.

ONNX's own converter (1.23) goes down for a handful of operators only. Here an operator may go down if the older one has
every attribute, input and output that it uses, or if what became an input since then is constant and can be an
attribute again. What else may have changed is for the comparison of results to find (`onnx_reader.load`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper, shape_inference

from .onnx_bodies import domain_of, subgraphs


class NotExpressible(ValueError):
    """The older opset has no form of a node; the message says which and why."""


_REDUCTIONS = ("Max", "Mean", "Min", "Prod", "L1", "L2", "LogSum", "LogSumExp", "SumSquare")
_ATTRIBUTES: dict[str, tuple[int, tuple[str, ...]]] = {
    "Squeeze": (13, ("axes",)),
    "Unsqueeze": (13, ("axes",)),
    "ReduceSum": (13, ("axes",)),
    **{f"Reduce{name}": (18, ("axes",)) for name in _REDUCTIONS},
    "Split": (13, ("split",)),
    "Dropout": (12, ("ratio",)),
    "Clip": (11, ("min", "max")),
    "Pad": (11, ("pads", "value")),
    "Slice": (10, ("starts", "ends", "axes")),
    "TopK": (10, ("k",)),
}
"""Inputs after the first that were attributes before an opset."""

_SCALARS = ("ratio", "min", "max", "value", "k")
_IMPLIED = {("Slice", 4): 1, ("Dropout", 2): 0, ("Pad", 3): None}
"""Further inputs, and the value at which they can be left out (None: only if not given)."""


@dataclass
class _Site:
    now: int
    opset: int
    ranks: Mapping[str, int]


def downgrade(model: ModelProto, opset: int) -> None:
    """Rewrite all nodes of the default domain for an older opset. Raises `NotExpressible`."""
    now = next(o.version for o in model.opset_import if not domain_of(o.domain))
    _lower(model.graph, {}, _Site(now, opset, _ranks(model)))
    for o in model.opset_import:
        if not domain_of(o.domain):
            o.version = opset


def _ranks(model: ModelProto) -> dict[str, int]:
    """Ranks of values, as far as ONNX infers them, those in bodies too."""
    try:
        inferred = shape_inference.infer_shapes(model, data_prop=True)
    except Exception:  # noqa: BLE001 (onnx raises several unrelated types)
        inferred = model
    found = {t.name: len(t.dims) for t in model.graph.initializer}
    stack = [inferred.graph]
    while stack:
        graph = stack.pop()
        for info in (*graph.value_info, *graph.input, *graph.output):
            if info.type.HasField("tensor_type") and info.type.tensor_type.HasField("shape"):
                found[info.name] = len(info.type.tensor_type.shape.dim)
        stack.extend(body for node in graph.node for body in subgraphs(node))
    return found


def _lower(graph: GraphProto, outer: Mapping[str, TensorProto], site: _Site) -> None:
    constants = {**outer, **{t.name: t for t in graph.initializer}}
    for node in graph.node:
        if domain_of(node.domain):
            continue
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name.startswith("value"):
            constants[node.output[0]] = _constant(node)
        for body in subgraphs(node):
            _lower(body, constants, site)
        try:
            _node(node, constants, site)
        except NotExpressible as error:
            label = f"{node.op_type} {node.name or next(filter(None, node.output), '')!r}"
            raise NotExpressible(f"{label}: {error}") from None


def _constant(node: NodeProto) -> TensorProto:
    """The tensor of a Constant, which up to opset 11 has no other form."""
    a = node.attribute[0]
    if a.name == "value":
        return a.t
    if a.name not in ("value_float", "value_floats", "value_int", "value_ints"):
        raise NotExpressible(f"Constant with {a.name}")
    value = helper.get_attribute_value(a)
    tensor = numpy_helper.from_array(np.array(value, np.float32 if "float" in a.name else np.int64))
    del node.attribute[:]
    node.attribute.append(helper.make_attribute("value", tensor))
    return tensor


def _node(node: NodeProto, constants: Mapping[str, TensorProto], site: _Site) -> None:
    old = _schema(node.op_type, site.now)
    new = _schema(node.op_type, site.opset)
    if old.since_version == new.since_version:
        return
    _inputs_to_attributes(node, constants, site)
    _axes(node, site)
    for a in list(node.attribute):
        if a.name in new.attributes:
            continue
        default = old.attributes[a.name].default_value if a.name in old.attributes else None
        equal = default is not None and default.name and helper.get_attribute_value(default) == _value(a)
        if not equal and (node.op_type, a.name) != ("Split", "num_outputs"):
            raise NotExpressible(f"attribute {a.name} came after opset {site.opset}")
        node.attribute.remove(a)
    given = {a.name for a in node.attribute}
    for name, attribute in new.attributes.items():
        before = old.attributes[name].default_value if name in old.attributes else None
        if name not in given and before is not None and before.name and before != attribute.default_value:
            node.attribute.append(before)  # the default is another one
        elif name not in given and attribute.required:
            raise NotExpressible(f"opset {site.opset} demands the attribute {name}")
    while node.input and not node.input[-1]:
        del node.input[-1]
    while len(node.output) > new.max_output and not node.output[-1]:
        del node.output[-1]
    if not new.min_input <= len(node.input) <= new.max_input or len(node.output) > new.max_output:
        raise NotExpressible(f"opset {site.opset} has another number of inputs or outputs")


def _schema(op: str, opset: int) -> onnx.defs.OpSchema:
    try:
        schema = onnx.defs.get_schema(op, opset, "")
    except onnx.defs.SchemaError:
        raise NotExpressible(f"opset {opset} has no such operator") from None
    if schema.deprecated:
        raise NotExpressible(f"opset {opset} has no such operator")
    return schema


def _value(a: onnx.AttributeProto) -> Any:
    return helper.get_attribute_value(a)


def _inputs_to_attributes(node: NodeProto, constants: Mapping[str, TensorProto], site: _Site) -> None:
    since, names = _ATTRIBUTES.get(node.op_type, (0, ()))
    if not site.opset < since <= site.now:
        return
    for (op, k), implied in _IMPLIED.items():
        if op == node.op_type and k < len(node.input) and node.input[k]:
            if implied is None or not (_read(node.input[k], constants) == implied).all():
                raise NotExpressible(f"its input {k} came after opset {site.opset}")
    for k, name in enumerate(names, 1):
        if k < len(node.input) and node.input[k]:
            value = _read(node.input[k], constants).reshape(-1).tolist()
            if len(value) != 1 and name in _SCALARS:
                raise NotExpressible(f"{name} is no scalar")
            node.attribute.append(helper.make_attribute(name, value[0] if name in _SCALARS else value))
    del node.input[1:]


def _read(name: str, constants: Mapping[str, TensorProto]) -> np.ndarray:
    tensor = constants.get(name)
    try:
        return np.asarray(numpy_helper.to_array(tensor))
    except (AttributeError, ValueError):  # none, or one whose data were left out
        raise NotExpressible(f"{name!r} is computed or large, but has to be an attribute in the older form") from None


def _axes(node: NodeProto, site: _Site) -> None:
    """Axes from the front, which is all that opsets up to 10 know; and a softmax over one axis."""
    rank = site.ranks.get(node.input[0]) if node.input else None
    if node.op_type in ("Softmax", "LogSoftmax", "Hardmax") and site.opset < 13 <= site.now:
        # up to opset 12 all axes from the given one on are normalised together
        axis = next((a.i for a in node.attribute if a.name == "axis"), -1)
        if axis != -1 and (rank is None or axis % rank != rank - 1):
            raise NotExpressible(f"before opset 13 it cannot run along axis {axis}")
        if rank is None and site.opset < 11:
            raise NotExpressible("the rank of its operand is not known")
        kept = [a for a in node.attribute if a.name != "axis"]
        del node.attribute[:]
        node.attribute.extend([*kept, helper.make_attribute("axis", -1 if rank is None else rank - 1)])
    if site.opset >= 11:
        return
    for a in node.attribute:
        if a.name in ("axis", "axes") and min((a.i,) if a.name == "axis" else a.ints, default=0) < 0:
            if rank is None:
                raise NotExpressible("the rank of its operand is not known")
            total = rank + len(a.ints) if node.op_type == "Unsqueeze" else rank
            a.i = a.i % total if a.name == "axis" else a.i
            a.ints[:] = [axis % total for axis in a.ints]
