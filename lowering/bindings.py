"""Extents to try for a model's symbolic dimensions."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from math import prod

import numpy as np

from ..egraph.dimension import evaluate
from ..egraph.graph import Graph, TensorType, TupleType

EXTENTS = (8, 16, 32, 64, 224, 4, 6, 7, 10, 12, 48, 96, 128, 160, 256, 384, 512, 640, 1024, 3000)
"""Tried, all symbols alike, where the first do not run: images have a least size, patches divide them."""

LIMIT = 1 << 24
"""Elements that made-up inputs may have together."""

HINTS = 8
"""Extents that occur inside the graph that are tried before those: a trace may have frozen one."""

ATTEMPTS = 24
"""Random combinations of extents tried at last."""


def input_symbols(graph: Graph) -> list[str]:
    """Names of the symbols in the types of the graph's inputs, in order of first use."""
    kinds = [n.type for n in graph.nodes if n.op == "Input" and isinstance(n.type, TensorType)]
    return list(dict.fromkeys(s for kind in kinds for s in kind.symbols))


def completed(graph: Graph, given: Mapping[str, int], extent: int = 1) -> dict[str, int]:
    """A binding of all symbols of the inputs: the given ones, sums of others ("past + new"), `extent` for the rest."""
    return _resolved(input_symbols(graph), given, extent)


def _resolved(names: Sequence[str], given: Mapping[str, int], extent: int) -> dict[str, int]:
    binding = {name: given.get(name, extent) for name in names}
    for name in names:
        if name not in given and (value := _expression(name, binding)) is not None:
            binding[name] = value
    return binding


def _expression(text: str, binding: Mapping[str, int]) -> int | None:
    """The value of a name such as "past + new": exporters name dimensions so."""

    def value(node: ast.expr) -> int:
        if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Add, ast.Sub, ast.Mult, ast.FloorDiv)):
            a, b = value(node.left), value(node.right)
            if isinstance(node.op, ast.Add):
                return a + b
            if isinstance(node.op, ast.Sub):
                return a - b
            return a * b if isinstance(node.op, ast.Mult) else a // b
        if isinstance(node, ast.Name):
            return binding[node.id]
        if isinstance(node, ast.Constant) and isinstance(node.value, int):
            return node.value
        raise KeyError

    try:
        tree = ast.parse(text.strip(), mode="eval").body
        found = None if isinstance(tree, (ast.Name, ast.Constant)) else value(tree)
    except (SyntaxError, ValueError, KeyError, ZeroDivisionError, RecursionError):
        return None
    return found if found is not None and found >= 0 else None


def candidates(graph: Graph, seed: int = 0) -> Iterator[dict[str, int]]:
    """Bindings worth trying, each once: small and equal, all 1, small and unequal; then the sizes of real inputs.

    A symbol that is only ever a first axis is taken for a batch and stays small.
    """
    names = input_symbols(graph)
    if not names:
        return
    seen: set[tuple[int, ...]] = set()
    kinds = [n.type for n in graph.nodes if n.op == "Input" and isinstance(n.type, TensorType)]
    for wanted in _wanted(names, _batches(kinds), _hints(graph), seed):
        binding = _resolved(names, wanted, 1)
        key = tuple(binding.values())
        if key not in seen and _elements(kinds, binding) <= LIMIT:
            seen.add(key)
            yield binding


def _hints(graph: Graph) -> list[int]:
    """The extents that activations have most often, the most frequent first."""
    count: dict[int, int] = {}
    for i in graph.operators:
        kind = graph.nodes[i].type
        for t in kind.items if isinstance(kind, TupleType) else (kind,):
            for d in t.shape or ():
                if isinstance(d, int) and 2 < d <= max(EXTENTS):
                    count[d] = count.get(d, 0) + 1
    return sorted(count, key=lambda d: (-count[d], d))[:HINTS]


def _wanted(names: Sequence[str], batches: set[str], hints: Sequence[int], seed: int) -> Iterator[dict[str, int]]:
    free = [n for n in names if _expression(n, dict.fromkeys(names, 1)) is None]
    yield dict.fromkeys(free, 2)
    yield dict.fromkeys(free, 1)
    yield {n: 3 + 2 * j for j, n in enumerate(free)}
    sizes = [n for n in free if n not in batches]
    small = [n for n in free if n in batches]
    if not sizes:
        yield from (dict.fromkeys(small, extent) for extent in (4, 8, 16))
        sizes, small = small, []
    for extent in dict.fromkeys((*EXTENTS[:5], *hints, *EXTENTS)):
        equal = dict.fromkeys(sizes, extent)
        for batch in (2, 1) if small else (1,):
            yield {**dict.fromkeys(small, batch), **equal}
        if len(sizes) > 1:
            yield {**dict.fromkeys(small, 2), **{n: extent * (1 + j % 2) for j, n in enumerate(sizes)}}
        if small:
            yield {**dict.fromkeys(small, 3), **equal}
    rng = np.random.default_rng([seed, len(names)])
    for _ in range(ATTEMPTS):
        yield {n: int(rng.choice((1, 2, 3) if n in small else (1, 2, 3, 4, 8, 16, 32, 64, 224))) for n in free}


def _batches(kinds: Sequence[TensorType]) -> set[str]:
    first = {s for t in kinds for d in (t.shape or ())[:1] if not isinstance(d, int) for s in d.symbols}
    other = {s for t in kinds for d in (t.shape or ())[1:] if not isinstance(d, int) for s in d.symbols}
    return first - other


def _elements(kinds: Sequence[TensorType], binding: Mapping[str, int]) -> int:
    return sum(prod(max(0, evaluate(d, binding)) for d in t.shape) for t in kinds if t.shape is not None)
