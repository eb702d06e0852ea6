"""Quantised parts of a graph: found and counted. Rules do not reach into them.

Quantised operators are opaque, so no rule and no folding changes them: integer weights stay integers, and what lies
between a DequantizeLinear and a QuantizeLinear stays where a runtime looks for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..egraph.graph import LEAVES, Graph, TensorType

_QUANTISED = frozenset((
    "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "ConvInteger",
    # com.microsoft
    "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM", "MatMulNBits", "MatMulBnb4",
    "MatMulFpQ4", "GatherBlockQuantized", "QGemm", "QAttention", "QMoE", "QEmbedLayerNormalization", "MulInteger",
    "ReduceSumInteger",
))  # fmt: skip
_PREFIXES = ("QLinear", "QOrdered")
_DOMAINS = ("", "com.microsoft")

_ENTRY, _EXIT = "DequantizeLinear", "QuantizeLinear"


@dataclass(frozen=True)
class Quantised:
    """How much of a graph is quantised.

    regions: connected groups of quantised operators. operators: how many operators they hold, those between a
    DequantizeLinear and a QuantizeLinear included. share: of all operators. weight_bytes: of the weights that quantised
    operators read. weight_share: of the bytes of all weights.
    """

    regions: int
    operators: int
    share: float
    weight_bytes: float
    weight_share: float

    def __str__(self) -> str:
        return (
            f"quantised: {self.operators} operators ({self.share:.0%}) in {self.regions} regions "
            f"and {self.weight_bytes / 1e6:.2f} MB of weights ({self.weight_share:.0%}); kept as they are"
        )

    @property
    def record(self) -> Mapping[str, float]:
        """For a run's record."""
        return {
            "regions": self.regions, "operators": self.operators, "share": self.share,
            "weight_bytes": self.weight_bytes, "weight_share": self.weight_share,
        }  # fmt: skip


def is_quantised(op: str) -> bool:
    """Whether the operator of a node (`Node.op`) computes with quantised numbers, or from or to them."""
    domain, _, name = op.rpartition("::")
    return "::" in op and domain in _DOMAINS and (name in _QUANTISED or name.startswith(_PREFIXES))


def quantised(graph: Graph) -> Quantised | None:
    """What of the graph is quantised; None if nothing is."""
    nodes, live = graph.nodes, graph.live
    core = {i for i in live if is_quantised(nodes[i].op)}
    if not core:
        return None
    members = core | _between(graph)
    parent = {i: i for i in members}

    def find(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    weights: dict[int, None] = {}
    for i in sorted(members):
        for k in nodes[i].inputs:
            while nodes[k].op == "Get":
                k = nodes[k].inputs[0]
            if k in members:
                parent[find(i)] = find(k)
            elif nodes[k].op == "Weight":
                weights.setdefault(k)
    held = sum(_bytes(graph, k) for k in weights)
    total = sum(_bytes(graph, i) for i in live if nodes[i].op == "Weight")
    return Quantised(
        len({find(i) for i in members}),
        len(members),
        len(members) / max(1, len(graph.operators)),
        held,
        held / total if total else 0.0,
    )


def _between(graph: Graph) -> set[int]:
    """Operators that read only what DequantizeLinear gives, constants and each other, and that only such read on.

    These are what runtimes fuse with the operators around them into one that computes with integers.
    """
    nodes = graph.nodes

    def kind(i: int) -> str:
        return nodes[i].op.rpartition("::")[2] if is_quantised(nodes[i].op) else ""

    users: dict[int, list[int]] = {}
    for i in graph.live:
        for k in nodes[i].inputs:
            users.setdefault(k, []).append(i)
    outputs = set(graph.outputs)
    inside: set[int] = set()
    for i in graph.live:
        if nodes[i].op in LEAVES or is_quantised(nodes[i].op):
            continue
        given = [k for k in nodes[i].inputs if nodes[k].op not in ("Weight", "Absent")]
        if given and all(k in inside or kind(k) == _ENTRY for k in given):
            inside.add(i)
    stack = sorted(inside)
    while stack:
        i = stack.pop()
        if i not in inside:
            continue
        read = users.get(i, [])
        fine = i not in outputs and read and all(j in inside or kind(j) == _EXIT for j in read)
        if not fine or not all(
            k in inside or kind(k) == _ENTRY or nodes[k].op == "Weight" or nodes[k].op == "Absent"
            for k in nodes[i].inputs
        ):
            inside.discard(i)
            stack.extend(k for k in (*nodes[i].inputs, *read) if k in inside)
    return {i for i in inside if nodes[i].op != "Get"}


def _bytes(graph: Graph, i: int) -> float:
    kind = graph.nodes[i].type
    assert isinstance(kind, TensorType)
    return kind.bytes
