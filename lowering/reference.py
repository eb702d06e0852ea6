"""The reference computation of a graph, and what it knows about a difference: errors, ties, noise, random values.

Core operators run in float64 (`evaluation`), opaque ones one at a time in ONNX Runtime (`opaque`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from onnx import NodeProto

from ..egraph.graph import UNKNOWN, Graph, TensorType, Weight
from .comparison import OWN_ERROR_FACTOR, TOLERANCES, Failed
from .evaluation import NotEvaluable, evaluate
from .opaque import OpaqueRunner

RUNS = 8
"""Noisy runs that an integer's tie is looked for in."""

HEAVY = 1e9
"""Bytes of weights beyond which a model is not computed in float64: memory would be several times as much."""

_STEPS = (
    "Round", "Floor", "Ceil", "Sign", "Quantize", "ArgMax", "ArgMin", "TopK", "NonMaxSuppression", "Equal", "Greater",
    "Less", "Where", "Compress", "NonZero", "Unique", "If", "Loop", "Scan", "Cast", "Integer", "Linear", "BitCast",
    "Hardmax",
)  # fmt: skip
"""In the names of operators that can turn a small change into a large one."""

_UNCHANGED = ("Reshape", "::Reshape", "Cast", "::Cast", "::Squeeze", "::Unsqueeze", "::Identity", "::Flatten")


@dataclass
class Tape:
    """The values that random operators gave in one run, to be given again in a run of another graph."""

    names: dict[str, tuple[list[Any], list[np.ndarray]]] = field(default_factory=dict)
    kinds: dict[tuple[str, int], tuple[list[Any], list[np.ndarray]]] = field(default_factory=dict)


class Reference:
    """Computes a graph's outputs, in the graph's order. `reason` says why it cannot, once it could not."""

    def __init__(self, graph: Graph, custom_ops: Sequence[str] = ()) -> None:
        self.graph = graph
        self.runner = OpaqueRunner(graph, custom_ops)
        self.reason = "its weights are too large to be widened" if graph.weight_bytes > HEAVY else ""
        self.outputs = list(graph.output_names)
        self.inputs = list(graph.input_names)
        self.dtypes = [t.dtype if isinstance(t := graph.nodes[i].type, TensorType) else UNKNOWN for i in graph.outputs]
        self.record: Tape | None = None
        self.replay: Tape | None = None

    @cached_property
    def steps(self) -> bool:
        """Whether some operator can turn a small change into a large one."""
        return any(part in self.graph.nodes[i].op for i in self.graph.operators for part in _STEPS)

    def run(self, inputs: Mapping[str, np.ndarray], graph: Graph | None = None) -> list[np.ndarray]:
        """The outputs, floating-point ones in float64. Raises `NotEvaluable`."""
        if self.reason:
            raise NotEvaluable(self.reason)
        if any(not isinstance(v, np.ndarray) for v in inputs.values()):
            raise NotEvaluable("inputs that are no tensors")
        self.count: dict[str, int] = {}
        with np.errstate(all="ignore"):
            found = evaluate(graph or self.graph, inputs, opaque=self._opaque)
        if len(found) != len((graph or self.graph).outputs):
            raise NotEvaluable("outputs that are no tensors")
        return found

    def _opaque(self, index: int, operands: list[np.ndarray | None]) -> list[np.ndarray]:
        node = self.graph.nodes[index]
        if (self.record is None and self.replay is None) or not self.runner.random(node):
            return self.runner(index, operands)
        digest = str(node.attrs["proto"])
        number = self.count[digest] = self.count.get(digest, 0) + 1
        name = next((n for n in node.names if n), "")
        if self.replay is not None:
            known = self.replay.names.get(name) or self.replay.kinds.get((digest, number))
            if known is None:
                raise Failed(f"the random operator {name or node.op!r} is not in the original")
            if len(known[0]) != len(operands) or not all(map(_alike, known[0], operands)):
                raise Failed(f"the random operator {name or node.op!r} has other operands than in the original")
            return known[1]
        results = self.runner.run(index, operands)
        assert self.record is not None
        self.record.kinds[digest, number] = (operands, results)
        if name:
            self.record.names[name] = (operands, results)
        return results

    def noisy(
        self,
        inputs: Mapping[str, Any],
        rng: np.random.Generator,
        size: float = 1.0,
        only: Collection[str] | None = None,
    ) -> list[np.ndarray]:
        """The outputs when floating-point inputs and weights carry an error of up to `size` roundings.

        only: then only the weights of these digests do, single numbers the whole of it: few draws say little of few.
        Else those do that meet inputs: what constants alone make, positions say, no input changes.
        """
        chosen = _met(self.graph) if only is None else only
        weights = {
            d: replace(w, load=_Disturbed(w, int(rng.integers(1 << 62)), size, only is not None))
            for d, w in _weights(self.graph)
            if d in chosen
        }
        graph = replace(self.graph, weights={**self.graph.weights, **weights})
        return self.run({k: disturbed(v, rng, size) for k, v in inputs.items()} if only is None else inputs, graph)

    def rounding(
        self, mine: list[np.ndarray], other: Reference, found: list[np.ndarray], inputs: Mapping[str, Any],
        rng: np.random.Generator, runs: int,
    ) -> list[list[np.ndarray]]:  # fmt: skip
        """For each output, how far one rounding of constants may part this graph's results `mine` from the `found` of
        an optimised one: `runs` samples of the sum of both graphs' errors.

        Constants that were computed are rounded in the optimised graph. A number that was recognised as another one
        (GELU's, say), as far as its narrow type could tell, was rounded in the original.
        """
        new = {d for d, _ in _weights(other.graph)} - {d for d, _ in _weights(self.graph)}
        given_up = _numbers(self.graph) - _numbers(other.graph)
        errors: list[list[np.ndarray]] = [[] for _ in mine]
        for _ in range(runs):
            after = other.noisy(inputs, rng, only=new)
            before = self.noisy(inputs, rng, only=given_up) if given_up else mine
            for j, samples in enumerate(errors):
                if after[j].dtype.kind == "f" and after[j].shape == found[j].shape == mine[j].shape:
                    samples.append((after[j] - found[j]) + (before[j] - mine[j]))
        return errors

    def tied(self, j: int, inputs: Mapping[str, Any], a: np.ndarray, b: np.ndarray) -> np.ndarray | None:
        """Where output j, the indices that ArgMax, ArgMin or TopK found, may as well be b as a."""
        graph, index = self.graph, self.graph.outputs[j]
        while graph.nodes[index].op in _UNCHANGED:
            index = graph.nodes[index].inputs[0]
        node = graph.nodes[index]
        if node.op == "Get" and node.attrs["index"] == 1:
            index = node.inputs[0]
            node = graph.nodes[index]
        op = node.op.removeprefix("::")
        kind = graph.nodes[index].type
        if op not in ("ArgMax", "ArgMin", "TopK") or (op == "TopK" and isinstance(kind, TensorType)):
            return None
        attrs = {x.name: x.i for x in NodeProto.FromString(graph.opaques[str(node.attrs["proto"])]).attribute}
        of = replace(graph, outputs=(node.inputs[0],), output_names=("values",))
        try:
            (values,) = self.run(inputs, of)
        except (NotEvaluable, KeyError, MemoryError):
            return None
        axis = attrs.get("axis", 0 if op != "TopK" else -1) % max(1, values.ndim)
        shape = [*values.shape[:axis], a.size * values.shape[axis] // max(1, values.size), *values.shape[axis + 1 :]]
        try:
            one, two = (
                np.take_along_axis(values, x.reshape(shape).astype(np.int64) % values.shape[axis], axis) for x in (a, b)
            )
        except (ValueError, IndexError, ZeroDivisionError):
            return None
        if op == "TopK" and any(len(set(row)) < len(row) for row in np.moveaxis(b.reshape(shape), axis, -1).reshape(
            -1, shape[axis]
        )):  # fmt: skip
            return None
        source = graph.nodes[node.inputs[0]].type
        dtype = source.dtype if isinstance(source, TensorType) else "float32"
        if dtype not in TOLERANCES:
            return np.asarray(one == two).reshape(a.shape)
        relative, absolute = TOLERANCES[dtype]
        scale = float(np.abs(values).max(initial=0.0, where=np.isfinite(values)))
        close = np.abs(one - two) <= relative * np.abs(one) + absolute * scale
        return np.asarray(close | (one == two)).reshape(a.shape)


def _met(graph: Graph) -> set[str]:
    """The weights, by digest, that meet inputs or random values, also after operators on constants alone, so long as
    these give floating-point numbers: an index that constants make is the same whatever the inputs."""
    nodes, varying, read = graph.nodes, set[int](), set[int]()
    for i in graph.live:
        if nodes[i].op == "Input" or "unique" in nodes[i].attrs or not varying.isdisjoint(nodes[i].inputs):
            varying.add(i)
    for i in reversed(graph.live):
        kind = nodes[i].type
        if i in varying or (i in read and isinstance(kind, TensorType) and kind.dtype in _EPS):
            read.update(nodes[i].inputs)
    return {str(nodes[i].attrs["digest"]) for i in read if nodes[i].op == "Weight"}


def _numbers(graph: Graph) -> Counter[str]:
    """How often each weight of a single number is read, by digest; powers of two are as they were meant."""
    nodes = graph.nodes
    single = {
        d for d, w in _weights(graph) if set(w.type.shape or ()) <= {1} and math.frexp(abs(w.load().item()))[0] != 0.5
    }
    read = (nodes[k] for i in graph.live for k in nodes[i].inputs)
    return Counter(d for n in read if n.op == "Weight" and (d := str(n.attrs["digest"])) in single)


@dataclass(frozen=True)
class _Disturbed:
    """Loads a weight with an error of up to `size` roundings of its type on each element; whole: on a single number
    just that, either way."""

    weight: Weight
    seed: int
    size: float
    whole: bool

    def __call__(self) -> np.ndarray:
        array, rng = np.asarray(self.weight.load()), np.random.default_rng(self.seed)
        return np.asarray(disturbed(array, rng, self.size, self.whole and array.size == 1))


_EPS = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
_LARGEST = {
    "float64": (2 - 2.0**-52) * 2.0**1023, "float32": (2 - 2.0**-23) * 2.0**127,
    "float16": (2 - 2.0**-10) * 2.0**15, "bfloat16": (2 - 2.0**-7) * 2.0**127,
}  # fmt: skip


def _weights(graph: Graph) -> list[tuple[str, Weight]]:
    # an exponent of 2.01 instead of 2 would make negative bases NaN
    exponents = {n.inputs[1] for n in graph.nodes if n.op in ("Pow", "::Pow")}
    weights = (i for i in graph.live if graph.nodes[i].op == "Weight" and i not in exponents)
    live = dict.fromkeys(str(graph.nodes[i].attrs["digest"]) for i in weights)
    return [(d, graph.weights[d]) for d in live if graph.weights[d].type.dtype in _EPS]


def disturbed(array: Any, rng: np.random.Generator, size: float = 1.0, whole: bool = False) -> Any:
    """A floating-point array, its elements wrong by up to `size` roundings (`whole`: by just that, either way), as
    float64 or of its own type if that shows; anything else as it is."""
    dtype = str(getattr(array, "dtype", ""))
    if dtype not in _EPS:
        return array
    noise, values = rng.uniform(-1, 1, array.shape), array.astype(np.float64)
    noise = (np.sign(noise) if whole else noise) * _EPS[dtype] * size
    # masks are filled with the type's lowest number: with an error it would be infinite, and all results NaN
    limit = np.where(np.isfinite(values), _LARGEST[dtype], np.inf)
    with np.errstate(over="ignore"):
        return np.asarray(np.clip(values * (1 + noise), -limit, limit))


def _alike(a: np.ndarray | None, b: np.ndarray | None) -> bool:
    """Whether the operands of a random operator are the same up to rounding."""
    if a is None or b is None:
        return a is b
    if a.shape != b.shape:
        return False
    if a.dtype.kind not in "fV":
        return bool(np.array_equal(a, b))
    a, b = a.astype(np.float64), b.astype(np.float64)
    scale = float(np.abs(a).max(initial=0.0, where=np.isfinite(a)))
    return bool(np.allclose(a, b, rtol=1e-4, atol=1e-5 * scale * OWN_ERROR_FACTOR, equal_nan=True))
