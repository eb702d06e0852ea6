"""What a model says about its nodes and values beside what they compute: names, documentation, types, spellings.

The reader takes it down by the names of values, and the writer gives it back to those that still exist.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import onnx
from onnx import ModelProto, NodeProto, TensorAnnotation, TensorProto, TypeProto, ValueInfoProto

from ..egraph.graph import UNKNOWN, Attributes, Node, TensorType, Weight
from .onnx_bodies import domain_of
from .onnx_tensor import dtype_name, value_info


@dataclass(frozen=True)
class Spelling:
    """A node of the source that became a core operator, which can be spelled in several ways (Flatten is a Reshape).

    operands: names of the values that the core operator read. slots: for each input of `node` the number of the core
    operand, or the constant, or None where the input is not given.
    """

    node: NodeProto
    op: str
    attributes: Attributes
    operands: tuple[str, ...]
    slots: tuple[int | Weight | None, ...]

    def spells(self, node: Node, operands: Sequence[str]) -> bool:
        """Whether a node that reads these values is the operator that the source had."""
        if node.op != self.op or node.attributes != self.attributes:
            return False
        if node.op in ("Add", "Mul"):  # whose operands the search puts in order
            return sorted(operands) == sorted(self.operands)
        return tuple(operands) == self.operands


@dataclass
class Records:
    """All of it, for one model."""

    nodes: dict[str, NodeProto] = field(default_factory=dict)
    """By the first output: name, operator, documentation and metadata of a node, without attributes and inputs."""
    spellings: dict[str, Spelling] = field(default_factory=dict)
    """By the first output."""
    order: dict[str, int] = field(default_factory=dict)
    """Places of the initializers."""
    infos: dict[str, ValueInfoProto] = field(default_factory=dict)
    annotations: list[TensorAnnotation] = field(default_factory=list)
    parameters: dict[str, TensorProto] = field(default_factory=dict)
    """Initializers that annotations name."""
    sparse: dict[str, onnx.SparseTensorProto] = field(default_factory=dict)
    """By the digest of the dense weight."""
    shapes: dict[str, Weight] = field(default_factory=dict)
    """The shapes of weights that ConstantOfShape makes, by the digests of those."""
    specialised: bool = False
    """Whether symbolic dimensions of the model's inputs were given fixed extents."""
    converted_from: int | None = None
    """The opset that the model had before it was converted."""

    @classmethod
    def of(cls, model: ModelProto) -> Records:
        graph, found = model.graph, cls()
        for node in graph.node:
            if first := next(filter(None, node.output), ""):
                light = NodeProto(op_type=node.op_type, domain=domain_of(node.domain))
                if node.HasField("doc_string"):
                    light.doc_string = node.doc_string
                light.metadata_props.extend(node.metadata_props)
                if node.HasField("name"):
                    light.name = node.name
                found.nodes[first] = light
        found.order = {t.name: k for k, t in enumerate(graph.initializer)}
        for info in graph.value_info:
            found.infos.setdefault(info.name, info)
        found.annotations = list(graph.quantization_annotation)
        named = {p.value for a in found.annotations for p in a.quant_parameter_tensor_names}
        found.parameters = {t.name: t for t in graph.initializer if t.name in named}
        return found

    def spelled(
        self, node: NodeProto, op: str, attrs: Attributes, operands: Sequence[str], slots: Sequence[int | Weight | None]
    ) -> None:
        """Remember how the source spells a core operator. Operands without a name cannot be found again."""
        if node.output and node.output[0] and all(operands):
            copy = NodeProto()
            copy.CopyFrom(node)
            copy.ClearField("input")
            copy.ClearField("output")
            self.spellings[node.output[0]] = Spelling(copy, op, attrs, tuple(operands), tuple(slots))

    def document(self, node: NodeProto, first: str) -> bool:
        """Give a new node the name and documentation that the source's node of this value had, if it is the same.

        first: the source's name of the node's first output. Returns whether there was such a node.
        """
        known = self.nodes.get(first)
        if known is None or (known.op_type, known.domain) != (node.op_type, domain_of(node.domain)):
            return False
        node.ClearField("name")
        if known.HasField("name"):
            node.name = known.name
        node.ClearField("doc_string")
        if known.HasField("doc_string"):
            node.doc_string = known.doc_string
        del node.metadata_props[:]
        node.metadata_props.extend(known.metadata_props)
        return True

    def info(self, name: str, kind: TensorType | None) -> ValueInfoProto | None:
        """The source's value info of a value that has this type now; None if it contradicts that."""
        info = self.infos.get(name)
        if info is None or kind is None or kind.dtype == UNKNOWN or not info.type.HasField("tensor_type"):
            return info
        return _reconciled(info, kind)


def _reconciled(info: ValueInfoProto, kind: TensorType) -> ValueInfoProto | None:
    """The value info with extents that are known by now in place of symbols."""
    stated = info.type.tensor_type
    if stated.elem_type and dtype_name(stated.elem_type) != kind.dtype:
        return None
    if kind.shape is None or not stated.HasField("shape"):
        return info
    if len(stated.shape.dim) != len(kind.shape):
        return None
    new = None
    for k, (d, known) in enumerate(zip(stated.shape.dim, kind.shape, strict=True)):
        if not isinstance(known, int):
            continue
        if d.HasField("dim_value"):
            if d.dim_value != known:
                return None
        elif new is None:
            new = ValueInfoProto()
            new.CopyFrom(info)
        if new is not None and not d.HasField("dim_value"):
            new.type.tensor_type.shape.dim[k].dim_value = known
    return info if new is None else new


def typed(name: str, kind: TensorType) -> ValueInfoProto:
    """A value info, without a type where that is not known."""
    return ValueInfoProto(name=name, type=TypeProto()) if kind.dtype == UNKNOWN else value_info(name, kind)
