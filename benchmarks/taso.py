"""TASO's generated substitutions, read and built as graphs at chosen sizes.

The files are described in `tests/data/README.md`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from xrlflow.egraph.graph import Graph, GraphBuilder, TensorType, TupleType, Weight
from xrlflow.egraph.operators import IllTyped
from xrlflow.egraph.space import tensor
from xrlflow.lowering import evaluate

DATA = Path(__file__).resolve().parent.parent / "tests" / "data"
LARGEST = 1 << 20
"""Elements of the largest tensor that is tried."""
ACTIVATIONS = {0: None, 1: "Sigmoid", 2: "Relu", 3: "Tanh"}
OPERATORS = {"ewadd": "Add", "ewmul": "Mul", "matmul": "MatMul", "relu": "Relu"}

Tree: TypeAlias = "str | int | tuple[Any, ...]"
Extent: TypeAlias = tuple[int, ...]
"""A sum of extent variables: what a concatenation makes of its operands' extents."""


def read(text: str) -> Tree:
    """One s-expression as nested tuples."""
    stack: list[list[Any]] = [[]]
    for token in text.replace("(", " ( ").replace(")", " ) ").split():
        if token == "(":
            stack.append([])
        elif token == ")":
            done = tuple(stack.pop())
            stack[-1].append(done)
        else:
            stack[-1].append(int(token) if token.isdigit() else token.removeprefix("?"))
    (tree,) = stack[0]
    return tree


def subtrees(tree: Tree) -> Iterator[Tree]:
    yield tree
    if isinstance(tree, tuple):
        for child in tree[1:]:
            yield from subtrees(child)


def renamed(tree: Tree, names: dict[str, str]) -> Tree:
    """The tree with its inputs named by first appearance."""
    if isinstance(tree, str):
        return names.setdefault(tree, f"t{len(names)}")
    return (tree[0], *(renamed(c, names) for c in tree[1:])) if isinstance(tree, tuple) else tree


@dataclass(frozen=True)
class Substitution:
    """One of TASO's substitutions: as many left as right sides (one or two), pairwise equal."""

    name: str
    lefts: tuple[Tree, ...]
    rights: tuple[Tree, ...]

    @cached_property
    def inputs(self) -> tuple[str, ...]:
        trees = itertools.chain.from_iterable(map(subtrees, (*self.lefts, *self.rights)))
        return tuple(dict.fromkeys(t for t in trees if isinstance(t, str)))

    @cached_property
    def canonical(self) -> tuple[Tree, ...]:
        names: dict[str, str] = {}
        return tuple(renamed(t, names) for t in (*self.lefts, *self.rights))

    @cached_property
    def weights(self) -> tuple[str, ...]:
        """The inputs that stand only where a model has a weight: in a matmul's or a convolution's second operand."""
        places: dict[str, set[bool]] = {}

        def visit(tree: Tree, weight: bool) -> None:
            if isinstance(tree, str):
                places.setdefault(tree, set()).add(weight)
            elif isinstance(tree, tuple) and tree[0] in ("matmul", "conv2d"):
                visit(tree[-2], weight)
                visit(tree[-1], True)
            elif isinstance(tree, tuple):
                for child in tree[1:]:
                    visit(child, weight)

        for tree in self.lefts:
            visit(tree, False)
        return tuple(n for n in self.inputs if places.get(n) == {True})

    def __str__(self) -> str:
        return "; ".join(f"{shown(a)} → {shown(b)}" for a, b in zip(self.lefts, self.rights, strict=True))


def shown(tree: Tree) -> str:
    """The tree in the notation of the rules."""
    if not isinstance(tree, tuple):
        return str(tree).replace("input_", "x")
    head, *rest = tree
    if head == "conv2d":
        act = ACTIVATIONS[rest[3]]
        text = f"Conv({shown(rest[4])}, {shown(rest[5])})"
        return f"{act}({text})" if act else text
    if head == "concat":
        return f"Concat{rest[0]}({shown(rest[2])}, {shown(rest[3])})"
    if head in ("split_0", "split_1"):
        return f"{shown(rest[0])}[{head[-1]}]"
    if head == "split":
        return f"Split{rest[0]}({shown(rest[1])})"
    if head in ("ewadd", "ewmul"):
        return f"({shown(rest[0])} {'+' if head == 'ewadd' else '·'} {shown(rest[1])})"
    return f"{OPERATORS[head]}({', '.join(shown(t) for t in rest if not isinstance(t, int))})"


def substitutions() -> list[Substitution]:
    """All of the two files: `1` … `120` have one output, `m1` … `m7` two."""
    single = [line.split("=>") for line in (DATA / "taso_single.txt").read_text("ascii").split("\n") if line]
    multi = [line.split("=>") for line in (DATA / "taso_multi.txt").read_text("ascii").split("\n") if line]
    found = [Substitution(str(i), (read(a),), (read(b),)) for i, (a, b) in enumerate(single, 1)]
    for i in range(0, len(multi), 2):
        pair = multi[i : i + 2]
        found.append(Substitution(f"m{i // 2 + 1}", tuple(read(p[0]) for p in pair), tuple(read(p[1]) for p in pair)))
    return found


class Unfit(ValueError):
    """The substitution has no such shapes."""


class Shapes:
    """The extents of a substitution's inputs: those that must agree are one variable."""

    def __init__(self, substitution: Substitution) -> None:
        self.parent: list[int] = []
        self.ranks: dict[str, int] = {}
        trees = (*substitution.lefts, *substitution.rights)
        for tree in trees:
            self.rank(tree)
        self.shapes = {n: tuple(self.fresh() for _ in range(self.ranks.get(n, 2))) for n in substitution.inputs}
        for tree in trees:
            self.shape(tree)
        for left, right in zip(substitution.lefts, substitution.rights, strict=True):
            for a, b in zip(self.shape(left), self.shape(right), strict=True):
                self.unify(a, b)

    def rank(self, tree: Tree) -> int | None:
        """The rank of a term, once an operator around or inside it fixes one."""
        if isinstance(tree, str):
            return self.ranks.get(tree)
        assert isinstance(tree, tuple)
        known = {"matmul": 2, "conv2d": 4}.get(tree[0]) or (tree[2] if tree[0] == "concat" else None)
        children = [c for c in tree[1:] if not isinstance(c, int)]
        known = known or next((r for r in map(self.rank, children) if r), None)
        for child in children:
            if known:
                self.give(child, known)
        return known

    def give(self, tree: Tree, rank: int) -> None:
        if isinstance(tree, str):
            self.ranks[tree] = rank
        elif isinstance(tree, tuple):
            for child in tree[1:]:
                self.give(child, rank)

    def fresh(self) -> Extent:
        self.parent.append(len(self.parent))
        return (len(self.parent) - 1,)

    def find(self, v: int) -> int:
        while self.parent[v] != v:
            v = self.parent[v]
        return v

    def resolved(self, e: Extent) -> Extent:
        return tuple(sorted(map(self.find, e)))

    def unify(self, a: Extent, b: Extent) -> None:
        a, b = self.resolved(a), self.resolved(b)
        if len(a) != len(b):
            raise Unfit(f"extents {a} and {b}")
        for x, y in zip(a, b, strict=True):
            self.parent[max(self.find(x), self.find(y))] = min(self.find(x), self.find(y))

    def shape(self, tree: Tree) -> tuple[Extent, ...]:
        """The shape of a term; the extents that its operators need to be equal are made so."""
        if isinstance(tree, str):
            return self.shapes[tree]
        assert isinstance(tree, tuple)
        head = tree[0]
        operands = [self.shape(c) for c in tree[1:] if not isinstance(c, int)]
        if head == "matmul":
            self.unify(operands[0][1], operands[1][0])
            return operands[0][0], operands[1][1]
        if head == "conv2d":
            x, w = operands
            if len(self.resolved(x[1])) == len(self.resolved(w[1])):  # else in groups
                self.unify(x[1], w[1])
            return x[0], w[0], x[2], x[3]
        if head == "concat":
            axis = tree[1]
            for i, (a, b) in enumerate(zip(*operands, strict=True)):
                if i != axis:
                    self.unify(a, b)
            return tuple((*a, *b) if i == axis else a for i, (a, b) in enumerate(zip(*operands, strict=True)))
        if head in ("split_0", "split_1"):
            _, axis, whole = tree[1]
            part = self.parts(whole, axis)[int(head[-1])]
            return tuple(part if i == axis else e for i, e in enumerate(operands[0]))
        if head in ("ewadd", "ewmul"):
            for a, b in zip(*operands, strict=True):
                self.unify(a, b)
        return operands[0]

    def parts(self, tree: Tree, axis: int) -> tuple[Extent, Extent]:
        """The extents of the two operands of the concatenation that made this axis."""
        assert isinstance(tree, tuple)
        if tree[0] == "concat" and tree[1] == axis:
            return self.shape(tree[3])[axis], self.shape(tree[4])[axis]
        if tree[0] in ("matmul", "conv2d"):
            return self.parts(tree[-2 + axis], axis if tree[0] == "matmul" else 0)
        return self.parts(tree[-1], axis)

    @cached_property
    def variables(self) -> tuple[int, ...]:
        return tuple(dict.fromkeys(self.find(v) for shape in self.shapes.values() for e in shape for v in e))


@dataclass
class Sides:
    """Both sides of a substitution at one assignment of sizes."""

    substitution: Substitution
    sizes: dict[int, int]
    shapes: Shapes
    weights: frozenset[str]
    seed: int = 0
    feeds: dict[str, np.ndarray] = field(default_factory=dict)

    def extent(self, e: Extent) -> int:
        return sum(self.sizes[v] for v in self.shapes.resolved(e))

    def graph(self, *, left: bool = True, right: bool = True, values: bool = True) -> Graph:
        """The wanted sides as outputs of one graph. Raises `IllTyped` where the sizes do not fit.

        Without `values` the weights are inputs, and nothing is drawn.
        """
        builder = GraphBuilder()
        rng = np.random.default_rng(self.seed)
        made: dict[str, int] = {}
        for name in self.substitution.inputs:
            shape = tuple(map(self.extent, self.shapes.shapes[name]))
            if not values:
                made[name] = builder.input(name, TensorType(shape, "float32"))
                continue
            array = rng.standard_normal(shape)
            if name in self.weights:
                made[name] = builder.weight(Weight.of(array.astype(np.float32), name))
            else:
                made[name] = builder.input(name, TensorType(shape, "float32"))
                self.feeds[name] = array
        outputs: dict[str, int] = {}
        if left:
            outputs |= {f"left{i}": self.build(builder, made, t) for i, t in enumerate(self.substitution.lefts)}
        if right:
            outputs |= {f"right{i}": self.build(builder, made, t) for i, t in enumerate(self.substitution.rights)}
        return builder.build(outputs)

    def build(self, b: GraphBuilder, made: dict[str, int], tree: Tree) -> int:
        if isinstance(tree, str):
            return made[tree]
        assert isinstance(tree, tuple)
        head, *rest = tree
        operands = [self.build(b, made, t) for t in rest if not isinstance(t, int)]
        if head == "conv2d":
            x, w = ([int(str(d)) for d in tensor(b.nodes[i].type).shape or ()] for i in operands)
            if x[1] % w[1]:
                raise IllTyped("channels do not fit")
            same = [k // 2 for k in w[2:]] if rest[2] == 0 else [0, 0]
            y = b.op(
                "Conv", *operands, strides=tuple(rest[:2]), dilations=(1, 1), pads=(*same, *same), group=x[1] // w[1]
            )
            act = ACTIVATIONS[rest[3]]
            return b.op(act, y) if act else y
        if head == "concat":
            return b.op("Concat", *operands, axis=rest[0])
        if head == "split":
            sizes = tuple(map(self.extent, self.shapes.parts(rest[1], rest[0])))
            return b.op("Split", *operands, axis=rest[0], sizes=sizes)
        if head in ("split_0", "split_1"):
            assert isinstance(b.nodes[operands[0]].type, TupleType)
            return b.get(operands[0], int(head[-1]))
        return b.op(OPERATORS[head], *operands)

    def error(self) -> float:
        """The largest difference of the two sides in float64, relative to the left side's largest value."""
        graph = self.graph()
        values = dict(zip(graph.output_names, evaluate(graph, self.feeds), strict=True))
        worst = 0.0
        for i in range(len(self.substitution.lefts)):
            a, b = values[f"left{i}"], values[f"right{i}"]
            worst = max(worst, float(np.abs(a - b).max() / np.abs(a).max()) if a.shape == b.shape else np.inf)
        return worst


def assignments(substitution: Substitution, shapes: Shapes, count: int = 6) -> Iterator[dict[int, int]]:
    """Sizes for the variables: unequal ones in several orders, and a few equal ones at last."""
    rng = np.random.default_rng(0)
    windows = kernel_variables(substitution, shapes)
    odd = {v: (3, 1, 5)[i % 3] for i, v in enumerate(v for v in shapes.variables if v in windows)}
    free = [v for v in shapes.variables if v not in windows]
    ladder = [4, 16, 2, 8, 6, 12, 10, 20, 14, 18, 22, 24, 26, 28]
    for _ in range(count):
        order = rng.permutation(len(free))
        yield odd | {v: ladder[k % len(ladder)] for v, k in zip(free, order, strict=True)}
    for equal in (4, 6):
        yield odd | dict.fromkeys(free, equal)


def wide(substitution: Substitution, shapes: Shapes) -> Iterator[dict[int, int]]:
    """Sizes at which something may pay: few and many rows and columns in many combinations."""
    windows = kernel_variables(substitution, shapes)
    free = [v for v in shapes.variables if v not in windows]
    rng = np.random.default_rng(1)
    ends = (2, 256)
    choices = list(itertools.product(ends, repeat=len(free))) if len(free) <= 6 else []
    choices = choices or [tuple(rng.choice(ends, len(free)).tolist()) for _ in range(64)]
    for sizes in choices:
        yield dict.fromkeys(windows, 3) | dict(zip(free, sizes, strict=True))


def kernel_variables(substitution: Substitution, shapes: Shapes) -> set[int]:
    found: set[int] = set()
    for tree in itertools.chain.from_iterable(map(subtrees, (*substitution.lefts, *substitution.rights))):
        if isinstance(tree, tuple) and tree[0] == "conv2d":
            found |= {v for e in shapes.shape(tree[6])[2:] for v in shapes.resolved(e)}
    return found


def void(tree: Tree) -> bool:
    """Whether a convolution reads the same term as its image and its kernel: no such shapes exist in a model."""
    return any(isinstance(t, tuple) and t[0] == "conv2d" and t[5] == t[6] for t in subtrees(tree))


def sides_of(substitution: Substitution, weights: tuple[str, ...], *, large: bool = False) -> Iterator[Sides]:
    """The substitution at every assignment of sizes that fits it."""
    shapes = Shapes(substitution)
    for seed, sizes in enumerate((wide if large else assignments)(substitution, shapes)):
        sides = Sides(substitution, sizes, shapes, frozenset(weights), seed)
        try:
            types = [n.type for n in sides.graph(values=False).nodes]
        except IllTyped:
            continue
        if max(t.elements for t in types if isinstance(t, TensorType)) <= LARGEST:
            yield sides
