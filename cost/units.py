"""What the `fusion` cost knows of each operator of a search space or a graph: its primitive functions, work and bytes.

A *unit* is an operator: an e-node of a space, or a node of a graph. A *value* is what it gives: a class, or the node
itself. Everything here is worked out once; `ledger` keeps the kernels of one program up to date with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..egraph.graph import LEAVES, Attributes, Graph, TensorType, TupleType, Type
from ..egraph.operators import core
from ..egraph.space import SearchSpace
from .base import payable
from .devices import Device
from .patterns import Kind, Primitive, free, primitives
from .roofline import OPAQUE_VIEWS, flops, traffic


@dataclass(frozen=True, eq=False)
class Units:
    """Operators and the values that they read and give.

    ops, attributes: of each unit. kids: the values that each one reads, operand by operand. value: the value that it
    gives. types, constant: of each value. roots: the values that are needed outside. active: units that run: no leaves,
    nothing that is folded.
    """

    ops: Sequence[str]
    attributes: Sequence[Attributes]
    kids: Sequence[tuple[int, ...]]
    value: Sequence[int]
    types: Sequence[Type]
    constant: Sequence[bool]
    roots: frozenset[int]
    active: Sequence[bool]
    space: SearchSpace | None = None
    """Where they are from, if from a space."""

    @classmethod
    def of_space(cls, space: SearchSpace) -> Units:
        """Units are e-nodes, values are classes."""
        paid = payable(space)
        gets = [op == "Get" and not space.const[c] for op, c in zip(space.ops, space.node_class.tolist(), strict=True)]
        active = [bool(p or g) for p, g in zip(paid, gets, strict=True)]
        return cls(
            space.ops, space.attributes, space.child_lists, space.node_class.tolist(), space.types,
            space.const.tolist(), frozenset(space.roots.tolist()), active, space,
        )  # fmt: skip

    @classmethod
    def of_graph(cls, graph: Graph, binding: Mapping[str, int] | None = None) -> Units:
        """Units and values are nodes. Constant expressions are folded, as they are when the graph is written.

        binding: extents of symbols; those that it leaves out are 1.
        """
        symbols = {s for node in graph.nodes for s in node.type.symbols}
        known = dict.fromkeys(symbols, 1) | dict(binding or {})
        constant: list[bool] = []
        for node in graph.nodes:
            folds = core(node.op) and len(node.inputs) > 0 and node.type.concrete
            told = node.op == "Weight" or "known" in node.attrs  # what is known of shapes TVM folds, too
            constant.append(told or (folds and all(constant[k] for k in node.inputs)))
        n, live = len(graph.nodes), set(graph.live)
        active = [i in live and graph.nodes[i].op not in LEAVES and not constant[i] for i in range(n)]
        return cls(
            [node.op for node in graph.nodes],
            [node.attributes for node in graph.nodes],
            [tuple(node.inputs) for node in graph.nodes],
            range(n),
            [node.type.at(known) for node in graph.nodes],
            constant,
            frozenset(graph.outputs),
            active,
        )

    def primitives(self, i: int) -> tuple[Primitive, ...]:
        kids = self.kids[i]
        types = [self.types[k] for k in kids]
        return primitives(
            self.ops[i], self.attributes[i], types, [self.constant[k] for k in kids], self.types[self.value[i]]
        )


@dataclass(frozen=True)
class Work:
    """What a unit computes and moves.

    seconds: its arithmetic at the device's peak. main: which primitive does it. reads: bytes that it reads of each
    operand; `writes`: bytes of its result.
    """

    seconds: float
    main: int
    reads: tuple[float, ...]
    writes: float


def work(units: Units, i: int, found: Sequence[Primitive], device: Device) -> Work:
    """The work of unit `i`, whose primitives were found, on `device`."""
    op, attrs, kids = units.ops[i], dict(units.attributes[i]), units.kids[i]
    types, out = [units.types[k] for k in kids], units.types[units.value[i]]
    if op == "Get":
        return Work(0.0, 0, (out.bytes,), out.bytes)
    if op in OPAQUE_VIEWS:
        return Work(0.0, 0, tuple(0.0 for _ in kids), 0.0)
    done, matrix = flops(op, attrs, types, out, device.lanes)
    first = out.items[0] if isinstance(out, TupleType) else out
    kinds = [p.kind for p in found]
    reads = [t.bytes if not (isinstance(t, TensorType) and t.dtype == "absent") else 0.0 for t in types]
    if op in ("Slice", "Gather", "::Gather"):  # they read only what they keep
        reads[0] = traffic("Slice", types, out) / 2
    return Work(done / device.peak(first.dtype, matrix), kinds.index(max(kinds)), tuple(reads), out.bytes)


class Pricer:
    """Prices kernels by a roofline of what they read from outside, compute and give.

    One for each measuring point; scale: what the point's prices are multiplied by.
    """

    def __init__(self, units: Units, found: Sequence[tuple[Primitive, ...]], device: Device, scale: float) -> None:
        self.units, self.found, self.device, self.scale = units, found, device, scale
        self._work: dict[int, Work] = {}

    def work(self, i: int) -> Work:
        known = self._work.get(i)
        if known is None:
            known = self._work[i] = work(self.units, i, self.found[i], self.device)
        return known

    def price(self, members: Sequence[tuple[int, int]]) -> float:
        """Milliseconds of the kernel of these primitives (unit, number of the primitive), the last one its result."""
        units, found = self.units, self.found
        names = [n for i, j in members for n in found[i][j].names]
        if free(names):
            return 0.0
        inside = {units.value[i] for i, j in members if j == len(found[i]) - 1}
        own = set(members)
        seconds, read = 0.0, dict[Any, float]()
        for i, j in members:
            known = self.work(i)
            if j == known.main:
                seconds += known.seconds
            for r in found[i][j].reads:
                if r < 0:
                    if (i, ~r) not in own:
                        read[i, r] = known.writes if units.ops[i] != "Gather" else known.reads[1]
                elif units.kids[i][r] not in inside:
                    key: Any = units.kids[i][r]
                    key = (key, i) if units.ops[i] == "Get" else key  # each part is bytes of its own
                    read[key] = max(read.get(key, 0.0), known.reads[r])
        i, j = members[-1]
        written = self.work(i).writes
        if j < len(found[i]) - 1 and found[i][j].reads and found[i][j].reads[0] >= 0:  # an operand, prepared
            written = self.work(i).reads[found[i][j].reads[0]]
        if all(found[a][b].kind == Kind.OPAQUE and units.ops[a] in OPAQUE_VIEWS for a, b in members):
            return 0.0
        moved = (written + sum(read.values())) / self.device.bandwidth
        return self.scale * (self.device.launch + 1e3 * max(seconds, moved))
