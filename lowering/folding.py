"""Constant expressions computed once and stored as weights."""

from __future__ import annotations

import torch

from ..egraph.graph import Graph, GraphBuilder, Node, TensorType, Weight
from ..egraph.operators import core
from .evaluation import NotEvaluable, Value, evaluate_node, to_numpy, to_torch

GROWTH = 4
"""A constant expression stays as it is if its result has more than this many times its operands' elements."""
NEGLIGIBLE = 1024
"""Results of at most this many elements are always folded."""

MOVEMENT = ("Concat", "Split", "Slice", "Transpose", "Reshape")
"""Operators that only move elements: nothing is rounded, so nothing needs to be widened."""


def fold_constants(graph: Graph) -> Graph:
    """Replace every maximal expression of core operators over weights by one weight; drop what no output needs.

    Floating-point expressions are computed in float64 and rounded once, to the type of the result. Kept: opaque
    operators, and those whose result is large (more than `NEGLIGIBLE` elements) and more than `GROWTH` times as large
    as their operands together, such as an outer sum; their operands are still folded.
    """
    return _Folding(graph).run()


class _Folding:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.values: dict[int, Value] = {}
        """Results of constant operators that may still be read."""
        self.labels: dict[int, tuple[str, ...]] = {}
        """Names of the weights below each constant node; there is one entry for every constant node."""
        self.made: dict[int, int] = {}
        self.builder = GraphBuilder()

    def run(self) -> Graph:
        graph, nodes, builder = self.graph, self.graph.nodes, self.builder
        builder.opaques, builder.input_names = dict(graph.opaques), list(graph.input_names)
        for i, node in enumerate(nodes):
            if node.op == "Input":  # unused ones stay
                self.made[i] = builder.add(node.op, (), node.attributes, node.type, node.names)
        last_use = {k: i for i in graph.live for k in nodes[i].inputs}
        last_use.update(dict.fromkeys(graph.outputs, len(nodes)))
        for i in graph.live:
            node = nodes[i]
            if node.op == "Weight":
                weight = self._stored(node)
                self.labels[i] = (weight.name,) if weight.name else ()
            elif node.op != "Input" and not self._folded(i, node):
                operands = [self._operand(k) for k in node.inputs]
                self.made[i] = builder.add(node.op, operands, node.attributes, node.type, node.names)
            for k in node.inputs:
                if last_use[k] == i:
                    self.values.pop(k, None)
        outputs = {name: self._operand(i) for name, i in zip(graph.output_names, graph.outputs, strict=True)}
        return builder.build(outputs, graph.source)

    def _stored(self, node: Node) -> Weight:
        return self.graph.weights[str(node.attrs["digest"])]

    def _folded(self, i: int, node: Node) -> bool:
        """Compute node i if all it reads is constant and the result is not too large."""
        if not core(node.op) or not all(k in self.labels for k in node.inputs) or self._grows(node):
            return False
        try:
            self.values[i] = self._compute(node)
        except NotEvaluable:
            return False
        self.labels[i] = tuple(dict.fromkeys(name for k in node.inputs for name in self.labels[k]))[:4]
        return True

    def _grows(self, node: Node) -> bool:
        if not isinstance(node.type, TensorType) or node.op == "Get":
            return False
        kinds = (self.graph.nodes[k].type for k in node.inputs)
        before = sum(t.elements for t in kinds if isinstance(t, TensorType))
        return node.type.elements > max(NEGLIGIBLE, GROWTH * before)

    def _compute(self, node: Node) -> Value:
        operands = [self._value(k) for k in node.inputs]
        if node.op == "Get":
            parts = operands[0]
            assert isinstance(parts, tuple)
            return parts[node.attrs["index"]]
        tensors = [v for v in operands if isinstance(v, torch.Tensor)]
        if node.op not in MOVEMENT or len({t.dtype for t in tensors}) > 1:
            tensors = [t.double() if t.is_floating_point() else t for t in tensors]
        with torch.no_grad():
            return evaluate_node(node.op, node.attrs, tensors)

    def _value(self, k: int) -> Value:
        if k in self.values:
            return self.values[k]
        return to_torch(self._stored(self.graph.nodes[k]).load())

    def _operand(self, k: int) -> int:
        """Index of node k in the new graph; a constant that is read from outside becomes a weight."""
        if k not in self.made:
            node = self.graph.nodes[k]
            if node.op == "Weight":
                weight = self._stored(node)
            elif isinstance(node.type, TensorType):
                value = self.values[k]
                assert isinstance(value, torch.Tensor)
                name = node.names[0] if node.names else "+".join(self.labels[k])[:80]
                weight = Weight.of(to_numpy(value, node.type.dtype), name, node.type.dtype)
            else:  # a Split of constants read by an operator that stays: it stays too
                operands = [self._operand(j) for j in node.inputs]
                self.made[k] = self.builder.add(node.op, operands, node.attributes, node.type, node.names)
                return self.made[k]
            self.made[k] = self.builder.weight(weight)
        return self.made[k]
