"""The frozen search space: a saturated e-graph as flat arrays, and selections of one e-node per needed class.

Everything after saturation (costs, extractors, the policy's environment) works on these arrays and never touches
egglog. Classes and e-nodes are numbered from 0; class numbers follow the original graph's topological order first.
"""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from .dimension import Polynomial, substitute
from .graph import Attributes, Graph, GraphBuilder, TensorType, Type, Weight
from .report import SaturationReport


class IllegalSelection(ValueError):
    """The selection is cyclic, incomplete, or picks an e-node of another class."""


@dataclass(frozen=True, eq=False)
class Selection:
    """One e-node for each class that the roots need: `choice[c]` is an e-node of class c, or -1 if not needed."""

    choice: np.ndarray
    """int32, one entry per class."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Selection) and np.array_equal(self.choice, other.choice)

    def __hash__(self) -> int:
        return hash(self.choice.tobytes())


@dataclass(frozen=True, eq=False)
class SearchSpace:
    """A saturated e-graph.

    Arrays (n e-nodes, c classes, m edges): `node_class` int32[n] the class of each e-node; `child_ptr` int32[n+1] and
    `children` int32[m] the child *classes* of e-node i as `children[child_ptr[i]:child_ptr[i+1]]`, in operand order;
    `const` bool[c] whether a class depends on weights only (it is folded on export and costs nothing);
    `roots` int32[r] the classes of the graph's outputs. E-nodes are sorted by class.
    """

    ops: tuple[str, ...]
    attributes: tuple[Attributes, ...]
    node_class: np.ndarray
    child_ptr: np.ndarray
    children: np.ndarray
    types: tuple[Type, ...]
    const: np.ndarray
    roots: np.ndarray
    rules: tuple[tuple[str, ...], ...]
    """Names of the rules that made or united each e-node; empty for e-nodes of the input graph."""
    names: tuple[tuple[str, ...], ...]
    """The source's names of the value(s) of each class, where the input graph had one."""
    original: Selection
    """The input graph. Where rules made two of its values one (`Transpose(Transpose(x))` and x), it is the graph
    without the superfluous operators; `baseline` still has them."""
    baseline: np.ndarray
    """int32: the e-nodes of all operators of the input graph, constants left out; what the input costs."""
    graph: Graph
    report: SaturationReport = field(default_factory=SaturationReport)
    binding: Mapping[str, int] = field(default_factory=dict)
    """Extents that stand for symbols of `graph` (`at`)."""

    @property
    def n_nodes(self) -> int:
        return len(self.ops)

    @property
    def n_classes(self) -> int:
        return len(self.types)

    @cached_property
    def class_ptr(self) -> np.ndarray:
        """int32[c+1]: the e-nodes of class k are `class_ptr[k] … class_ptr[k+1]-1` (e-nodes are sorted by class)."""
        return np.searchsorted(self.node_class, np.arange(self.n_classes + 1)).astype(np.int32)

    @cached_property
    def child_lists(self) -> list[tuple[int, ...]]:
        """The child classes of each e-node as Python tuples, for loops that numpy would slow down."""
        flat, ptr = self.children.tolist(), self.child_ptr.tolist()
        return [tuple(flat[ptr[i] : ptr[i + 1]]) for i in range(self.n_nodes)]

    @cached_property
    def parents(self) -> list[list[int]]:
        """The e-nodes that read each class (each once)."""
        found: list[list[int]] = [[] for _ in range(self.n_classes)]
        for i, kids in enumerate(self.child_lists):
            for c in dict.fromkeys(kids):
                found[c].append(i)
        return found

    def nodes_of(self, c: int) -> range:
        """The e-nodes of class `c`."""
        return range(int(self.class_ptr[c]), int(self.class_ptr[c + 1]))

    def node_type(self, i: int) -> Type:
        """Type of e-node i's result."""
        return self.types[self.node_class[i]]

    def child_types(self, i: int) -> list[Type]:
        """Types of e-node i's operands."""
        return [self.types[c] for c in self.child_lists[i]]

    def attrs(self, i: int) -> dict[str, object]:
        """Attributes of e-node i."""
        return dict(self.attributes[i])

    def topological(self, choice: Sequence[int] | np.ndarray) -> list[int]:
        """Classes that the roots need under `choice`, children before parents.

        Raises `IllegalSelection` if there is a cycle, a needed class without an e-node, or an e-node of another class.
        """
        order: list[int] = []
        state = bytearray(self.n_classes)  # 0 unseen, 1 open, 2 done
        kids = self.child_lists
        picked = choice.tolist() if isinstance(choice, np.ndarray) else choice
        for root in self.roots.tolist():
            stack = [root]
            while stack:
                c = stack[-1]
                if state[c] == 2:
                    stack.pop()
                    continue
                i = picked[c]
                if state[c] == 1:
                    state[c] = 2
                    order.append(c)
                    stack.pop()
                    continue
                if i < 0 or self.node_class[i] != c:
                    raise IllegalSelection(f"class {c} is needed but has no e-node of its own ({i})")
                state[c] = 1
                for k in kids[i]:
                    if state[k] == 1:
                        raise IllegalSelection(f"classes {c} and {k} need each other")
                    if state[k] == 0:
                        stack.append(k)
        return order

    def selection(self, choice: Sequence[int] | np.ndarray) -> Selection:
        """The legal selection that `choice` gives: unneeded classes set to -1. Raises `IllegalSelection`."""
        picked = np.full(self.n_classes, -1, dtype=np.int32)
        for c in self.topological(choice):
            picked[c] = choice[c]
        picked.setflags(write=False)
        return Selection(picked)

    def selected(self, selection: Selection) -> Iterator[int]:
        """The e-nodes of a selection, children before parents."""
        return (int(selection.choice[c]) for c in self.topological(selection.choice))

    def weight_bytes(self, selection: Selection | Sequence[int] | np.ndarray) -> float:
        """Bytes of the initializers that the exported graph holds: constant classes read by other ones, each once."""
        if not isinstance(selection, Selection):
            selection = self.selection(selection)
        readers, read, size = self._weights
        taken = np.zeros(self.n_nodes, dtype=bool)
        taken[selection.choice[selection.choice >= 0]] = True
        live = np.zeros(self.n_classes, dtype=bool)
        live[read[taken[readers]]] = True
        live[self.roots] |= self.const[self.roots]
        return float(size[live & self.const].sum())

    @cached_property
    def _weights(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """E-nodes of other classes that read constant ones, and which, pair by pair; bytes of each constant class."""
        reader = np.repeat(np.arange(self.n_nodes), np.diff(self.child_ptr))
        pairs = self.const[self.children] & ~self.const[self.node_class[reader]]
        size = [t.bytes if k else 0.0 for t, k in zip(self.types, self.const.tolist(), strict=True)]
        return reader[pairs], self.children[pairs], np.array(size, dtype=np.float64)

    def to_graph(self, selection: Selection) -> Graph:
        """The graph that a selection stands for. Constant expressions stay; `lowering.fold_constants` folds them."""
        builder = GraphBuilder()
        builder.weights = {}
        builder.opaques = dict(self.graph.opaques)
        builder.input_names = list(self.graph.input_names)
        made: dict[int, int] = {}
        for node in self.graph.nodes:  # unused inputs stay inputs
            if node.op == "Input":
                builder.add(node.op, (), node.attributes, node.type, node.names)
        for c in self.topological(selection.choice):
            i = int(selection.choice[c])
            if self.ops[i] == "Weight":
                weight: Weight = self.graph.weights[str(dict(self.attributes[i])["digest"])]
                builder.weights[weight.digest] = weight
            made[c] = builder.add(
                self.ops[i], [made[k] for k in self.child_lists[i]], self.attributes[i], self.types[c], self.names[c]
            )
        outputs = dict(zip(self.graph.output_names, (made[c] for c in self.roots.tolist()), strict=True))
        return builder.build(outputs, self.graph.source)

    @cached_property
    def symbols(self) -> tuple[str, ...]:
        """Names of the symbolic dimensions in it."""
        return tuple(dict.fromkeys(s for kind in self.types for s in kind.symbols))

    def at(self, binding: Mapping[str, int], default: int = 1) -> SearchSpace:
        """The same space with extents in place of symbols, those of `default` that the binding leaves out.

        For costs and checks: e-nodes and classes keep their numbers, so a selection of one is a selection of the other.
        """
        if not self.symbols:
            return self
        known = dict.fromkeys(self.symbols, default) | dict(binding)
        bound = tuple(tuple((k, _bound(v, known)) for k, v in attrs) for attrs in self.attributes)
        return replace(self, types=tuple(kind.at(known) for kind in self.types), attributes=bound, binding=known)

    def changed(self, selection: Selection) -> list[int]:
        """Classes in which `selection` uses an e-node that the original does not use, in topological order."""
        return [c for c in self.topological(selection.choice) if selection.choice[c] != self.original.choice[c]]

    def __repr__(self) -> str:
        return f"SearchSpace({self.n_nodes} e-nodes, {self.n_classes} classes; {self.report.stop_reason})"

    def _repr_html_(self) -> str:
        """A summary with the statistics of all rules that had a match, those that fired most first."""
        columns = ("firings", "matches", "refused", "e-nodes", "seconds")
        rows = "".join(
            f"<tr><td>{html.escape(name)}</td><td>{s.firings}</td><td>{s.matches}</td><td>{sum(s.refused.values())}</td>"
            f"<td>{s.enodes}</td><td>{s.seconds:.3f}</td></tr>"
            for name, s in sorted(self.report.rules.items(), key=lambda item: (-item[1].firings, item[0]))
        )
        excluded = "".join(
            f"<br>without {html.escape(name)}: {html.escape(why)}" for name, why in self.report.excluded.items()
        )
        return (
            f"<b>SearchSpace</b>: {self.n_nodes} e-nodes in {self.n_classes} classes after "
            f"{self.report.iterations} iterations ({self.report.seconds:.2f} s, {self.report.stop_reason}){excluded}"
            f"<table><tr><th>rule</th>{''.join(f'<th>{c}</th>' for c in columns)}</tr>{rows}</table>"
        )


def tensor(t: Type) -> TensorType:
    """`t` as the type of one tensor; for code that knows it is no tuple."""
    assert isinstance(t, TensorType)
    return t


def _bound(value: Any, binding: Mapping[str, int]) -> Any:
    if not isinstance(value, tuple):
        return value
    return tuple(substitute(d, binding) if isinstance(d, Polynomial) else d for d in value)
