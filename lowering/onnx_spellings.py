"""Which operators of a graph can be written as the source spelled them, and the constants that this takes."""

from __future__ import annotations

from ..egraph.graph import Graph, Weight
from .onnx_names import Names
from .onnx_records import Records, Spelling
from .onnx_tensor import Uniform


class Spellings:
    """The source's spellings that still fit, with names for the constants that they need and the graph has not."""

    def __init__(self, graph: Graph, records: Records, names: Names) -> None:
        self.nodes: dict[int, Spelling] = {}
        """By the number of the core operator."""
        self.reserved: dict[str, Weight] = {}
        """Constants that are not among the graph's weights, by the name they get."""
        self.present: dict[str, str] = {}
        """Names of these and of the graph's weights, by digest."""
        self.names = names
        weights = {i: str(graph.nodes[i].attrs["digest"]) for i in graph.live if graph.nodes[i].op == "Weight"}
        self.present.update((digest, names.values[i]) for i, digest in weights.items())
        for i in graph.live:
            node = graph.nodes[i]
            spelling = records.spellings.get(node.names[0]) if node.names and not node.opaque else None
            if spelling is None or not spelling.spells(node, [names.source(k) for k in node.inputs]):
                continue
            self.nodes[i] = spelling
            for weight in spelling.slots:
                if isinstance(weight, Weight):
                    self._reserve(weight)
        for digest in weights.values():
            shape = records.shapes.get(digest)
            if shape is not None and isinstance(graph.weights[digest].load, Uniform):
                self._reserve(shape)

    def _reserve(self, weight: Weight) -> None:
        """Name a constant that will be written beside the graph's weights, as in the source where that is possible."""
        if weight.digest not in self.present:
            name = self.names.reserve(weight.name)
            self.present[weight.digest] = name
            self.reserved[name] = weight
