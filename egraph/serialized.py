"""E-graphs of others: the egraph-serialize JSON format of the egg community, read as a search space.

Format (egraphs-good/egraph-serialize): `nodes: id → {op, children: [ids], eclass, cost}`, `root_eclasses: [class]`.
Such e-graphs come with costs of their own and without tensors: types are unknown, nothing is constant, there is no
graph to write. What serves as the original is egg's bottom-up choice.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from typing import Any

import numpy as np

from ..errors import UserError
from .graph import Graph, TensorType
from .report import SaturationReport
from .space import SearchSpace, Selection


def read_egraph(path: str | os.PathLike[str]) -> tuple[SearchSpace, np.ndarray]:
    """The search space in a JSON file and the costs of its e-nodes, float64[n_nodes].

    Raises `UserError` for a file that is missing or has another form.
    """
    name = os.path.basename(os.fspath(path))
    try:
        with open(path, encoding="utf-8") as f:
            document = json.load(f)
        return _space(document)
    except OSError as error:
        raise UserError(f"{name}: cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{name}: is no egraph-serialize JSON ({type(error).__name__}: {error})") from None


def _space(document: dict[str, Any]) -> tuple[SearchSpace, np.ndarray]:
    nodes: dict[str, dict[str, Any]] = document["nodes"]
    classes = {c: k for k, c in enumerate(dict.fromkeys(str(n["eclass"]) for n in nodes.values()))}
    order = sorted(nodes, key=lambda i: classes[str(nodes[i]["eclass"])])  # stable: as in the file within a class
    home = [classes[str(nodes[i]["eclass"])] for i in order]
    children = [[classes[str(nodes[str(k)]["eclass"])] for k in nodes[i]["children"]] for i in order]
    costs = np.array([float(nodes[i].get("cost", 1.0)) for i in order])
    unknown = TensorType(None, "undefined")
    choice = np.array(bottom_up(home, children, costs, len(classes)), dtype=np.int32)
    space = SearchSpace(
        ops=tuple(str(nodes[i]["op"]) for i in order),
        attributes=((),) * len(order),
        node_class=np.array(home, dtype=np.int32),
        child_ptr=np.cumsum([0, *map(len, children)], dtype=np.int32),
        children=np.array([k for kids in children for k in kids], dtype=np.int32),
        types=(unknown,) * len(classes),
        const=np.zeros(len(classes), dtype=bool),
        roots=np.array([classes[str(c)] for c in document["root_eclasses"]], dtype=np.int32),
        rules=((),) * len(order),
        names=((),) * len(classes),
        original=Selection(choice),
        baseline=np.zeros(0, dtype=np.int32),
        graph=Graph((), (), (), ()),
        report=SaturationReport(stop_reason="read from a file"),
    )
    original = space.selection(choice)
    chosen = np.array(sorted(space.selected(original)), dtype=np.int32)
    return replace(space, original=original, baseline=chosen), costs


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
