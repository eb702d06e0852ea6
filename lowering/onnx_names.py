"""The names that the values of a graph get when it is written: the source's where it has one, and no name twice."""

from __future__ import annotations

from collections.abc import Iterable

from onnx import NodeProto

from ..egraph.graph import Graph, TensorType, TupleType
from .onnx_bodies import names_within, subgraphs
from .onnx_tensor import OnnxSource


class Names:
    """Gives every live value its name: the source's where it has one, else one made from the operator.

    Names that values of the source bear, in bodies too, are given to nothing else.
    """

    def __init__(self, graph: Graph, opaque: Iterable[NodeProto]) -> None:
        self.graph = graph
        defaults = graph.source.defaults if isinstance(graph.source, OnnxSource) else ()
        self.taken = {*graph.input_names, *graph.output_names, *defaults}
        """Names of values that come from the source, and of constants beside them."""
        self.used = set(self.taken)
        for proto in opaque:
            for body in subgraphs(proto):
                self.used.update(names_within(body))
        self.values: dict[int, str] = {}
        self.origin: dict[str, str] = {}
        """The source's name of values that have another one now."""
        self.copies: list[tuple[int, str]] = []
        """Outputs that need an Identity: a value that has another name already."""
        self.parts: dict[tuple[int, int], int] = {}
        """The projections, by node and number of its output."""
        self._outputs()
        self._from_source()
        self.used |= self.taken
        self._generated()
        self.kept = set(self.taken)
        """Names that values have from the source."""

    def _outputs(self) -> None:
        for index, name in zip(self.graph.outputs, self.graph.output_names, strict=True):
            node = self.graph.nodes[index]
            if node.op == "Input":
                if node.attrs["name"] != name:
                    self.copies.append((index, name))
            elif (
                index in self.values
                or name in self.graph.input_names
                or (node.op == "Weight" and node.names != (name,))
            ):
                self.copies.append((index, name))
            else:
                self.values[index] = name

    def _from_source(self) -> None:
        for i in self.graph.live:
            node = self.graph.nodes[i]
            if node.op == "Input":
                self.values[i] = str(node.attrs["name"])
            elif node.op == "Absent":
                self.values[i] = ""
            elif node.op == "Get":
                self.parts[node.inputs[0], node.attrs["index"]] = i
            wanted = self.source(i)
            if i in self.values:
                self.origin[self.values[i]] = wanted or self.values[i]
            elif wanted and wanted not in self.taken and isinstance(node.type, TensorType):
                self.values[i] = wanted
                self.taken.add(wanted)

    def _generated(self) -> None:
        for i in self.graph.live:
            node = self.graph.nodes[i]
            if i not in self.values and isinstance(node.type, TensorType):
                wanted = self.source(i) if node.op == "Weight" else ""
                self.values[i] = self.free("", wanted or f"{_short(node.op)}_{i}")
                self.origin[self.values[i]] = node.names[0] if node.names else self.values[i]

    def source(self, i: int) -> str:
        """The name that the source gives a node's value, or ""."""
        names = self.graph.nodes[i].names
        return names[0] if names else ""

    def reserve(self, name: str) -> str:
        """A name for a constant beside the graph's weights: its own where nothing of the source bears it."""
        if name and name not in self.taken:
            self.kept.add(name)
        else:
            name = self.free("", name or "constant")
        self.taken.add(name)
        self.used.add(name)
        return name

    def free(self, wanted: str, generated: str) -> str:
        """`wanted`, or `generated` with a number if that is taken."""
        name = wanted or generated
        if name in self.used:
            name = generated
        base, k = name, 1
        while name in self.used:
            k += 1
            name = f"{base}_{k}"
        self.used.add(name)
        return name

    def outputs(self, i: int) -> list[str]:
        """Names of a node's outputs, made up for those that are no value of the graph."""
        node = self.graph.nodes[i]
        if not isinstance(node.type, TupleType):
            return [self.values[i]]
        names = []
        for k in range(len(node.type.items)):
            part = self.parts.get((i, k))
            if part is not None:
                names.append(self.values[part])
            elif k in node.attrs.get("missing", ()):
                names.append("")
            else:
                own = node.names[k] if k < len(node.names) else ""
                if own and own not in self.used:
                    self.kept.add(own)
                names.append(self.free(own, f"{_short(node.op)}_{i}_{k}"))
        return names

    def known_outputs(self, i: int) -> list[str]:
        """Names of those of a node's outputs that are values of the graph, "" for the others."""
        node = self.graph.nodes[i]
        if not isinstance(node.type, TupleType):
            return [self.values[i]]
        found = [self.parts.get((i, k)) for k in range(len(node.type.items))]
        return ["" if part is None else self.values[part] for part in found]


def _short(op: str) -> str:
    return op.rpartition("::")[2]
