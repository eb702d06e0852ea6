"""ONNX models read into graphs.

Every operator that fits the core form of `egraph.operators` exactly becomes a core operator; all others stay opaque
and keep their `NodeProto`. Nothing here recurses along the graph, so its depth does not matter.
"""

from __future__ import annotations

import hashlib
import heapq
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, helper

from ..egraph.graph import SMALL, Graph, GraphBuilder, TensorType, TupleType, Weight, attributes
from ..egraph.operators import IllTyped, infer
from ..errors import UserError
from .onnx_bodies import captures, domain_of, impure, internalise
from .onnx_constants import COMPUTED, small_result
from .onnx_inference import inferred_types, skeleton
from .onnx_operators import CONVERTERS, NotCore, Site, convert
from .onnx_tensor import (
    UNKNOWN,
    OnnxSource,
    Symbols,
    dense,
    stored_weight,
    tensor_type,
    uniform_weight,
)

OLDEST_OPSET = 7
"""Before opset 7 broadcasting was an attribute."""


def load(source: Any) -> Graph:
    """Read an ONNX model from a file, from bytes, from a `ModelProto` or from what `plain` makes one of.

    Weights stay where they are (external data memory-mapped) until they are needed.
    Raises `UserError` if there is no such file, it is no valid ONNX model, or its opset is not supported.
    """
    model, path = _parse(plain(source))
    label = str(path) if path else "the model"
    _check(model, label)
    return _Reader(model, path, label).graph()


def plain(source: Any) -> str | os.PathLike[str] | bytes | ModelProto:
    """The source as a path, bytes or a proto: `onnx_ir.Model` and the result of `torch.onnx.export` become protos.

    Raises `UserError` for anything else.
    """
    if isinstance(source, (str, os.PathLike, bytes, ModelProto)):
        return source
    if isinstance(source, (bytearray, memoryview)):
        return bytes(source)
    if type(source).__name__ == "ONNXProgram":
        source = source.model
    if type(source).__module__.partition(".")[0] == "onnx_ir":
        import onnx_ir

        proto = onnx_ir.to_proto(source)
        if isinstance(proto, ModelProto):
            return proto
    raise UserError(
        f"a {type(source).__name__} is no model: give a path, an onnx.ModelProto, its bytes, an onnx_ir.Model or the "
        "result of torch.onnx.export(..., dynamo=True)"
    )


def _parse(source: str | os.PathLike[str] | bytes | ModelProto) -> tuple[ModelProto, Path | None]:
    if isinstance(source, ModelProto):
        copy = ModelProto()  # the graph keeps references into the model, which the caller may change
        copy.CopyFrom(source)
        return copy, None
    path = None
    if isinstance(source, bytes):
        data, label = source, "these bytes"
    else:
        path = Path(source)
        label = str(path)
        if not path.exists():
            raise UserError(f"{path}: no such file")
        if path.is_dir():
            raise UserError(f"{path} is a folder: give the path of an ONNX file")
        try:
            data = path.read_bytes()
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}") from error
    if not data:
        raise UserError(f"{label}: an empty file, not an ONNX model")
    model = ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError as error:
        raise UserError(f"{label}: not an ONNX model, or a truncated one") from error
    return model, path


def _check(model: ModelProto, label: str) -> None:
    if not model.HasField("graph"):
        raise UserError(f"{label}: not an ONNX model, or one without a graph")
    if not model.graph.output:
        raise UserError(f"{label}: the model's graph has no outputs (is the file truncated?)")
    versions = {("" if o.domain == "ai.onnx" else o.domain): o.version for o in model.opset_import}
    if "" in versions or not versions:
        version, newest = versions.get("", 1), onnx.defs.onnx_opset_version()
        if version < OLDEST_OPSET:
            raise UserError(
                f"{label}: opset {version} is older than {OLDEST_OPSET}; convert it with onnx.version_converter first"
            )
        if version > newest:
            raise UserError(f"{label}: opset {version} is newer than {newest}, the last that the installed onnx knows")


class _Reader:
    def __init__(self, model: ModelProto, path: Path | None, label: str) -> None:
        self.model, self.path, self.label = model, path, label
        self.folder = path.parent if path else None
        self.builder = GraphBuilder()
        self.values: dict[str, int] = {}
        self.symbols = Symbols()
        self.functions = {(domain_of(f.domain), f.name): f for f in model.functions}
        self.output_names = [o.name for o in model.graph.output]
        self.claimed: dict[int, str] = {}
        """The graph output that bears the value of a node."""
        self.readers: set[str] = set(self.output_names)
        self.opset = next((o.version for o in model.opset_import if domain_of(o.domain) == ""), 18)
        self.external = False
        self.types: dict[str, TensorType] = {}

    def graph(self) -> Graph:
        graph = self.model.graph
        nodes = self._sorted(list(graph.node))
        self.types = inferred_types(self.model, self.symbols, self.functions)
        defaults = self._initializers()
        for number, node in enumerate(nodes):
            self._node(number, node)
        outputs: dict[str, int] = {}
        for name in self.output_names:
            if name not in self.values:
                raise UserError(f"{self.label}: nothing produces the output {name!r} (is the file truncated?)")
            if name in outputs:
                raise UserError(f"{self.label}: two outputs are named {name!r}")
            outputs[name] = self.values[name]
        source = OnnxSource(skeleton(self.model), defaults, self.external, self.path)
        return self.builder.build(outputs, source)

    def _sorted(self, nodes: list[NodeProto]) -> list[NodeProto]:
        """The nodes in an order in which operands come first: their own where possible."""
        graph = self.model.graph
        known = {i.name for i in graph.input} | {i.name for i in graph.initializer}
        known |= {s.values.name for s in graph.sparse_initializer}
        self.reads = [[*filter(None, n.input), *captures(n)] for n in nodes]
        self.readers.update(name for names in self.reads for name in names)
        made: dict[str, int] = {}
        for i, n in enumerate(nodes):
            for name in filter(None, n.output):
                if name in made or name in known:
                    raise UserError(f"{self.label}: the value {name!r} is produced twice")
                made[name] = i
        waiting: list[int] = []
        users: list[list[int]] = [[] for _ in nodes]
        for i, names in enumerate(self.reads):
            sources = {made[name] for name in names if name in made}
            lost = [name for name in names if name not in made and name not in known]
            if lost:
                raise UserError(
                    f"{self.label}: node {nodes[i].name or i} ({nodes[i].op_type}) reads {lost[0]!r}, which nothing "
                    "produces (is the file truncated?)"
                )
            waiting.append(len(sources))
            for j in sources:
                users[j].append(i)
        ready = [i for i, count in enumerate(waiting) if count == 0]
        order: list[int] = []
        while ready:
            i = heapq.heappop(ready)
            order.append(i)
            for j in users[i]:
                waiting[j] -= 1
                if waiting[j] == 0:
                    heapq.heappush(ready, j)
        if len(order) < len(nodes):
            raise UserError(f"{self.label}: the graph has a cycle")
        return [nodes[i] for i in order]

    def _initializers(self) -> dict[str, TensorProto]:
        """Make the leaves. Returns the initializers that callers may override: they stay inputs."""
        graph = self.model.graph
        tensors = {t.name: t for t in graph.initializer}
        overridable = self.model.ir_version >= 4
        defaults: dict[str, TensorProto] = {}
        for info in graph.input:
            if info.name not in tensors or overridable:
                kind = tensor_type(info.type, self.symbols) or TensorType(None, UNKNOWN)
                self.values[info.name] = self.builder.input(info.name, kind)
                if info.name in tensors:
                    defaults[info.name] = tensors[info.name]
        for name, proto in tensors.items():
            if name not in defaults and name in self.readers:
                self._weight(name, stored_weight(proto, name, self.folder))
                self.external |= proto.data_location == TensorProto.EXTERNAL
        for sparse in graph.sparse_initializer:
            self._weight(sparse.values.name, Weight.of(dense(sparse), sparse.values.name))
        return defaults

    def _weight(self, name: str, weight: Weight) -> None:
        self.values[name] = self.builder.weight(weight)
        self._claim(name)

    def _claim(self, name: str) -> None:
        if name in self.output_names:
            self.claimed.setdefault(self.values[name], name)

    def _node(self, number: int, node: NodeProto) -> None:
        domain, op = domain_of(node.domain), node.op_type
        operands = [self.values[name] if name else self.builder.absent() for name in node.input]
        if domain == "" and (domain, op) not in self.functions:
            if op == "Constant" and (weight := self._constant(node)) is not None:
                self._weight(node.output[0], weight)
                return
            if op == "ConstantOfShape" and (weight := self._filled(node, operands)) is not None:
                self._weight(node.output[0], weight)
                return
            if op in COMPUTED and (weight := self._computed(node, operands)) is not None:
                self._weight(node.output[0], weight)
                return
            if op in ("Identity", "Dropout") and self._alias(node, operands):
                return
            if op in CONVERTERS:
                try:
                    self._core(node, operands)
                    return
                except (NotCore, IllTyped, KeyError, IndexError, TypeError, ValueError):
                    pass  # whatever does not fit exactly stays opaque
        self._opaque(number, node, domain, operands)

    def _constant(self, node: NodeProto) -> Weight | None:
        if len(node.attribute) != 1:
            return None
        a, name = node.attribute[0], node.output[0]
        if a.name == "value":
            self.external |= a.t.data_location == TensorProto.EXTERNAL
            return stored_weight(a.t, name, self.folder)
        if a.name == "sparse_value":
            return Weight.of(dense(a.sparse_tensor), name)
        if a.name in ("value_float", "value_floats"):
            return Weight.of(np.array(a.f if a.name == "value_float" else list(a.floats), np.float32), name)
        if a.name in ("value_int", "value_ints"):
            return Weight.of(np.array(a.i if a.name == "value_int" else list(a.ints), np.int64), name)
        return None

    def _filled(self, node: NodeProto, operands: list[int]) -> Weight | None:
        shape = self._value(operands[0])
        if shape is None or shape.size > 64:
            return None
        attrs = {a.name: a for a in node.attribute}
        fill = onnx.numpy_helper.to_array(attrs["value"].t) if "value" in attrs else np.zeros(1, np.float32)
        if fill.size != 1 or fill.dtype.kind not in "fiub" or any(d < 0 for d in shape.reshape(-1)):
            return None
        return uniform_weight(fill.reshape(()), tuple(int(d) for d in shape.reshape(-1)), node.output[0])

    def _computed(self, node: NodeProto, operands: list[int]) -> Weight | None:
        """The result of shape arithmetic on known extents, as exporters leave it behind."""
        if node.op_type == "Shape":
            kind = self.builder.nodes[operands[0]].type
            if not isinstance(kind, TensorType) or not kind.concrete:
                return None
            bounds = {a.name: a.i for a in node.attribute}
            extents = (kind.shape or ())[bounds.get("start") : bounds.get("end")]
            return Weight.of(np.array(extents, np.int64), node.output[0])
        values = [self._small(i) for i in operands]
        if len(node.output) != 1 or not values or any(v is None for v in values):
            return None
        return small_result(node, self.opset, [v for v in values if v is not None])

    def _small(self, index: int) -> np.ndarray | None:
        """Value of a small integer or boolean weight."""
        value = self._value(index) if self.builder.nodes[index].type.bytes <= 8 * SMALL else None
        return value if value is not None and value.dtype.kind in "iub" and value.size <= SMALL else None

    def _value(self, index: int) -> np.ndarray | None:
        """Content of a weight; None if the node is none."""
        node = self.builder.nodes[index]
        if node.op != "Weight":
            return None
        weight = self.builder.weights[str(dict(node.attributes)["digest"])]
        return weight.value if weight.value is not None else weight.load()

    def _alias(self, node: NodeProto, operands: list[int]) -> bool:
        """Let the output be another name of the first input, if the node only passes it on."""
        if node.op_type == "Dropout":
            if any(name in self.readers for name in node.output[1:] if name):
                return False
            if len(operands) > 2 and self.builder.nodes[operands[2]].op != "Absent":
                training = self._value(operands[2])
                if training is None or bool(training.reshape(-1)[0]):
                    return False
        name, source = node.output[0], operands[0]
        if name in self.output_names:
            if self.builder.nodes[source].op in ("Input", "Weight", "Absent") or source in self.claimed:
                return False  # the output would lose its name
            if node.input[0] in self.output_names:
                return False
        self.values[name] = source
        self._claim(name)
        return True

    def _core(self, node: NodeProto, operands: list[int]) -> None:
        kinds = [self.builder.nodes[i].type for i in operands]
        types = [k if isinstance(k, TensorType) and k.dtype != "absent" else None for k in kinds]
        known = self.types.get(node.output[0])
        site = Site(
            node.op_type, self.opset, {a.name: _attribute(a) for a in node.attribute}, types,
            lambda k: self._value(operands[k]), sum(name in self.readers for name in node.output if name),
            len(node.output), known,
        )  # fmt: skip
        core = convert(site)
        if any(types[k] is None for k in core.operands) or (site.outputs and not node.output[0] and core.op != "Split"):
            raise NotCore("an operand or the first output is not given")
        attrs = attributes(**core.attrs)
        kind = infer(core.op, attrs, [kinds[k] for k in core.operands])
        names = tuple(node.output)
        if isinstance(kind, TensorType):
            if known is not None and not _agree(kind, known):
                raise NotCore(f"inferred {kind}, but ONNX says {known}")
            index = self.builder.add(core.op, (operands[k] for k in core.operands), attrs, kind, names[:1])
            self._bind(names[0], index)
        else:
            for name, item in zip(names, kind.items, strict=True):
                if name in self.types and not _agree(item, self.types[name]):
                    raise NotCore(f"inferred {item}, but ONNX says {self.types[name]}")
            index = self.builder.add(core.op, (operands[k] for k in core.operands), attrs, kind, names)
            self._project(index, names)

    def _project(self, index: int, names: tuple[str, ...]) -> None:
        for k, name in enumerate(names):
            if name:
                self._bind(name, self.builder.get(index, k, (name,)))

    def _bind(self, name: str, index: int) -> None:
        if name:
            self.values[name] = index
            self._claim(name)

    def _opaque(self, number: int, node: NodeProto, domain: str, operands: list[int]) -> None:
        proto = NodeProto()
        proto.CopyFrom(node)
        for field in ("name", "doc_string", "input", "output", "metadata_props"):
            proto.ClearField(field)
        internalise(proto, self.folder)
        data = proto.SerializeToString(deterministic=True)
        digest = hashlib.blake2b(data, digest_size=16).hexdigest()
        self.builder.opaques[digest] = data
        names = tuple(node.output)
        captured = captures(node)
        extra: dict[str, Any] = {}
        if missing := tuple(k for k, name in enumerate(names) if not name):
            extra["missing"] = missing  # which outputs are asked for can change what an operator does
        if impure(node, domain, self.functions):
            extra["unique"] = number
        attrs = attributes(proto=digest, outputs=len(names), captures=captured, **extra)
        children = [*operands, *(self.values[name] for name in captured)]
        items = tuple(self.types.get(name, TensorType(None, UNKNOWN)) for name in names)
        kind = items[0] if len(names) == 1 else TupleType(items)
        index = self.builder.add(f"{domain}::{node.op_type}", children, attrs, kind, names)
        if len(names) == 1:
            self._bind(names[0], index)
        else:
            self._project(index, names)


def _attribute(a: AttributeProto) -> Any:
    if a.ref_attr_name or a.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS):
        raise NotCore(f"attribute {a.name}")
    value = helper.get_attribute_value(a)
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _agree(a: TensorType, b: TensorType) -> bool:
    """Whether two types can be of the same tensor."""
    if b.dtype not in (a.dtype, UNKNOWN):
        return False
    if a.shape is None or b.shape is None:
        return True
    return len(a.shape) == len(b.shape) and all(
        x == y or isinstance(x, str) or isinstance(y, str) for x, y in zip(a.shape, b.shape, strict=True)
    )
