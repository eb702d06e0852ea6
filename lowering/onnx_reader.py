"""ONNX models read into graphs.

Every operator that fits the core form of `egraph.operators` exactly becomes a core operator; all others stay opaque
and keep their `NodeProto`. Nothing here recurses along the graph, so its depth does not matter.
"""

from __future__ import annotations

import hashlib
import heapq
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, helper

from ..egraph.dimension import Dimension, Polynomial, natural
from ..egraph.graph import (
    SMALL,
    UNKNOWN,
    Conflict,
    Graph,
    GraphBuilder,
    TensorType,
    TupleType,
    Weight,
    attributes,
    meet,
)
from ..egraph.operators import IllTyped, infer
from ..errors import UserError
from .onnx_bodies import called, captures, domain_of, impure, internalise
from .onnx_constants import COMPUTED, ROUNDED, small_result
from .onnx_extents import FOLLOWED, SHAPED, Extents, Operands, as_array, as_extents, follow, result_shape
from .onnx_functions import functions_of, inline
from .onnx_fused import CONVERTERS
from .onnx_guard import check_sizes, check_text, guarded, not_a_model
from .onnx_inference import inferred_types, skeleton
from .onnx_operators import Core, NotCore, Site, convert
from .onnx_opset import OLDEST_OPSET, convert_opset, opset_of
from .onnx_records import Records
from .onnx_storage import Store, elsewhere, read
from .onnx_tensor import (
    OnnxSource,
    Symbols,
    dense,
    dtype_code,
    stored_weight,
    tensor_type,
    uniform_weight,
)
from .points import parse_extents, settle, specialise


def load(
    source: Any, *, shapes: Any = None, opset: int | None = None, verify: bool = True, custom_ops: Sequence[str] = (),
    params: Any = None,
) -> Graph:  # fmt: skip
    """Read an ONNX model from a file, from bytes, from a `ModelProto` or from what `plain` makes one of; or a Relay
    module from a file NAME.relay, params then being its parameters: a file, or arrays by name.

    Weights stay where they are (external data memory-mapped) until they are needed.
    shapes: extents for symbolic dimensions, by input or by symbol: `{"input_ids": (1, 128)}`, `{"batch": 1}`, or text
    as `--shape` takes it. opset: convert the model to this opset first; unless `verify` is False the result is
    compared with the original (custom_ops: the shared libraries of operators that this takes).
    Raises `UserError` if there is no such file, it is no valid ONNX model, its opset is not supported, or the
    conversion is not possible or changes what the model computes.
    """
    original = plain(source)
    if isinstance(original, (str, os.PathLike)) and Path(original).suffix == ".relay":
        from .relay import read as read_relay

        if shapes or opset is not None:
            raise UserError(f"{os.fspath(original)}: shapes and opset are for ONNX models; this is a Relay module")
        return read_relay(original, params)
    if params is not None:
        raise UserError("params: only a Relay module (NAME.relay) has its parameters in another file")
    label = str(os.fspath(original)) if isinstance(original, (str, os.PathLike)) else "the model"
    with guarded(label):
        return _load(original, label, shapes, opset, verify, custom_ops)


def _load(original: Any, label: str, shapes: Any, opset: int | None, verify: bool, custom_ops: Sequence[str]) -> Graph:
    model, store = _parse(original)
    _check(model, label)
    if shapes:
        specialise(model, parse_extents(shapes, "shape"), label)
    inline(model)
    if shapes and opset is not None and verify:  # the conversion must not be blamed for what specialising changed
        original = _settled(_Reader(model, store, label).graph(), shapes)
    converted = model if opset is None else convert_opset(model, opset, label)
    if converted is model:
        return _settled(_Reader(model, store, label).graph(), shapes)
    inline(converted)
    reader = _Reader(converted, store, label)
    reader.records.converted_from = opset_of(model)
    graph = _settled(reader.graph(), shapes)
    if verify:
        _compare(original, graph, f"{label}: converted from opset {opset_of(model)} to {opset}", custom_ops)
    return graph


def _settled(graph: Graph, shapes: Any) -> Graph:
    if shapes:
        assert isinstance(graph.source, OnnxSource) and graph.source.records is not None
        settle(graph.source.skeleton, graph)
        graph.source.records.specialised = True
    return graph


def _compare(original: Any, graph: Graph, what: str, custom_ops: Sequence[str]) -> None:
    """Refuse a conversion that changes results."""
    from .verification import verify

    found = verify(original, graph, custom_ops=custom_ops)
    if not found.passed:
        how = "it computes something else" if found.verdict == "failed" else "it cannot be compared with the original"
        raise UserError(
            f"{what}, {how} ({found.detail})" + ("" if found.verdict == "failed" else "; --no-verify accepts it")
        )


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


def _parse(source: str | os.PathLike[str] | bytes | ModelProto) -> tuple[ModelProto, Store | None]:
    if isinstance(source, ModelProto):
        copy = ModelProto()  # the graph keeps references into the model, which the caller may change
        copy.CopyFrom(source)
        return copy, None
    store = None
    if isinstance(source, bytes):
        data, label = source, "these bytes"
    else:
        path = Path(source)
        label = str(path)
        data, store = read(path)
    if not data:
        raise UserError(f"{label}: an empty file, not an ONNX model")
    model = ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError as error:
        raise not_a_model(label, data, "not an ONNX model, or a truncated one") from error
    if not model.HasField("graph"):
        raise not_a_model(label, data, "not an ONNX model, or one without a graph")
    return model, store


def _check(model: ModelProto, label: str) -> None:
    if not model.HasField("graph"):
        raise UserError(f"{label}: not an ONNX model, or one without a graph")
    check_text(model, label)
    check_sizes(model, label)
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


_IDLE = frozenset(("Cast", "Expand", "Tile", "Pad"))
"""Operators that exporters write where they do nothing."""


class _Reader:
    def __init__(self, model: ModelProto, store: Store | None, label: str) -> None:
        self.model, self.store, self.label = model, store, label
        self.builder = GraphBuilder()
        self.values: dict[str, int] = {}
        self.symbols = Symbols()
        self.functions = functions_of(model)
        self.records = Records.of(model)
        self.output_names = [o.name for o in model.graph.output]
        self.claimed: dict[int, str] = {}
        """The graph output that bears the value of a node."""
        self.readers: set[str] = set(self.output_names)
        self.opset = next((o.version for o in model.opset_import if domain_of(o.domain) == ""), 18)
        self.external = False
        self.types: dict[str, TensorType] = {}
        self.extents: dict[int, Extents] = {}
        """What small integer tensors hold, by node, where symbols are in it."""
        self.holders: dict[tuple[Any, ...], str] = {}
        """The first value that holds given extents, by dtype, shape and extents."""
        self.needed: set[str] = set()
        """Names of the values that the outputs depend on: every run computes them."""
        self.facts: dict[Polynomial, None] = {}
        """Extents of needed values whose sign is not plain: no run has negative ones."""

    def graph(self) -> Graph:
        graph = self.model.graph
        nodes = self._sorted(list(graph.node))
        self.types = inferred_types(self.model, self.symbols, {key[:2] for key in self.functions})
        defaults = self._initializers()
        for number, node in enumerate(nodes):
            with guarded(self.label, node):
                self._node(number, node)
        outputs: dict[str, int] = {}
        for name in self.output_names:
            if name not in self.values:
                raise UserError(f"{self.label}: nothing produces the output {name!r} (is the file truncated?)")
            outputs[name] = self.values[name]
        source = OnnxSource(
            skeleton(self.model), defaults, self.external, self.store.path if self.store else None, self.store,
            self.records,
        )  # fmt: skip
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
        self.needed.update(self.output_names)
        for i in reversed(order):
            if any(name in self.needed for name in nodes[i].output):
                self.needed.update(self.reads[i])
        return [nodes[i] for i in order]

    def _initializers(self) -> dict[str, TensorProto]:
        """Make the leaves. Returns the initializers that callers may override: they stay inputs."""
        graph = self.model.graph
        tensors = {t.name: t for t in graph.initializer}
        overridable = self.model.ir_version >= 4
        defaults: dict[str, TensorProto] = {}
        for info in graph.input:
            if info.name not in tensors or overridable:
                kind = tensor_type(info.type, self.symbols, info.name) or TensorType(None, UNKNOWN)
                self.symbols.given.update(d.name for d in kind.shape or () if isinstance(d, Polynomial) and d.name)
                self.values[info.name] = self.builder.input(info.name, kind)
                if info.name in tensors:
                    defaults[info.name] = tensors[info.name]
        for name, proto in tensors.items():
            if name not in defaults and name in self.readers:
                self._weight(name, stored_weight(proto, name, self.store))
                self.external |= elsewhere(proto, self.store)
        for sparse in graph.sparse_initializer:
            weight = Weight.of(dense(sparse), sparse.values.name)
            self._weight(sparse.values.name, weight)
            self.records.sparse[weight.digest] = sparse
        return defaults

    def _weight(self, name: str, weight: Weight) -> None:
        self.values[name] = self.builder.weight(weight)
        self._claim(name)

    def _claim(self, name: str) -> None:
        if name in self.output_names:
            self.claimed.setdefault(self.values[name], name)

    def _node(self, number: int, node: NodeProto) -> None:
        domain, op = domain_of(node.domain), node.op_type
        extents: Extents | None = None
        operands = [self.values[name] if name else self.builder.absent() for name in node.input]
        if domain == "" and called(node) not in self.functions and node.output and (operands or op == "Constant"):
            if op == "Constant" and (weight := self._constant(node)) is not None:
                self._weight(node.output[0], weight)
                return
            if op == "ConstantOfShape" and (weight := self._filled(node, operands)) is not None:
                self._weight(node.output[0], weight)
                if (shape := self._handle(operands[0])) is not None:
                    self.records.shapes[weight.digest] = shape
                return
            extents = self._followed(node, operands)
            if op in COMPUTED and (weight := self._computed(node, operands, extents)) is not None:
                self._weight(node.output[0], weight)
                return
            if op in ("Identity", "Dropout") and self._alias(node, operands):
                return
            if extents is not None and self._known_before(node, extents):
                return
            if self._passes_on(node, operands) and self._alias(node, operands):
                return
            if op in CONVERTERS:
                try:
                    self._core(node, operands)
                    if extents is not None:
                        self.extents[self.values[node.output[0]]] = extents
                    return
                except (NotCore, IllTyped, KeyError, IndexError, TypeError, ValueError):
                    pass  # whatever does not fit exactly stays opaque
        elif f"{domain}::{op}" in CONVERTERS and called(node) not in self.functions and node.output and operands:
            try:
                self._core(node, operands)
                return
            except (NotCore, IllTyped, KeyError, IndexError, TypeError, ValueError):
                pass
        self._opaque(number, node, domain, operands)
        if extents is not None:
            self.extents[self.values[node.output[0]]] = extents

    def _known_before(self, node: NodeProto, extents: Extents) -> bool:
        """Let the output be another name of an earlier value that holds the same extents, if there is one."""
        name = node.output[0]
        kind = self.types.get(name)
        if kind is None or kind.dtype == UNKNOWN or name in self.output_names:
            return False
        key = (kind.dtype, extents.shape, tuple(extents.reshape(-1)))
        source = self.holders.setdefault(key, name)
        return source != name and self._named(name, self.values[source])

    def _constant(self, node: NodeProto) -> Weight | None:
        if len(node.attribute) != 1:
            return None
        a, name = node.attribute[0], node.output[0]
        if a.type != _CONSTANTS.get(a.name):
            return None
        if a.name == "value":
            self.external |= elsewhere(a.t, self.store)
            return stored_weight(a.t, name, self.store)
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
        fill = np.zeros(1, np.float32)
        if any(a.name != "value" or a.type != AttributeProto.TENSOR for a in node.attribute):
            return None
        if "value" in attrs:
            fill = stored_weight(attrs["value"].t, node.output[0], self.store).load()
        if fill.size != 1 or fill.dtype.kind not in "fiub" or any(d < 0 for d in shape.reshape(-1)):
            return None
        return uniform_weight(fill.reshape(()), tuple(int(d) for d in shape.reshape(-1)), node.output[0])

    def _known(self, name: str) -> TensorType | None:
        """The type that ONNX inferred for a value, with what was learnt about its symbols since."""
        kind = self.types.get(name)
        return None if kind is None else kind.at(self.symbols.values)  # type: ignore[arg-type]

    def _held(self, index: int) -> Extents | None:
        """What a node's value holds, if it is a small tensor of extents."""
        value = None if index in self.extents else self._small(index)
        return self.extents.get(index) if value is None else as_extents(value)

    def _given(self, operands: list[int]) -> list[TensorType | None]:
        """The operands' types, None for one that is not given."""
        kinds = [self.builder.nodes[i].type for i in operands]
        return [k if isinstance(k, TensorType) and k.dtype != "absent" else None for k in kinds]

    def _operands(self, node: NodeProto, operands: list[int]) -> Operands:
        held = [self._held(i) for i in operands]
        return Operands(_attributes(node), self.opset, held, self._given(operands), self.facts)

    def _followed(self, node: NodeProto, operands: list[int]) -> Extents | None:
        """The result of arithmetic on extents."""
        if node.op_type not in FOLLOWED or len(node.output) != 1:
            return None
        if node.op_type not in ("Shape", "Size") and operands and self._held(operands[0]) is None:
            return None
        return follow(node.op_type, self._operands(node, operands))

    def _computed(self, node: NodeProto, operands: list[int], extents: Extents | None) -> Weight | None:
        """The result of shape arithmetic on known extents, as exporters leave it behind."""
        known = self.types.get(node.output[0])
        if extents is not None and known is not None and known.dtype in ("int64", "int32", "bool"):
            array = as_array(extents, known.dtype)
            return None if array is None else Weight.of(array, node.output[0])
        values = [self._small(i, "iubf" if node.op_type in ROUNDED else "iub") for i in operands]
        if len(node.output) != 1 or not values or any(v is None for v in values):
            return None
        return small_result(node, self.opset, [v for v in values if v is not None])

    def _small(self, index: int, kinds: str = "iub") -> np.ndarray | None:
        """Value of a small weight, integer or boolean unless `kinds` says otherwise."""
        value = self._value(index) if self.builder.nodes[index].type.bytes <= 8 * SMALL else None
        return value if value is not None and value.dtype.kind in kinds and value.size <= SMALL else None

    def _handle(self, index: int) -> Weight | None:
        node = self.builder.nodes[index]
        return self.builder.weights[str(dict(node.attributes)["digest"])] if node.op == "Weight" else None

    def _value(self, index: int) -> np.ndarray | None:
        """Content of a weight; None if the node is none."""
        node = self.builder.nodes[index]
        if node.op != "Weight":
            return None
        weight = self.builder.weights[str(dict(node.attributes)["digest"])]
        return weight.value if weight.value is not None else weight.load()

    def _passes_on(self, node: NodeProto, operands: list[int]) -> bool:
        """Whether the node does nothing: Cast to the same type, Expand, Tile or Pad to the same shape."""
        if node.op_type not in _IDLE or len(node.output) != 1 or not operands:
            return False
        kind, known = self.builder.nodes[operands[0]].type, self._operands(node, operands)
        if not isinstance(kind, TensorType) or kind.dtype in (UNKNOWN, "absent"):
            return False
        if node.op_type == "Cast":
            return bool(dtype_code(kind.dtype) == known.attrs.get("to"))
        if node.op_type == "Pad":
            held = known.held[1] if len(known.held) > 1 else None
            pads = known.attrs.get("pads") if self.opset < 11 else held
            return pads is not None and all(isinstance(p, int) and p == 0 for p in np.asarray(pads, object).reshape(-1))
        return kind.shape is not None and kind.shape == result_shape(node.op_type, known)

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
        if not self._named(name, source):
            return False
        self._claim(name)
        return True

    def _named(self, name: str, source: int) -> bool:
        """Let `name` be a name of an earlier node's value, unless what ONNX inferred for it says otherwise."""
        kind = self.builder.nodes[source].type
        if isinstance(kind, TensorType):
            try:
                self._agree(kind, self._known(name))
            except NotCore:
                return False
        self.values[name] = source
        return True

    def _core(self, node: NodeProto, operands: list[int]) -> None:
        kinds = [self.builder.nodes[i].type for i in operands]
        types = self._given(operands)
        known = self._known(node.output[0])
        domain = domain_of(node.domain)
        name = f"{domain}::{node.op_type}" if domain else node.op_type
        site = Site(
            name, self.opset, {a.name: _attribute(a) for a in node.attribute}, types,
            lambda k: self._value(operands[k]), sum(name in self.readers for name in node.output if name),
            len(node.output), known, lambda k: self._extents(operands, k),
            frozenset(self.symbols.given),
            frozenset(k for k, name in enumerate(node.output) if name and name in self.readers),
        )  # fmt: skip
        core = convert(site)
        if any(types[k] is None for k in core.operands) or (site.outputs and not node.output[0] and core.op != "Split"):
            raise NotCore("an operand or the first output is not given")
        attrs = attributes(**core.attrs)
        kind = infer(core.op, attrs, [kinds[k] for k in core.operands])
        names = tuple(node.output)
        if core.results is not None:
            names = tuple(names[k] for k in core.results)
        if isinstance(kind, TensorType):
            self._agree(kind, known)
            self._spelled(node, core, operands)
            index = self.builder.add(core.op, (operands[k] for k in core.operands), attrs, kind, names[:1])
            self._bind(names[0], index)
        else:
            for name, item in zip(names, kind.items, strict=True):
                self._agree(item, self._known(name))
            if core.results is None:
                self._spelled(node, core, operands)
            index = self.builder.add(core.op, (operands[k] for k in core.operands), attrs, kind, names)
            self._project(index, names)

    def _spelled(self, node: NodeProto, core: Core, operands: list[int]) -> None:
        """Take down how the source spells a core operator, if what it reads besides is constant."""
        nodes = self.builder.nodes
        slots: list[int | Weight | None] = []
        for k, i in enumerate(operands):
            if k in core.operands:
                slots.append(core.operands.index(k))
            elif nodes[i].op == "Absent":
                slots.append(None)
            elif self._small(i, "iubfV") is not None:
                slots.append(self._handle(i))
            else:
                return
        read = [nodes[operands[k]].names[:1] for k in core.operands]
        self.records.spelled(node, core.op, attributes(**core.attrs), ["".join(names) for names in read], slots)

    def _agree(self, kind: TensorType, known: TensorType | None) -> None:
        """Compare an inferred type with ONNX's, and learn what ONNX's made-up symbols are."""
        if known is not None:
            try:
                meet(kind, known)
            except Conflict:
                raise NotCore(f"inferred {kind}, but ONNX says {known}") from None
            self.symbols.learn(known, kind)

    def _extents(self, operands: list[int], k: int) -> list[Dimension] | None:
        """Operand k, flat, if it is a small tensor of extents."""
        if k >= len(operands):
            return None
        held = self._held(operands[k])
        return None if held is None else [d if isinstance(d, Polynomial) else int(d) for d in held.reshape(-1)]

    def _no_tensor(self, name: str) -> bool:
        return any(o.name == name and not o.type.HasField("tensor_type") for o in self.model.graph.output)

    def _project(self, index: int, names: tuple[str, ...]) -> None:
        for k, name in enumerate(names):
            if name:
                self._bind(name, self.builder.get(index, k, (name,)))

    def _bind(self, name: str, index: int) -> None:
        if name:
            self.values[name] = index
            self._claim(name)
            kind = self.builder.nodes[index].type
            if name in self.needed and isinstance(kind, TensorType):
                self.facts.update(
                    dict.fromkeys(d for d in kind.shape or () if isinstance(d, Polynomial) and not natural(d))
                )

    def _refined(self, node: NodeProto, operands: list[int], kind: TensorType) -> TensorType:
        """An opaque operator's type, its shape from what is known of its operands' extents."""
        shape = result_shape(node.op_type, self._operands(node, operands))
        if shape is None:
            return kind
        found = TensorType(shape, kind.dtype)
        try:
            self._agree(found, kind)
            return meet(found, kind)  # type: ignore[return-value]
        except NotCore:
            return kind

    def _opaque(self, number: int, node: NodeProto, domain: str, operands: list[int]) -> None:
        proto = NodeProto()
        proto.CopyFrom(node)
        for field in ("name", "doc_string", "input", "output", "metadata_props"):
            proto.ClearField(field)
        internalise(proto, self.store)
        data = proto.SerializeToString(deterministic=True)
        digest = hashlib.blake2b(data, digest_size=16).hexdigest()
        self.builder.opaques[digest] = data
        names = tuple(node.output)
        captured = captures(node)
        extra: dict[str, Any] = {}
        if missing := tuple(k for k, name in enumerate(names) if not name):
            extra["missing"] = missing  # which outputs are asked for can change what an operator does
        if impure(node, self.functions):
            extra["unique"] = number
        elif self.opset < 16 and any(name in self.output_names and self._no_tensor(name) for name in names):
            extra["unique"] = number  # two outputs of one value take an Identity, which knew only tensors
        attrs = attributes(proto=digest, outputs=len(names), captures=captured, **extra)
        children = [*operands, *(self.values[name] for name in captured)]
        items = tuple(self._known(name) or TensorType(None, UNKNOWN) for name in names)
        if len(names) == 1 and domain == "" and not captured and node.op_type in SHAPED:
            items = (self._refined(node, operands, items[0]),)
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


_CONSTANTS = {
    "value": AttributeProto.TENSOR, "sparse_value": AttributeProto.SPARSE_TENSOR,
    "value_float": AttributeProto.FLOAT, "value_floats": AttributeProto.FLOATS,
    "value_int": AttributeProto.INT, "value_ints": AttributeProto.INTS,
}  # fmt: skip
"""Attributes of Constant that are read as weights, and their types."""


def _small_tensor(tensor: TensorProto) -> np.ndarray | None:
    if tensor.ByteSize() >= 64 * SMALL or tensor.data_location == TensorProto.EXTERNAL:
        return None
    try:
        return np.asarray(onnx.numpy_helper.to_array(tensor))
    except (ValueError, TypeError, KeyError):
        return None


def _attributes(node: NodeProto) -> dict[str, Any]:
    """The attributes that can be read as plain values or arrays."""
    found: dict[str, Any] = {}
    for a in node.attribute:
        if a.type == AttributeProto.TENSOR:
            found[a.name] = _small_tensor(a.t)
        elif not a.ref_attr_name and a.type not in (AttributeProto.GRAPH, AttributeProto.GRAPHS):
            found[a.name] = helper.get_attribute_value(a)
    return found
