"""E-graphs of others, and ours for others: the egraph-serialize JSON format of the egg community.

Format (egraphs-good/egraph-serialize): `nodes: id → {op, children: [ids], eclass, cost, subsumed}`, `root_eclasses:
[class]`, `class_data: class → {type}`. Such e-graphs come with costs of their own and without tensors: types are
unknown, nothing is constant, there is no graph to write. What serves as the original is egg's bottom-up choice.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from ..errors import UserError
from .graph import Graph, TensorType
from .report import SaturationReport
from .space import SearchSpace, Selection

CANNOT_RUN = 1e9
"""The cost (ms) that is written for e-nodes which cannot run: JSON knows no infinity."""


class Serialized(NamedTuple):
    """An e-graph from a file. costs: float64[n_nodes]. nodes, classes: what the file calls them, in our order."""

    space: SearchSpace
    costs: np.ndarray
    nodes: tuple[str, ...]
    classes: tuple[str, ...]

    def choices(self, selection: Selection) -> dict[str, str]:
        """The node that a selection takes of each class that it needs."""
        return {self.classes[c]: self.nodes[i] for c, i in enumerate(selection.choice.tolist()) if i >= 0}


class Malformed(ValueError):
    """What is wrong, where."""


def read_egraph(path: str | os.PathLike[str]) -> Serialized:
    """The search space in a JSON file.

    Raises `UserError` for a file that is missing, has another form, or describes no e-graph: a child that is not
    there, a cost that is no number, no roots, or a root that has no finite term.
    """
    name = os.path.basename(os.fspath(path))
    try:
        with open(path, encoding="utf-8") as f:
            document = json.load(f)
    except OSError as error:
        raise UserError(f"{name}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name}: is no egraph-serialize JSON ({type(error).__name__}: {error})") from None
    try:
        return parsed(document)
    except Malformed as error:
        raise UserError(f"{name}: is no egraph-serialize JSON: {error}") from None


def parsed(document: Any) -> Serialized:
    """The search space that this JSON value describes."""
    if not isinstance(document, dict) or not isinstance(document.get("nodes"), dict):
        raise Malformed('it has no object "nodes"')
    roots = document.get("root_eclasses")
    if not isinstance(roots, list) or not roots:
        raise Malformed('"root_eclasses" names no class')
    nodes: dict[str, tuple[str, list[str], str, float]] = {}
    for key, node in document["nodes"].items():
        if not (isinstance(node, dict) and node.get("subsumed") is True):
            nodes[key] = _node(key, node)
    classes = {c: k for k, c in enumerate(dict.fromkeys(home for _, _, home, _ in nodes.values()))}
    for root in roots:
        if str(root) not in classes:
            raise Malformed(f"root class {root!r} has no node")
    order = sorted(nodes, key=lambda i: classes[nodes[i][2]])  # stable: as in the file within a class
    home = [classes[nodes[i][2]] for i in order]
    children = []
    for i in order:
        for k in nodes[i][1]:
            if k not in nodes:
                gone = k in document["nodes"]
                raise Malformed(f"node {i!r} has child {k!r}, which is {'subsumed' if gone else 'not there'}")
        children.append([classes[nodes[k][2]] for k in nodes[i][1]])
    costs = np.array([nodes[i][3] for i in order])
    choice = np.array(bottom_up(home, children, costs, len(classes)), dtype=np.int32)
    numbers = np.array([classes[str(c)] for c in roots], dtype=np.int32)
    for root, c in zip(roots, numbers.tolist(), strict=True):
        if choice[c] < 0:
            raise Malformed(f"root class {root!r} has no finite term: each of its nodes needs itself")
    unknown = TensorType(None, "undefined")
    space = SearchSpace(
        ops=tuple(nodes[i][0] for i in order),
        attributes=((),) * len(order),
        node_class=np.array(home, dtype=np.int32),
        child_ptr=np.cumsum([0, *map(len, children)], dtype=np.int32),
        children=np.array([k for kids in children for k in kids], dtype=np.int32),
        types=(unknown,) * len(classes),
        const=np.zeros(len(classes), dtype=bool),
        roots=numbers,
        rules=((),) * len(order),
        names=((),) * len(classes),
        original=Selection(choice),
        baseline=np.zeros(0, dtype=np.int32),
        graph=Graph((), (), (), ()),
        report=SaturationReport(stop_reason="read from a file"),
    )
    original = space.selection(choice)
    chosen = np.array(sorted(space.selected(original)), dtype=np.int32)
    return Serialized(replace(space, original=original, baseline=chosen), costs, tuple(order), tuple(classes))


def _node(key: str, node: Any) -> tuple[str, list[str], str, float]:
    """Operator, children, class and cost of a node."""
    if not isinstance(node, dict) or "op" not in node or "eclass" not in node:
        raise Malformed(f'node {key!r} is no object with "op" and "eclass"')
    children, cost = node.get("children", []), node.get("cost", 1.0)
    if not isinstance(children, list):
        raise Malformed(f'node {key!r}: "children" is no list')
    if isinstance(cost, bool) or not isinstance(cost, (int, float)) or not (math.isfinite(cost) and cost >= 0):
        raise Malformed(f"node {key!r}: its cost is {cost!r}, not a number from 0 up")
    return str(node["op"]), [str(k) for k in children], str(node["eclass"]), float(cost)


def bottom_up(home: list[int], children: list[list[int]], costs: np.ndarray, classes: int) -> list[int]:
    """For each class the e-node of the least tree cost (egg's extractor), -1 where every one needs itself; acyclic."""
    readers: list[list[int]] = [[] for _ in range(classes)]
    for i, kids in enumerate(children):
        for k in dict.fromkeys(kids):
            readers[k].append(i)
    best, choice = [float("inf")] * classes, [-1] * classes
    work = [i for i, kids in enumerate(children) if not kids]
    while work:
        later: list[int] = []
        for i in work:
            total = float(costs[i]) + sum(best[k] for k in children[i])
            if total < best[home[i]]:
                best[home[i]], choice[home[i]] = total, i
                later.extend(readers[home[i]])
        work = list(dict.fromkeys(later))
    return choice


def serialized(space: SearchSpace, prices: Sequence[float] | np.ndarray) -> dict[str, Any]:
    """A search space with the cost of each e-node (ms) in this format, as an object to be written as JSON.

    Class c is called "c", its k-th e-node "c.k". What others extract under these costs is what the graph would cost as
    a sum; the limit on weight bytes, which the format has no place for, is not part of it.
    """
    ids = [f"{c}.{i - space.class_ptr[c]}" for i, c in enumerate(space.node_class.tolist())]
    nodes = {}
    for i, (key, kids) in enumerate(zip(ids, space.child_lists, strict=True)):
        attributes = ", ".join(f"{name}={value}" for name, value in space.attributes[i])
        nodes[key] = {
            "op": space.ops[i] + (f"[{attributes}]" if attributes else ""),
            "children": [ids[space.class_ptr[k]] for k in kids],
            "eclass": str(space.node_class[i]),
            "cost": min(float(prices[i]), CANNOT_RUN),
        }
    data = {str(c): {"type": str(kind)} for c, kind in enumerate(space.types)}
    return {"nodes": nodes, "root_eclasses": [str(c) for c in space.roots.tolist()], "class_data": data}
