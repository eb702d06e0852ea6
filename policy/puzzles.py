"""Small search spaces with known traps, made without saturation: for training and for tests of the policy.

`puzzle` draws a random network and adds, by hand, e-nodes that real rules would add too. What makes choosing hard:

- merging sibling matmuls pays only when all users switch, and the pairs, triples and whole merges exclude each other;
- activations move through a merge, and a Concat of its parts cancels it (two switches, of which the first alone loses);
- folding `(x W₁) W₂` into `x (W₁ W₂)` saves an operator but grows the weights: with a growth limit it is a knapsack;
- a part of a Concat can be read back out of it, which closes cycles.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from ..egraph.graph import Attributes, Graph, GraphBuilder, TensorType, Type, Weight, attributes
from ..egraph.operators import infer
from ..egraph.report import SaturationReport
from ..egraph.space import SearchSpace, Selection


class SpaceBuilder:
    """Adds e-nodes to the classes of a graph. Equal e-nodes are shared; classes are never merged."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.types: list[Type] = []
        self.const: list[bool] = []
        self.nodes: list[tuple[int, str, tuple[int, ...], Attributes, str]] = []
        self._index: dict[tuple[str, tuple[int, ...], Attributes], int] = {}
        self.of: dict[int, int] = {}
        for i in graph.live:
            n = graph.nodes[i]
            self.of[i] = self._class(n.op, tuple(self.of[k] for k in n.inputs), n.attributes, n.type, "")

    def _class(self, op: str, kids: tuple[int, ...], attrs: Attributes, kind: Type, rule: str) -> int:
        key = (op, kids, attrs)
        if key not in self._index:
            c = self._index[key] = len(self.types)
            self.types.append(kind)
            self.const.append(op != "Input" and all(self.const[k] for k in kids))
            self.nodes.append((c, op, kids, attrs, rule))
        return self._index[key]

    def op(self, rule: str, op: str, *kids: int, **attrs: object) -> int:
        """The class of this expression, a new one if there is none yet."""
        frozen = attributes(**attrs)
        return self._class(op, kids, frozen, infer(op, frozen, [self.types[k] for k in kids]), rule)

    def also(self, c: int, rule: str, op: str, *kids: int, **attrs: object) -> None:
        """State that class `c` equals this expression. An expression that already is another class is left alone."""
        frozen = attributes(**attrs)
        assert infer(op, frozen, [self.types[k] for k in kids]) == self.types[c], (op, self.types[c])
        key = (op, kids, frozen)
        if key not in self._index:
            self._index[key] = c
            self.nodes.append((c, op, kids, frozen, rule))

    def build(self) -> SearchSpace:
        order = sorted(range(len(self.nodes)), key=lambda i: self.nodes[i][0])
        nodes = [self.nodes[i] for i in order]
        ptr = np.cumsum([0, *(len(n[2]) for n in nodes)]).astype(np.int32)
        picked = np.full(len(self.types), -1, dtype=np.int32)
        live = set(self.of.values())
        for i, n in enumerate(nodes):
            if n[0] in live and not n[4]:
                picked[n[0]] = i
        names: list[tuple[str, ...]] = [()] * len(self.types)
        for i, c in self.of.items():
            names[c] = self.graph.nodes[i].names
        node_class, const = np.array([n[0] for n in nodes], dtype=np.int32), np.array(self.const)
        chosen = picked[picked >= 0]
        return SearchSpace(
            ops=tuple(n[1] for n in nodes),
            attributes=tuple(n[3] for n in nodes),
            node_class=node_class,
            child_ptr=ptr,
            children=np.array([k for n in nodes for k in n[2]], dtype=np.int32),
            types=tuple(self.types),
            const=const,
            roots=np.array([self.of[o] for o in self.graph.outputs], dtype=np.int32),
            rules=tuple((n[4],) if n[4] else () for n in nodes),
            names=tuple(names),
            original=Selection(picked),
            baseline=chosen[~const[node_class[chosen]]],
            graph=self.graph,
            report=SaturationReport(stop_reason="puzzle"),
        )


def puzzle(rng: np.random.Generator, blocks: int = 6) -> SearchSpace:
    """A random network of so many blocks with the traps above; about 40 e-nodes a block."""
    g = GraphBuilder()
    rows = int(rng.choice([1, 8, 32, 128]))
    width = int(rng.choice([64, 128, 256, 512]))
    tall = rng.random() < 0.5  # whether equal blocks repeat
    x = g.input("x", TensorType((rows, width), "float32"))
    branches: list[tuple[int, list[tuple[int, int]], bool]] = []  # input, (matmul, its weight), activated
    folds: list[tuple[int, int, int, int]] = []
    sums: list[tuple[int, tuple[int, int], tuple[int, int]]] = []
    joins: list[tuple[int, list[int]]] = []
    kinds = rng.integers(0, 4, size=blocks) if not tall else np.resize(rng.integers(0, 4, size=2), blocks)
    shapes = [int(s) for s in rng.choice([16, 32, 64, 128, 256], size=6)]
    ranks = [int(r) for r in rng.choice([8, 16, 32, 64], size=blocks)]

    def weight(a: int, b: int) -> int:
        return g.weight(Weight.of(_lazy(rng, a, b)))

    for number, kind in enumerate(kinds.tolist()):
        if kind in (0, 1):  # siblings, activated or not, joined again
            n = 2 + (number + shapes[0]) % 3 if not tall else 3
            parts, outs, activated = [], [], bool(kind)
            for k in range(n):
                w = weight(width, shapes[k % len(shapes)])
                m = g.op("MatMul", x, w)
                parts.append((m, w))
                outs.append(g.op("Relu", m) if activated and (k != 1 or number % 2) else m)
            branches.append((x, parts, activated))
            joined = g.op("Concat", *outs, axis=1)
            joins.append((joined, outs))
            total = g.nodes[joined].type
            assert isinstance(total, TensorType) and total.shape is not None
            extent = total.shape[1]
            assert isinstance(extent, int)
            y = g.op("MatMul", joined, weight(extent, width))
        elif kind == 2:  # a low-rank pair
            w1, w2 = weight(width, ranks[number if not tall else 0]), weight(ranks[number if not tall else 0], width)
            y = g.op("MatMul", g.op("MatMul", x, w1), w2)
            folds.append((y, x, w1, w2))
        else:  # a sum of two products
            h = g.op("Tanh", x)
            u, v = weight(width, width), weight(width, width)
            y = g.op("Add", g.op("MatMul", x, u), g.op("MatMul", h, v))
            sums.append((y, (x, u), (h, v)))
        x = g.op("Add", g.op("Relu", y), x)
    graph = g.build({"y": x})

    b = SpaceBuilder(graph)
    for source, parts, _ in branches:
        _merges(b, b.of[source], [(b.of[m], b.of[w]) for m, w in parts], rng)
    for joined, outs in joins:
        _cancel(b, b.of[joined], [b.of[o] for o in outs], rng)
    for y, source, w1, w2 in folds:
        folded = b.op("fold", "MatMul", b.of[w1], b.of[w2])
        b.also(b.of[y], "fold", "MatMul", b.of[source], folded)
    for y, (p, u), (q, v) in sums:
        both = b.op("concat-inner", "Concat", b.of[p], b.of[q], axis=1)
        weights = b.op("concat-inner", "Concat", b.of[u], b.of[v], axis=0)
        b.also(b.of[y], "concat-inner", "MatMul", both, weights)
    return b.build()


def _lazy(rng: np.random.Generator, a: int, b: int) -> np.ndarray:
    """A distinct weight that takes no memory: one random number, broadcast."""
    return np.broadcast_to(np.float32(rng.random()), (a, b))


def _merges(b: SpaceBuilder, x: int, parts: Sequence[tuple[int, int]], rng: np.random.Generator) -> None:
    """Merge all siblings and some of their subsets; activations move through each merge."""
    subsets = [s for n in range(2, len(parts) + 1) for s in combinations(range(len(parts)), n)]
    for subset in subsets:
        if len(subset) < len(parts) and rng.random() < 0.4:
            continue
        weights = b.op("merge", "Concat", *(parts[k][1] for k in subset), axis=1)
        sizes = [b.types[parts[k][0]].shape[1] for k in subset]  # type: ignore[union-attr, index]
        merged = b.op("merge", "MatMul", x, weights)
        split = b.op("merge", "Split", merged, axis=1, sizes=sizes)
        active = b.op("merge-relu", "Relu", merged)
        pieces = b.op("merge-relu", "Split", active, axis=1, sizes=sizes)
        for position, k in enumerate(subset):
            b.also(parts[k][0], "merge", "Get", split, index=position)
            relu = b._index.get(("Relu", (parts[k][0],), ()))
            if relu is not None:
                b.also(relu, "merge-relu", "Get", pieces, index=position)


def _cancel(b: SpaceBuilder, joined: int, outs: Sequence[int], rng: np.random.Generator) -> None:
    """A Concat of all parts of a Split is what was split; sometimes a part is read back out of the Concat (a cycle)."""
    found = list(b.nodes)
    for _, op, kids, attrs, _ in found:
        if op == "Split":
            gets = [
                b._index.get(("Get", (b._index[(op, kids, attrs)],), attributes(index=k))) for k in range(len(outs))
            ]
            if gets == list(outs):
                source = next(n for n in found if n[0] == kids[0])
                b.also(joined, "concat-of-split", "Concat", *outs, axis=1)
                key = ("Relu" if source[1] == "Relu" else "MatMul", source[2], source[3])
                if key in b._index and b._index[key] != joined:
                    _unite(b, b._index[key], joined)
    if rng.random() < 0.7:
        sizes = [b.types[o].shape[1] for o in outs]  # type: ignore[union-attr, index]
        split = b.op("read-back", "Split", joined, axis=1, sizes=sizes)
        for k, o in enumerate(outs):
            b.also(o, "read-back", "Get", split, index=k)


def _unite(b: SpaceBuilder, gone: int, kept: int) -> None:
    """Make class `gone` the class `kept`: its e-nodes and its readers move over. Later duplicates are left in place."""
    for position, (c, op, kids, attrs, rule) in enumerate(b.nodes):
        b.nodes[position] = (kept if c == gone else c, op, tuple(kept if k == gone else k for k in kids), attrs, rule)
    b._index = {(op, kids, attrs): c for c, op, kids, attrs, _ in reversed(b.nodes)}
