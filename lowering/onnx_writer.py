"""Graphs written as ONNX models, in the opset, IR version and names of the model they came from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from ..egraph.fused import CONTRIB
from ..egraph.graph import Graph, Node, TensorType, TupleType, Weight
from .onnx_bodies import free_names, names_within, rename, rename_own, subgraphs
from .onnx_forms import SINCE, NotWritable, tensor
from .onnx_fused import FORMS
from .onnx_names import Names
from .onnx_records import Records, Spelling
from .onnx_spellings import Spellings
from .onnx_tensor import (
    ExternalTensor,
    OnnxSource,
    StoredTensor,
    Uniform,
    copy_header,
    dtype_code,
    numpy_dtype,
    stored_weight,
    value_info,
)

DEFAULT_OPSET, DEFAULT_IR = 18, 8
"""Versions of a graph that did not come from an ONNX model."""


def to_onnx(graph: Graph, fold: bool = True) -> ModelProto:
    """The graph as a model that holds its weights; constant expressions are folded unless `fold` is False."""
    from .folding import fold_constants

    return Writer(fold_constants(graph) if fold else graph).model()


class Sink(Protocol):
    """Takes the data of weights that shall not be held in the message."""

    def take(self, tensor: TensorProto, weight: Weight) -> bool:
        """Whether the data of `weight` will be written elsewhere; `tensor`, without data yet, then says where."""
        ...


class Writer:
    """Writes one graph as a message. `sink` takes the data of large weights; without one the message holds them."""

    def __init__(self, graph: Graph, sink: Sink | None = None) -> None:
        self.graph, self.sink = graph, sink
        self.source = graph.source if isinstance(graph.source, OnnxSource) else None
        self.out = ModelProto()
        if self.source:
            self.out.CopyFrom(self.source.skeleton)
        else:
            self.out.ir_version = DEFAULT_IR
            self.out.producer_name = "xrlflow"
            self.out.graph.name = "graph"
        self.records = (self.source.records if self.source else None) or Records()
        imports = [o for o in self.out.opset_import if o.domain in ("", "ai.onnx")]
        if not imports:
            # what the graph needs: rules that knew of no opset introduce whatever they like
            needed = max((SINCE.get(graph.nodes[i].op, 7) for i in graph.live), default=7)
            self.out.opset_import.add(domain="", version=max(DEFAULT_OPSET, needed))
        self.opset = next(o.version for o in self.out.opset_import if o.domain in ("", "ai.onnx"))
        self.nodes = self.out.graph.node
        self.live = graph.live
        self.protos = {i: self._proto(graph.nodes[i]) for i in self.live if graph.nodes[i].opaque}
        self.constants: dict[bytes, str] = {}
        self.computed: dict[str, str] = {}
        self.defined: set[str] = set()
        self.node_names = {n.name for n in self.records.nodes.values()}
        self.serial = 0
        self.names = Names(graph, self.protos.values())
        self.spellings = Spellings(graph, self.records, self.names)
        self.present = self.spellings.present
        weights = {self.names.values[i]: self._stored(i) for i in self.live if graph.nodes[i].op == "Weight"}
        self.pending = {**self.spellings.reserved, **weights}
        """Weights and constants yet to be written, by name."""

    def _proto(self, node: Node) -> NodeProto:
        return NodeProto.FromString(self.graph.opaques[str(node.attrs["proto"])])

    def _stored(self, i: int) -> Weight:
        return self.graph.weights[str(self.graph.nodes[i].attrs["digest"])]

    def free(self, wanted: str, generated: str) -> str:
        """A new name: `wanted`, or one made from `generated`."""
        return self.names.free(wanted, generated)

    # Constants

    def constant(self, value: Sequence[int] | np.ndarray, hint: str) -> str:
        """Name of an initializer with this content, made when first asked for; lists are int64."""
        array = value if isinstance(value, np.ndarray) else np.array(value, np.int64)
        key = _content(array)
        if key not in self.constants:
            text = "x".join(map(str, array.reshape(-1)[:8].tolist()))
            self.constants[key] = self.free(f"{hint}_{text}" if text else hint, hint)
            self._initializer(numpy_helper.from_array(array, self.constants[key]))
        return self.constants[key]

    def _written(self, weight: Weight) -> str:
        """Name of a weight, or of a constant that the source's spelling needs; written when first asked for."""
        name = self.present[weight.digest]
        if self.pending.pop(name, None) is not None:
            self._weight(weight, name)
            if weight.value is not None:
                self.constants.setdefault(_content(weight.value), name)
        return name

    def _initializer(self, tensor: TensorProto) -> None:
        if self.out.ir_version < 4 and tensor.name not in self.declared:
            # Up to IR version 3 initializers have to be inputs; a Constant does without.
            proto = TensorProto()
            proto.CopyFrom(tensor)
            proto.ClearField("name")
            self.emit("Constant", [], [tensor.name], value=proto)
        else:
            self.out.graph.initializer.append(tensor)

    def _weight(self, weight: Weight, name: str) -> None:
        load = weight.load
        sparse = self.records.sparse.get(weight.digest)
        if sparse is not None and sparse.values.name == name:
            self.out.graph.sparse_initializer.append(sparse)
            return
        if isinstance(load, Uniform) and self.opset >= 9:
            value = numpy_helper.from_array(load.value.reshape(1))
            shape = self.records.shapes.get(weight.digest)
            extents = self.constant(load.shape, "shape") if shape is None else self._written(shape)
            self.emit("ConstantOfShape", [extents], [name], value=value)
            return
        self._initializer(self._tensor(weight, name))

    def _tensor(self, weight: Weight, name: str) -> TensorProto:
        """The tensor of that name, without data if the sink took them."""
        load, dtype = weight.load, weight.type.dtype
        resident = self.out.ir_version < 4 and name not in self.declared  # it is written as a Constant
        if self.sink is not None and not resident:
            tensor = TensorProto()
            if isinstance(load, (StoredTensor, ExternalTensor)):
                copy_header(load.proto, tensor)
            else:
                tensor.data_type = dtype_code(dtype)
                tensor.dims.extend(weight.type.shape or ())
            tensor.name = name
            if self.sink.take(tensor, weight):
                return tensor
        if isinstance(load, StoredTensor):
            tensor = TensorProto()
            tensor.CopyFrom(load.proto)
        elif isinstance(load, ExternalTensor):
            tensor = TensorProto()
            tensor.CopyFrom(load.proto)
            tensor.raw_data = b"".join(load.chunks())
        else:
            array = np.asarray(load(), order="C")
            if str(array.dtype) != dtype and array.dtype.kind in "iu":
                array = array.view(numpy_dtype(dtype))  # bits of a type that numpy lacks
            tensor = numpy_helper.from_array(array, name)
        tensor.name = name
        return tensor

    # The model

    def model(self) -> ModelProto:
        graph, nodes = self.graph, self.graph.nodes
        weights = set(self.present.values())
        self.declared = {i.name for i in self.out.graph.input} & weights
        self.leaves = {*graph.input_names, *weights}
        self._interface()
        order = self.records.order
        for weight in sorted(
            (w for n, w in self.pending.items() if n in order), key=lambda w: order[self.present[w.digest]]
        ):
            self._written(weight)
        for i in self.live:
            if nodes[i].op == "Weight":
                self._written(self._stored(i))
        for i in self.live:
            node = nodes[i]
            if node.op in ("Input", "Weight", "Absent", "Get"):
                continue
            operands = [self.names.values[k] for k in node.inputs]
            if node.opaque:
                self._opaque(node, self.protos[i], operands, self.names.outputs(i))
            elif i in self.spellings.nodes:
                self._as_spelled(node, self.spellings.nodes[i], operands, self.names.outputs(i))
            else:
                FORMS[node.op](self, node, operands, self.names.outputs(i))
        for index, name in self.names.copies:
            self.emit("Identity", [self.names.values[index]], [name])
        self._describe()
        return self.out

    def _interface(self) -> None:
        """Inputs and outputs: the source's own value infos where it has them."""
        graph, out = self.graph, self.out.graph
        inputs = {i.name: _copied(i) for i in out.input}
        listed = [_copied(o) for o in out.output]
        outputs = {o.name: o for o in listed}
        kinds = {str(n.attrs["name"]): n.type for n in graph.nodes if n.op == "Input"}
        wanted = set(graph.input_names)
        order = [n for n in inputs if n in wanted or (self.out.ir_version < 4 and n in self.declared)]
        order += [n for n in graph.input_names if n not in inputs]
        del out.input[:], out.output[:]
        for name in order:
            kind = kinds.get(name)
            out.input.append(inputs[name] if name in inputs else value_info(name, tensor(kind)))
        if outputs.keys() == set(graph.output_names):
            out.output.extend(listed)  # one may be listed twice
        else:
            for name, index in zip(graph.output_names, graph.outputs, strict=True):
                kind = graph.nodes[index].type
                out.output.append(outputs[name] if name in outputs else value_info(name, tensor(kind)))
        for name, default in (self.source.defaults if self.source else {}).items():
            if name in wanted:
                stored = stored_weight(default, name, self.source.store if self.source else None)
                out.initializer.append(self._tensor(stored, name))

    def _describe(self) -> None:
        """Value infos and annotations of the values that are still there, as the source has them."""
        graph, out = self.graph, self.out.graph
        kinds = {name: graph.nodes[i].type for i, name in self.names.values.items()}
        weights = {t.name for t in out.initializer} | {s.values.name for s in out.sparse_initializer}
        made = {name for node in out.node for name in node.output} | weights | {i.name for i in out.input}
        for name in self.records.infos:
            kind = kinds.get(name)
            info = self.records.info(name, kind if isinstance(kind, TensorType) else None)
            if info is not None and name in made and name in self.names.kept:
                out.value_info.append(info)
        for i in self.live:
            node = graph.nodes[i]
            if (node.opaque and not node.op.startswith("::")) or node.op in CONTRIB:
                # ONNX cannot infer the types of other domains
                kinds_out = node.type.items if isinstance(node.type, TupleType) else (node.type,)
                for name, kind in zip(self.names.known_outputs(i), kinds_out, strict=True):
                    known = name in graph.output_names or name in self.records.infos
                    if name and kind.dtype != "undefined" and not known:
                        out.value_info.append(value_info(name, kind))
        for annotation in self.records.annotations:
            named = {p.value for p in annotation.quant_parameter_tensor_names}
            if annotation.tensor_name in made and named <= made | self.records.parameters.keys():
                out.quantization_annotation.append(annotation)
                for name in sorted(named - made):
                    out.initializer.append(self.records.parameters[name])
                    made.add(name)
        for info in self.out.training_info:
            self._check_training(info, made)

    @staticmethod
    def _check_training(info: onnx.TrainingInfoProto, made: set[str]) -> None:
        """Refuse to write training information that would refer to values that are gone."""
        inner = names_within(info.algorithm) | names_within(info.initialization)
        bindings = (*info.initialization_binding, *info.update_binding)
        named = [name for b in bindings for name in (b.key, b.value) if name not in inner]
        for name in (*named, *free_names(info.algorithm), *free_names(info.initialization)):
            if name not in made:
                raise NotWritable(f"the training information refers to {name!r}, which would be gone")

    def require(self, domain: str, version: int) -> None:
        """Let the model import a domain, if it does not yet."""
        if all(o.domain != domain for o in self.out.opset_import):
            self.out.opset_import.add(domain=domain, version=version)

    def emit(self, op: str, inputs: Iterable[str], outputs: Iterable[str], **attrs: Any) -> None:
        names = list(outputs)
        self._add(helper.make_node(op, list(inputs), names, **attrs), self.names.origin.get(names[0], names[0]))

    def _add(self, node: NodeProto, first: str) -> None:
        """Write a node, under the name it had if it is the source's node of the value `first`."""
        if not self.records.document(node, first):
            node.name = ""
            while not node.name or node.name in self.node_names:
                node.name = f"{node.op_type}_{self.serial}"
                self.serial += 1
            self.node_names.add(node.name)
        self.defined.update(node.output)
        self.nodes.append(node)

    def _as_spelled(self, node: Node, spelling: Spelling, operands: list[str], outputs: list[str]) -> None:
        """Write a core operator as the source had it."""
        proto = NodeProto()
        proto.CopyFrom(spelling.node)
        written = {self.names.source(k): name for k, name in zip(node.inputs, operands, strict=True)}
        for slot in spelling.slots:
            if isinstance(slot, int):
                proto.input.append(written[spelling.operands[slot]])
            else:
                proto.input.append("" if slot is None else self._written(slot))
        proto.output.extend(outputs)
        self._add(proto, node.names[0])

    def _opaque(self, node: Node, proto: NodeProto, operands: list[str], outputs: list[str]) -> None:
        captures = node.attrs.get("captures", ())
        regular, captured = operands[: len(operands) - len(captures)], operands[len(operands) - len(captures) :]
        proto.input.extend(regular)
        proto.output.extend(outputs)
        renamed = {old: new for old, new in zip(captures, captured, strict=True) if old != new}
        for body in subgraphs(proto):
            # in another order of nodes a name of the body may be visible from outside already: not allowed
            clashes = sorted(name for name in names_within(body) if name in self.defined or name in self.leaves)
            if clashes:
                rename_own(body, {name: self.free("", name) for name in clashes})
            if renamed:
                rename(body, renamed)
        self._add(proto, next(filter(None, node.names), ""))


def _content(array: np.ndarray) -> bytes:
    return f"{array.dtype}{array.shape}".encode() + array.tobytes()


def _copied(info: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
    copy = onnx.ValueInfoProto()
    copy.CopyFrom(info)
    return copy
