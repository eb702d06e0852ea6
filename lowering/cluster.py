"""Several e-nodes that a compiler makes one kernel of, as a model of their own: what the `fusion` cost times."""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..egraph.graph import Attributes, GraphBuilder, TensorType, TupleType, Type, Weight
from ..egraph.operators import core
from ..egraph.space import SearchSpace
from .single import NotSingle, alone, constant_array, kernel_of, known_type, small_weight
from .spread import SENSITIVE, Spread, spread_of

if TYPE_CHECKING:
    import onnx

    from .relax_program import RelaxModel


@dataclass(frozen=True)
class Step:
    """One operator of a cluster. operands: numbers of the cluster's inputs, or ~j for the result of its j-th step."""

    op: str
    attributes: Attributes
    operands: tuple[int, ...]
    output: Type


@dataclass(frozen=True)
class Cluster:
    """Operators that run as one kernel, the last of which gives its result.

    inputs: types of what is read from outside, symbolic extents replaced by 1. constant: which of them are constants.
    values: digests of small constants that opaque operators read, else None. numbers: what constants of one element
    are, as far as that can be told: `erf` takes four times as long for large arguments as for small ones. spreads: of
    what size the other constants' numbers are, where such an operator is in the kernel and that can be told.
    """

    steps: tuple[Step, ...]
    inputs: tuple[TensorType, ...]
    constant: tuple[bool, ...]
    values: tuple[str | None, ...]
    numbers: tuple[float | None, ...]
    spreads: tuple[Spread | None, ...]

    @property
    def key(self) -> str:
        """Stable hash of all of it (32 hex digits)."""
        steps = [
            (s.op, tuple((k, v) for k, v in s.attributes if k != "unique"), s.operands, str(s.output))
            for s in self.steps
        ]
        numbers = ["" if n is None else f"{n:.2g}" for n in self.numbers]
        spreads = [str(s or "") for s in self.spreads]
        text = f"4|{steps}|{','.join(map(str, self.inputs))}|{self.constant}|{self.values}|{numbers}|{spreads}"
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    @property
    def constant_bytes(self) -> float:
        """Bytes of the constants that it reads."""
        return sum(t.bytes for t, c in zip(self.inputs, self.constant, strict=True) if c)

    @property
    def label(self) -> str:
        """Its operators, for people."""
        return "+".join(s.op for s in self.steps)


def cluster_of(space: SearchSpace, enodes: Sequence[int]) -> Cluster:
    """The cluster of these e-nodes, operands first; parts of a tuple that is computed elsewhere are inputs.

    Raises `NotSingle` when shapes are not known well enough.
    """
    place: dict[int, int] = {}
    steps: list[Step] = []
    inputs: list[TensorType] = []
    constant: list[bool] = []
    values: list[str | None] = []
    numbers: list[float | None] = []
    spreads: list[Spread | None] = []
    sensitive = any(space.ops[i] in SENSITIVE for i in enodes)

    def outside(c: int, opaque: bool) -> int:
        kind = space.types[c]
        if isinstance(kind, TupleType):
            raise NotSingle("a tuple is read")
        weight = small_weight(space, c) if opaque else None
        place[c] = len(inputs)
        inputs.append(kind if kind.dtype == "absent" else known_type(kind, "a kernel"))
        constant.append(bool(space.const[c]))
        values.append(None if weight is None else weight.digest)
        numbers.append(None if opaque else number_of(space, c))
        spreads.append(spread_of(space, c) if sensitive and not opaque and numbers[-1] is None else None)
        return place[c]

    for i in enodes:
        own = int(space.node_class[i])
        if space.ops[i] == "Get" and space.child_lists[i][0] not in place:
            outside(own, False)
            continue
        opaque = not core(space.ops[i])
        operands = tuple(place[c] if c in place else outside(c, opaque) for c in space.child_lists[i])
        place[own] = ~len(steps)
        if space.ops[i] == "Get":
            output = space.node_type(i)
        else:
            output = kernel_of(space, i).output
        steps.append(Step(space.ops[i], space.attributes[i], operands, output))
    if not steps:
        raise NotSingle("nothing is computed")
    return Cluster(tuple(steps), tuple(inputs), tuple(constant), tuple(values), tuple(numbers), tuple(spreads))


_ARITHMETIC: dict[str, Callable[..., float]] = {
    "Add": lambda x, y: x + y, "Sub": lambda x, y: x - y, "Mul": lambda x, y: x * y, "Div": lambda x, y: x / y,
    "Neg": lambda x: -x, "Reciprocal": lambda x: 1.0 / x, "Sqrt": math.sqrt, "Reshape": lambda x: x,
    "Expand": lambda x: x, "Transpose": lambda x: x,
}  # fmt: skip


def number_of(space: SearchSpace, c: int, depth: int = 8) -> float | None:
    """What a constant floating-point class of one element is; None for others and where it cannot be told."""
    kind = space.types[c]
    single = isinstance(kind, TensorType) and kind.dtype in ("float16", "float32", "float64") and kind.elements == 1
    if not single or not space.const[c] or depth == 0:
        return None
    weight = small_weight(space, c)
    if weight is not None:
        return float(np.asarray(weight.value).reshape(-1)[0])
    for i in space.nodes_of(c):
        made = _ARITHMETIC.get(space.ops[i])
        operands = [number_of(space, k, depth - 1) for k in space.child_lists[i]] if made else [None]
        if made is not None and None not in operands:
            with contextlib.suppress(ArithmeticError, ValueError):
                return made(*operands)
    return None


def cluster_model(cluster: Cluster, space: SearchSpace, seed: int = 0, copies: int = 1) -> onnx.ModelProto | RelaxModel:
    """The cluster as a model of its own (`single.alone`).

    Constants are initializers with random content (small ones of opaque operators keep theirs); all else is an input.
    copies: how often it is there, each time with constants of its own, so that running it once reads as much memory.
    Raises `NotSingle` where no content is known to be valid.
    """
    rng = np.random.default_rng(seed)
    g = GraphBuilder()
    inputs = {
        k: g.absent() if kind.dtype == "absent" else g.input(f"x{k}", kind)
        for k, kind in enumerate(cluster.inputs)
        if not cluster.constant[k] or kind.dtype == "absent"
    }
    for step in cluster.steps:
        if not core(step.op):
            digest = str(dict(step.attributes)["proto"])
            g.opaques[digest] = space.graph.opaques[digest]
    outputs: dict[str, int] = {}
    for copy in range(copies):
        made: list[int] = []
        operands = {**inputs, **_constants(cluster, space, g, rng, copy)}
        for step in cluster.steps:
            read = [operands[o] if o >= 0 else made[~o] for o in step.operands]
            made.append(g.add(step.op, read, step.attributes, step.output))
        output = cluster.steps[-1].output
        if isinstance(output, TupleType):
            outputs |= {f"y{copy}_{k}": g.get(made[-1], k) for k in range(len(output.items))}
        else:
            outputs[f"y{copy}"] = made[-1]
    return alone(g, outputs, space)


def _constants(
    cluster: Cluster, space: SearchSpace, g: GraphBuilder, rng: np.random.Generator, copy: int
) -> dict[int, int]:
    """Weights for the constants among the inputs, by their numbers."""
    out: dict[int, int] = {}
    for k, kind in enumerate(cluster.inputs):
        digest = cluster.values[k]
        if digest is not None:
            out[k] = g.weight(space.graph.weights[digest])
        elif cluster.numbers[k] is not None:
            shape = tuple(d for d in kind.shape or () if isinstance(d, int))
            out[k] = g.weight(Weight.of(np.full(shape, cluster.numbers[k], kind.dtype), f"w{copy}_{k}"))
        elif cluster.constant[k] and kind.dtype != "absent":
            reader = next(s.op for s in cluster.steps if k in s.operands)
            content = constant_array(rng, kind, reader, cluster.spreads[k])
            out[k] = g.weight(Weight.of(content, f"w{copy}_{k}"))
    return out
