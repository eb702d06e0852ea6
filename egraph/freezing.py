"""Freezing: from the terms of a saturation to the flat arrays of the search space."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from .graph import LEAVES, Graph
from .report import SaturationReport
from .space import SearchSpace, Selection
from .terms import COMMUTATIVE, ORIGINAL, TermGraph


def freeze(
    graph: Graph,
    terms: TermGraph,
    keys: Sequence[int],
    rules: Sequence[str],
    united: Sequence[tuple[int, int]],
    report: SaturationReport,
) -> tuple[SearchSpace, dict[int, int]]:
    """Everything that the graph's outputs can reach, and the number in the space of each class by its smallest key.

    keys: the key of each node of the graph. rules: their names. united: number of the rule and key of the right side's
    root, for every union.
    """
    find = terms.find
    makers: dict[int, list[str]] = {}
    for number, key in united:
        makers.setdefault(key, []).append(rules[number])
    # e-node (class, operator, attributes, operand classes) → smallest key, whether original, rules
    Signature = tuple[int, str, int, tuple[int, ...]]
    enodes: dict[Signature, tuple[int, bool, dict[str, None]]] = {}
    signature_of: list[Signature] = []
    for key in range(len(terms)):
        op, kids = terms.ops[key], terms.operands[key]
        kids = terms.ordered(kids) if op in COMMUTATIVE else tuple(map(find, kids))
        signature = (find(key), op, terms.attribute_ids[key], kids)
        signature_of.append(signature)
        first, original, by = enodes.get(signature, (key, False, {}))
        if terms.makers[key] == ORIGINAL:
            original = True
        else:
            by.setdefault(rules[terms.makers[key]])
        for name in makers.get(key, ()):
            by.setdefault(name)
        enodes[signature] = (first, original, by)
    baseline = [signature_of[keys[i]] for i in graph.live]
    by_class: dict[int, list[Signature]] = {}
    for signature in enodes:  # in the order of smallest keys
        by_class.setdefault(signature[0], []).append(signature)
    keep = set(baseline)
    for c, members in by_class.items():
        if terms.const[c]:  # constants are folded: one acyclic way to compute each is enough
            members[:] = members[:1]
        else:  # an e-node that needs its own class can never be selected
            members[:] = [s for s in members if c not in s[3] or s in keep]
    live = {s[0] for s in baseline if not terms.const[s[0]]} | {find(keys[o]) for o in graph.outputs}
    stack = sorted(live)
    while stack:
        for signature in by_class[stack.pop()]:
            for k in signature[3]:
                if k not in live:
                    live.add(k)
                    stack.append(k)
    classes = sorted(live)
    index = {c: i for i, c in enumerate(classes)}
    listed = [s for c in classes for s in by_class[c]]
    position = {s: i for i, s in enumerate(listed)}
    children = [[index[k] for k in s[3]] for s in listed]
    names: list[tuple[str, ...]] = [()] * len(classes)
    for key, node in zip(keys, graph.nodes, strict=True):
        c = find(key)
        if c in index and node.names and not names[index[c]]:
            names[index[c]] = node.names
    choice = np.full(len(classes), -1, dtype=np.int32)
    for c in classes:
        # the smallest key's operands have smaller keys still, so this choice is acyclic
        own = [s for s in by_class[c] if enodes[s][1]] or by_class[c]
        choice[index[c]] = position[min(own, key=lambda s: enodes[s][0])]
    space = SearchSpace(
        ops=tuple(s[1] for s in listed),
        attributes=tuple(terms.attribute_table[s[2]] for s in listed),
        node_class=np.array([index[s[0]] for s in listed], dtype=np.int32),
        child_ptr=np.cumsum([0, *map(len, children)], dtype=np.int32),
        children=np.array([k for kids in children for k in kids], dtype=np.int32),
        types=tuple(terms.types[c] for c in classes),
        const=np.array([terms.const[c] for c in classes], dtype=bool),
        roots=np.array([index[find(keys[o])] for o in graph.outputs], dtype=np.int32),
        rules=tuple(tuple(enodes[s][2]) if not enodes[s][1] or enodes[s][2] else () for s in listed),
        names=tuple(names),
        original=Selection(choice),
        baseline=np.array(_baseline(graph, terms, keys, position, signature_of), dtype=np.int32),
        graph=replace(graph, weights=dict(terms.weights)),
        report=report,
    )
    return replace(space, original=space.selection(choice)), index


def _baseline(
    graph: Graph, terms: TermGraph, keys: Sequence[int], position: dict[Any, int], signature_of: list[Any]
) -> list[int]:
    """The e-nodes of the input graph's live operators, with repetition where rules made two of them one."""
    live = [keys[i] for i in graph.live if graph.nodes[i].op not in LEAVES]
    return [position[signature_of[k]] for k in live if signature_of[k] in position and not terms.const[terms.find(k)]]
