"""What a graph does with the values of its inputs: which are indices and how large they may be, masks, lengths, shapes.

Values are followed forward from each input through operators that only move, shift or scale them, into the bodies of
If, Loop and Scan and into model-local functions, up to an operator whose operand has to lie in some range.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from onnx import FunctionProto, GraphProto, NodeProto, TensorProto, helper

from ..egraph.dimension import Dimension, dimension, evaluate
from ..egraph.graph import Graph, Node, TensorType, TupleType
from .demands import EXTENTS, PASSING, POSITIVE, SUMS, USES
from .onnx_tensor import OnnxSource
from .origins import NOTHING, Shift, Value, complement, constant, joined, plain, shifted

HUGE = 1e3
"""A factor of at least this size turns a 0/1 mask into something that is added before a softmax."""

DEPTH = 8
"""Bodies and functions inside one another that are followed."""


@dataclass(frozen=True)
class Range:
    """A use of `scale * value + shift`, shift between `least` and `most`, that must lie in [low, high].

    high: None where nothing is known but that there is a limit.
    """

    low: int
    high: Dimension | None
    scale: float = 1.0
    least: float = 0.0
    most: float = 0.0

    def limits(self, binding: Mapping[str, int]) -> tuple[int, int]:
        """Lowest and highest value for a binding of the symbols; symbols without one count as 1."""
        high = 1
        if self.high is not None:
            symbols = () if isinstance(self.high, int) else self.high.symbols
            high = evaluate(self.high, {**dict.fromkeys(symbols, 1), **binding})
        low = math.ceil(max(0.0, self.low - self.least)) if self.low >= 0 else self.low
        room = high - self.most
        most = math.floor(room / self.scale) if math.isfinite(self.scale) else min(1, int(room))
        return low, max(low, most)


@dataclass
class Role:
    """What is known of one input's values.

    ranges: where they are used as numbers that have to lie in a range. mask: "added" before a softmax (0 or very
    negative), "factor" (0 or 1). extents: the values are a shape; these extents fit (-1: whatever is left).
    truth: a condition that has to be true, else a loop does nothing. positive: roots and logarithms are taken.
    """

    ranges: list[Range] = field(default_factory=list)
    mask: str = ""
    extents: tuple[Dimension, ...] | None = None
    truth: bool = False
    positive: bool = False

    def limits(self, binding: Mapping[str, int]) -> tuple[int, int] | None:
        """Lowest and highest value that all uses allow, or None where there is no limit."""
        if not self.ranges:
            return None
        found = [r.limits(binding) for r in self.ranges]
        low = max(f[0] for f in found)
        return low, max(low, min(f[1] for f in found))


def input_roles(graph: Graph) -> dict[str, Role]:
    """The role of each input of the graph, by name."""
    return _Flow(graph).run()


class _Flow:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.roles = {name: Role() for name in graph.input_names}
        self.functions: dict[tuple[str, str], FunctionProto] = {}
        if isinstance(graph.source, OnnxSource):
            self.functions = {(f.domain, f.name): f for f in graph.source.skeleton.functions}

    def run(self) -> dict[str, Role]:
        values: list[Sequence[Value]] = []
        for node in self.graph.nodes:
            values.append(self._node(node, values))
        return self.roles

    def _node(self, node: Node, values: Sequence[Sequence[Value]]) -> Sequence[Value]:
        kinds = node.type.items if isinstance(node.type, TupleType) else (node.type,)
        if node.op == "Input":
            return (Value({str(node.attrs["name"]): (1.0, 0.0, 0.0)}, kinds[0]),)
        if node.op == "Weight":
            weight = self.graph.weights[str(node.attrs["digest"])]
            return (Value({}, kinds[0], weight.value),)
        if node.op == "Absent":
            return (NOTHING,)
        if node.op == "Get":
            whole = values[node.inputs[0]]
            return (whole[node.attrs["index"]] if len(whole) > node.attrs["index"] else NOTHING,)
        operands = [values[k][0] for k in node.inputs]
        if not node.opaque:
            return self.apply("", node.op, node.attrs, operands, kinds, {}, 0)
        proto = NodeProto.FromString(self.graph.opaques[str(node.attrs["proto"])])
        captured = node.attrs["captures"]
        regular = len(operands) - len(captured)
        outer = dict(zip(captured, operands[regular:], strict=True))
        domain, _, op = node.op.rpartition("::")
        return self.apply(domain, op, proto, operands[:regular], kinds, outer, 0)

    def apply(
        self, domain: str, op: str, attrs: Any, xs: Sequence[Value], kinds: Sequence[TensorType | None],
        outer: Mapping[str, Value], depth: int,
    ) -> Sequence[Value]:  # fmt: skip
        """The results of one operator, after its demands on the inputs are noted."""
        if isinstance(attrs, NodeProto) and depth < DEPTH:
            function = self.functions.get((domain, op)) or self.functions.get((domain or "ai.onnx", op))
            if function is not None:
                return self._body(function, dict(zip(function.input, xs, strict=False)), list(function.output), depth)
            bodies = [a.g for a in attrs.attribute if a.HasField("g")]
            if bodies:
                return self._bodies(op, xs, bodies, outer, kinds, depth)
        self._demands(op, attrs, xs, kinds)
        return self._results(op, attrs, xs, kinds)

    def _demands(self, op: str, attrs: Any, xs: Sequence[Value], kinds: Sequence[TensorType | None]) -> None:
        for operand, low, limit, below in USES.get(op, ()):
            if operand < len(xs):
                high = limit if isinstance(limit, int) else _extent(xs, limit, attrs)
                self._within(xs[operand], low, None if high is None else high - below)
        if op == "OneHot" and len(xs) > 1 and xs[1].content is not None:
            self._within(xs[0], 0, int(xs[1].content.reshape(-1)[0]) - 1)
        if op in ("GatherND", "ScatterND") and len(xs) > 1:
            shape = xs[0].type.shape if xs[0].type is not None else None
            known = [d for d in shape or () if isinstance(d, int)]
            self._within(xs[1], 0, min(known) - 1 if known and shape and len(known) == len(shape) else None)
        if op in EXTENTS and len(xs) > EXTENTS[op]:
            for name, (scale, *_) in xs[EXTENTS[op]].origins.items():
                shape = kinds[0].shape if kinds and kinds[0] is not None else None
                if scale == 1.0 and shape is not None:
                    self.roles[name].extents = shape
                else:
                    self.roles[name].ranges.append(Range(1, 1))
        if op == "Resize":
            for x in xs[2:3]:
                for name in x.origins:
                    self.roles[name].ranges.append(Range(1, 2))
            if len(xs) > 3 and xs[0].type is not None:
                for name in xs[3].origins:
                    self.roles[name].extents = xs[0].type.shape
        self._mask_demands(op, attrs, xs)
        if op in POSITIVE:
            for name in xs[0].origins:
                self.roles[name].positive = True
        if op == "Loop" and len(xs) > 1:
            for name in xs[1].origins:
                self.roles[name].truth = True

    def _mask_demands(self, op: str, attrs: Any, xs: Sequence[Value]) -> None:
        if op in ("Softmax", "LogSoftmax") and xs:
            self._masks(xs[0].added, "added")
        if op in ("Attention", "MultiHeadAttention") and len(xs) > 3:
            self._masks(xs[3].origins, "added")
        if op == "Mul" and len(xs) == 2:
            for x, c in (xs, xs[::-1]):
                content = np.zeros(1) if c.content is None or not c.content.size else c.content.astype(np.float64)
                if np.abs(content).max() >= HUGE:  # (1 - x) * -10000, (x - 1) * 10000, x * -10000
                    negative = content.min() <= -HUGE
                    inverted = {n: s for n, s in x.origins.items() if negative or s[0] == -math.inf or s[1] < 0}
                    self._masks(inverted, "factor")
        if op == "Cast" and _attribute(attrs, "to", 0) in (TensorProto.BOOL, "bool"):
            self._masks(xs[0].origins, "factor")
        if op in ("Equal", "Greater", "Less", "GreaterOrEqual", "LessOrEqual") and len(xs) == 2:
            for x, c in (xs, xs[::-1]):
                if c.content is not None and c.content.size == 1 and float(c.content.reshape(-1)[0]) in (0.0, 0.5, 1.0):
                    self._masks(x.origins, "factor")

    def _within(self, x: Value, low: int, high: Dimension | None) -> None:
        for name, (scale, least, most) in x.origins.items():
            self.roles[name].ranges.append(Range(low, high, scale, least, most))

    def _masks(self, origins: Mapping[str, Shift], kind: str) -> None:
        for name in origins:
            self.roles[name].mask = self.roles[name].mask or kind

    def _results(self, op: str, attrs: Any, xs: Sequence[Value], kinds: Sequence[TensorType | None]) -> Sequence[Value]:
        origins: dict[str, Shift] = {}
        added: dict[str, Shift] = {}
        if op in PASSING:
            passing = PASSING[op]
            chosen = [x for k, x in enumerate(xs) if passing is None or k in passing]
            for x in chosen:
                origins = joined(origins, x.origins)
                added = joined(added, x.added)
        elif op in ("Add", "Sub") and len(xs) == 2:
            a, b = xs
            if b.content is not None and b.content.size:
                origins = shifted(a.origins, b.content if op == "Add" else -b.content.astype(np.float64))
            elif a.content is not None and a.content.size:
                origins = shifted(b.origins, a.content) if op == "Add" else complement(b.origins, a.content)
            else:
                both = [{n: (2 * s, lo, 2 * hi) for n, (s, lo, hi) in x.origins.items()} for x in xs]
                origins = joined(*both)
            if op == "Add":
                # what an input alone adds to something computed
                for x, other in ((a, b), (b, a)):
                    if plain(x) and not plain(other) and other.content is None:
                        added = joined(added, x.origins)
        elif op in SUMS:
            for x in xs:
                origins = joined(origins, dict.fromkeys(x.origins, (math.inf, 0.0, 0.0)))
        content = None
        if op in ("Identity", "Cast", "Reshape", "Squeeze", "Unsqueeze") and xs:
            content = xs[0].content
        return [Value(origins, kind, content, added) for kind in kinds] or [Value(origins, None, content, added)]

    # Bodies and functions

    def _bodies(
        self, op: str, xs: Sequence[Value], bodies: Sequence[GraphProto], outer: Mapping[str, Value],
        kinds: Sequence[TensorType | None], depth: int,
    ) -> Sequence[Value]:  # fmt: skip
        self._demands(op, None, xs, kinds)
        if op == "Loop":
            bound: list[Value] = [NOTHING, NOTHING, *xs[2:]]
        elif op == "If":
            bound = []
        else:
            bound = [replace(x, type=None) for x in xs]
        out: list[Value] = [NOTHING] * len(kinds)
        for body in bodies:
            names = [i.name for i in body.input]
            found = self._body(body, {**outer, **dict(zip(names, bound, strict=False))}, None, depth)
            found = found[1:] if op == "Loop" else found
            for k, value in enumerate(found[: len(out)]):
                out[k] = Value(joined(out[k].origins, value.origins), kinds[k])
        return out

    def _body(
        self, body: GraphProto | FunctionProto, env: dict[str, Value], outputs: list[str] | None, depth: int
    ) -> list[Value]:
        if isinstance(body, GraphProto):
            for tensor in body.initializer:
                env[tensor.name] = constant(tensor)
        for node in body.node:
            if node.op_type == "Constant":
                tensor = next((a.t for a in node.attribute if a.HasField("t")), None)
                env[node.output[0]] = NOTHING if tensor is None else constant(tensor)
                continue
            xs = [env.get(name, NOTHING) for name in node.input]
            found = self.apply(node.domain, node.op_type, node, xs, [None] * len(node.output), env, depth + 1)
            env.update(zip(node.output, found, strict=False))
        names = outputs if outputs is not None else [o.name for o in body.output]
        return [env.get(name, NOTHING) for name in names]


def _attribute(attrs: Any, name: str, default: Any) -> Any:
    if isinstance(attrs, NodeProto):
        return next((helper.get_attribute_value(a) for a in attrs.attribute if a.name == name), default)
    return (attrs or {}).get(name, default)


def _extent(xs: Sequence[Value], limit: tuple[int, int | str, int], attrs: Any) -> Dimension | None:
    operand, axis, default = limit
    kind = xs[operand].type if operand < len(xs) else None
    if kind is None or kind.shape is None:
        return None
    number = axis if isinstance(axis, int) else _attribute(attrs, axis, default)
    if not isinstance(number, int) or not -len(kind.shape) <= number < len(kind.shape):
        return None
    return dimension(kind.shape[number])
