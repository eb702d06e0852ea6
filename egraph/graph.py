"""The tensor program: an immutable, hash-consed DAG with ONNX semantics.

A :class:`Graph` is what `lowering.load` returns, what saturation starts from and what a selection is turned
back into. Operators are either *core* (`egraph.operators` knows their type rule, so rewrite rules may speak of
them) or *opaque*: any other ONNX operator, kept as its serialised `NodeProto` and never looked into.

Leaves are `Input` (attribute `name`), `Weight` (attribute `digest`, looked up in `Graph.weights`) and `Absent`
(an optional operator input that is not given).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeAlias, cast

import numpy as np

from .dimension import Dimension, dimension, sign, substitute, symbols_of
from .extent import Extent

AttributeValue: TypeAlias = (
    int | float | str | tuple[int, ...] | tuple[float, ...] | tuple[str, ...] | tuple[Dimension, ...]
)
Attributes: TypeAlias = tuple[tuple[str, AttributeValue], ...]
"""Operator attributes as a sorted tuple of pairs, so that they can be hashed and compared."""

SMALL = 64
"""Weights of at most this many elements carry their value, so that rules can read axes, shapes and scales."""

LEAVES = ("Input", "Weight", "Absent")

_ITEMSIZE = {
    "float64": 8.0, "float32": 4.0, "float16": 2.0, "bfloat16": 2.0,
    "int64": 8.0, "int32": 4.0, "int16": 2.0, "int8": 1.0,
    "uint64": 8.0, "uint32": 4.0, "uint16": 2.0, "uint8": 1.0, "bool": 1.0, "complex64": 8.0, "complex128": 16.0,
}  # fmt: skip


@dataclass(frozen=True, slots=True, init=False)
class TensorType:
    """Type of a tensor: `shape` is None when even the rank is unknown, else a tuple of dimensions.

    Strings among them become symbols: `TensorType(("batch", 3), "float32")`.
    """

    shape: tuple[Dimension, ...] | None
    dtype: str

    def __init__(self, shape: Iterable[Dimension | str] | None, dtype: str) -> None:
        known = None if shape is None else tuple(dimension(d) if isinstance(d, str) else d for d in shape)
        object.__setattr__(self, "shape", known)
        object.__setattr__(self, "dtype", dtype)

    @property
    def concrete(self) -> bool:
        """Whether every dimension is a known integer."""
        return self.shape is not None and all(isinstance(d, int) for d in self.shape)

    @property
    def rank(self) -> int | None:
        """Number of dimensions, or None when unknown."""
        return None if self.shape is None else len(self.shape)

    @property
    def symbols(self) -> tuple[str, ...]:
        """Names of the symbols in the shape."""
        return symbols_of(self.shape or ())

    def at(self, binding: Mapping[str, int]) -> TensorType:
        """The type under a binding of symbols to extents; symbols without one stay."""
        if self.concrete or self.shape is None:
            return self
        return TensorType(tuple(substitute(d, binding) for d in self.shape), self.dtype)

    @property
    def elements(self) -> int:
        """Number of elements; symbolic dimensions count as 1 and an unknown shape as 1."""
        count = 1
        for d in self.shape or ():
            count *= d if isinstance(d, int) else 1
        return count

    @property
    def bytes(self) -> float:
        """Size in bytes (an unknown dtype counts as 4 bytes an element)."""
        return self.elements * _ITEMSIZE.get(self.dtype, 4.0)

    def __str__(self) -> str:
        shape = "?" if self.shape is None else ",".join(map(str, self.shape))
        return f"{self.dtype}[{shape}]"


@dataclass(frozen=True, slots=True)
class TupleType:
    """Type of an operator with several outputs; projections `Get` take its parts out."""

    items: tuple[TensorType, ...]

    @property
    def bytes(self) -> float:
        return sum(t.bytes for t in self.items)

    @property
    def concrete(self) -> bool:
        return all(t.concrete for t in self.items)

    @property
    def symbols(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(s for t in self.items for s in t.symbols))

    def at(self, binding: Mapping[str, int]) -> TupleType:
        return TupleType(tuple(t.at(binding) for t in self.items))

    def __str__(self) -> str:
        return "(" + ", ".join(map(str, self.items)) + ")"


Type: TypeAlias = TensorType | TupleType

UNKNOWN = "undefined"
"""dtype of values whose type is not known or that are no tensors."""


class Conflict(ValueError):
    """Two types that no tensor can have at once."""


def meet(a: Type, b: Type) -> Type:
    """The type that says what both say: an extent rather than a symbol, a known rank rather than none.

    Shapes are a lattice (unknown, symbolic, concrete); only a contradiction that holds for every binding is a
    `Conflict`. Of two symbolic dimensions the one over the model's own symbols is kept, else the first.
    """
    if a == b:
        return a
    if isinstance(a, TupleType) or isinstance(b, TupleType):
        if not isinstance(a, TupleType) or not isinstance(b, TupleType) or len(a.items) != len(b.items):
            raise Conflict(f"{a} and {b}")
        items = tuple(meet(x, y) for x, y in zip(a.items, b.items, strict=True))
        return TupleType(cast(tuple[TensorType, ...], items))
    if a.dtype != b.dtype and UNKNOWN not in (a.dtype, b.dtype):
        raise Conflict(f"{a} and {b}")
    dtype = b.dtype if a.dtype == UNKNOWN else a.dtype
    if a.shape is None or b.shape is None:
        return TensorType(b.shape if a.shape is None else a.shape, dtype)
    if len(a.shape) != len(b.shape) or any(sign(x - y) for x, y in zip(a.shape, b.shape, strict=True)):
        raise Conflict(f"{a} and {b}")
    return TensorType((min(pair, key=_vagueness) for pair in zip(a.shape, b.shape, strict=True)), dtype)


def made_up(symbol: str) -> bool:
    """Whether a symbol is no name of the model's own: made by the reader ("?…") or by ONNX's inference ("unk__…")."""
    return symbol.startswith(("?", "unk__"))


def _vagueness(d: Dimension) -> int:
    return 0 if isinstance(d, int) else 1 + any(made_up(s) for s in d.symbols)


@dataclass(frozen=True)
class Weight:
    """Handle of a constant tensor. The bytes stay where they are until `load` is called.

    `digest` identifies dtype, shape and content; `value` is set for at most `SMALL` elements.
    """

    name: str
    type: TensorType
    digest: str
    load: Callable[[], np.ndarray] = field(repr=False, compare=False)
    value: np.ndarray | None = field(default=None, repr=False, compare=False)

    @classmethod
    def of(cls, array: np.ndarray, name: str = "", dtype: str | None = None) -> Weight:
        """A weight that holds `array` in memory; `dtype` overrides the array's own name (bfloat16 stored as bits)."""
        array = np.asarray(array)
        dtype = dtype or str(array.dtype)
        value = array if array.size <= SMALL and array.dtype != object else None
        return cls(name, TensorType(tuple(array.shape), dtype), content_digest(array, dtype), lambda: array, value)


def content_digest(array: np.ndarray, dtype: str) -> str:
    """A stable digest of dtype, shape and bytes (32 hex digits)."""
    h = hashlib.blake2b(f"{dtype}{array.shape}".encode(), digest_size=16)
    if array.dtype == object:
        h.update(repr(array.tolist()).encode())
    else:
        h.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return h.hexdigest()


def attributes(**values: Any) -> Attributes:
    """Sorted, hashable attributes from keyword values; lists become tuples, numpy scalars Python ones."""
    return tuple(sorted((k, _freeze(v)) for k, v in values.items()))


def _freeze(value: Any) -> AttributeValue:
    kind = type(value)
    if kind is int or kind is float or kind is str:
        return value
    if kind is tuple or kind is list:
        return tuple([v if type(v) is int else _freeze(v) for v in value])  # type: ignore[return-value]
    if isinstance(value, (list, tuple, np.ndarray)):
        return tuple(_freeze(v) for v in value)  # type: ignore[return-value]
    if isinstance(value, (bool, np.bool_, np.integer)):
        return int(value)
    if isinstance(value, np.floating):
        return float(value)
    return value.of if isinstance(value, Extent) else value  # type: ignore[return-value]


@dataclass(frozen=True, slots=True)
class Node:
    """One operator. `inputs` are indices of earlier nodes; `names` are the source's names of the outputs, if any."""

    op: str
    inputs: tuple[int, ...]
    attributes: Attributes
    type: Type
    names: tuple[str, ...] = field(default=(), compare=False)

    @property
    def attrs(self) -> dict[str, Any]:
        """The attributes as a new dictionary."""
        return dict(self.attributes)

    @property
    def opaque(self) -> bool:
        """Whether this is an operator that rules do not know ("domain::Type")."""
        return "::" in self.op


@dataclass(frozen=True)
class Graph:
    """A tensor program.

    nodes: in topological order, every node after its inputs, no two equal.
    outputs: node indices, in the source's order (one index may occur twice).
    output_names, input_names: the source's names, in its order. Unused inputs have an `Input` node too.
    weights: `Weight` by digest.
    opaques: serialised `NodeProto` by digest, for opaque nodes (attribute `proto`).
    source: what the reader wants to find again when the graph is written (opset, metadata). Not interpreted here, but
    asked which operators it `writes` and `forbids`.
    """

    nodes: tuple[Node, ...]
    outputs: tuple[int, ...]
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    weights: Mapping[str, Weight] = field(default_factory=dict, repr=False)
    opaques: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    source: Any = field(default=None, repr=False, compare=False)

    @cached_property
    def live(self) -> tuple[int, ...]:
        """Indices of the nodes that the outputs need, in topological order."""
        needed = set(self.outputs)
        for i in range(len(self.nodes) - 1, -1, -1):
            if i in needed:
                needed.update(self.nodes[i].inputs)
        return tuple(sorted(needed))

    @cached_property
    def operators(self) -> tuple[int, ...]:
        """Indices of live nodes that do work: no leaves, no projections."""
        return tuple(i for i in self.live if self.nodes[i].op not in (*LEAVES, "Get"))

    @cached_property
    def weight_bytes(self) -> float:
        """Bytes of the live weights, each counted once."""
        return sum(self.nodes[i].type.bytes for i in self.live if self.nodes[i].op == "Weight")

    @property
    def coverage(self) -> float:
        """Share of the operators that are core, between 0 and 1."""
        return 1.0 - sum(self.nodes[i].opaque for i in self.operators) / max(1, len(self.operators))

    def count(self) -> dict[str, int]:
        """Number of live operators by name, most frequent first."""
        found: dict[str, int] = {}
        for i in self.operators:
            op = self.nodes[i].op.removeprefix("::")
            found[op] = found.get(op, 0) + 1
        return dict(sorted(found.items(), key=lambda kv: (-kv[1], kv[0])))

    def writes(self, op: str) -> bool:
        """Whether rules may introduce this core operator: all of them, unless the source says which."""
        ask = getattr(self.source, "writes", None)
        return ask is None or bool(ask(op))

    def forbids(self, op: str) -> bool:
        """Whether a core operator that rules may introduce only leads to others: no program may hold it."""
        ask = getattr(self.source, "forbids", None)
        return ask is not None and bool(ask(op))

    def with_source(self, source: Any) -> Graph:
        return replace(self, source=source)

    def __repr__(self) -> str:
        return f"Graph({len(self.operators)} operators, {len(self.input_names)} inputs, {len(self.outputs)} outputs)"

    def _repr_html_(self) -> str:
        import html

        rows = "".join(f"<tr><td>{html.escape(op)}</td><td>{n}</td></tr>" for op, n in self.count().items())
        return (
            f"<b>Graph</b>: {len(self.operators)} operators, {self.coverage:.0%} core, "
            f"{self.weight_bytes / 1e6:.2f} MB of weights<table><tr><th>operator</th><th>count</th></tr>{rows}</table>"
        )


class GraphBuilder:
    """Builds a `Graph` node by node, sharing equal nodes.

    >>> g = GraphBuilder()
    >>> x = g.input("x", TensorType((2, 3), "float32"))
    >>> y = g.op("Relu", x)
    >>> graph = g.build({"y": y})
    """

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.weights: dict[str, Weight] = {}
        self.opaques: dict[str, bytes] = {}
        self.input_names: list[str] = []
        self._index: dict[tuple[str, tuple[int, ...], Attributes], int] = {}

    def add(self, op: str, inputs: Iterable[int], attrs: Attributes, type: Type, names: tuple[str, ...] = ()) -> int:
        """The index of this node, an existing equal one if there is one (then the first names are kept)."""
        inputs = tuple(inputs)
        key = (op, inputs, attrs)
        if key not in self._index:
            self._index[key] = len(self.nodes)
            self.nodes.append(Node(op, inputs, attrs, type, names))
        return self._index[key]

    def input(self, name: str, type: TensorType) -> int:
        if name not in self.input_names:
            self.input_names.append(name)
        return self.add("Input", (), attributes(name=name), type, (name,))

    def weight(self, weight: Weight | np.ndarray, name: str = "") -> int:
        if not isinstance(weight, Weight):
            weight = Weight.of(weight, name)
        self.weights.setdefault(weight.digest, weight)
        return self.add(
            "Weight", (), attributes(digest=weight.digest), weight.type, (weight.name,) if weight.name else ()
        )

    def absent(self) -> int:
        """The leaf that stands for an optional operator input that is not given."""
        return self.add("Absent", (), (), TensorType(None, "absent"))

    def op(self, op: str, *inputs: int, names: tuple[str, ...] = (), **attrs: Any) -> int:
        """Add a core operator; its type is inferred (`operators.IllTyped` if there is none)."""
        from .operators import infer

        frozen = attributes(**attrs)
        return self.add(op, inputs, frozen, infer(op, frozen, [self.nodes[i].type for i in inputs]), names)

    def get(self, tuple_index: int, item: int, names: tuple[str, ...] = ()) -> int:
        """Projection: output number `item` of a node with several outputs."""
        kind = self.nodes[tuple_index].type
        assert isinstance(kind, TupleType)
        return self.add("Get", (tuple_index,), attributes(index=item), kind.items[item], names)

    def build(self, outputs: Mapping[str, int], source: Any = None) -> Graph:
        return Graph(
            tuple(self.nodes), tuple(outputs.values()), tuple(self.input_names), tuple(outputs),
            dict(self.weights), dict(self.opaques), source,
        )  # fmt: skip
