"""One e-node as a model of its own: what the `kernels` cost compiles and times."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..egraph.graph import SMALL, Attributes, GraphBuilder, TensorType, TupleType, Type, Weight
from ..egraph.operators import IllTyped, core, infer
from ..egraph.space import SearchSpace
from .onnx_tensor import OnnxSource

if TYPE_CHECKING:
    import onnx

    from .relax_program import RelaxModel
    from .spread import Spread


class NotSingle(ValueError):
    """The e-node cannot be a model of its own (an operand of unknown shape, say)."""


@dataclass(frozen=True)
class Kernel:
    """What decides the latency of one operator.

    inputs, output: types, symbolic extents replaced by 1.
    constant: for each operand whether it is a constant, since layouts and folding depend on it.
    values: for opaque operators the digests of small constants (axes, shapes), else None.
    """

    op: str
    attributes: Attributes
    inputs: tuple[TensorType, ...]
    constant: tuple[bool, ...]
    values: tuple[str | None, ...]
    output: Type

    @property
    def key(self) -> str:
        """Stable hash of all of it (32 hex digits)."""
        attrs = tuple((k, v) for k, v in self.attributes if k != "unique")
        types = ",".join(map(str, self.inputs))
        text = f"2|{self.op}|{attrs}|{types}|{self.constant}|{self.values}|{self.output}"
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def kernel_of(space: SearchSpace, i: int) -> Kernel:
    """The kernel of e-node i. Raises `NotSingle` when shapes are not known well enough."""
    op, attrs = space.ops[i], space.attributes[i]
    inputs, constant, values = [], [], []
    for c in space.child_lists[i]:
        kind = space.types[c]
        if isinstance(kind, TupleType):
            raise NotSingle(f"{op} reads a tuple")
        inputs.append(kind if kind.dtype == "absent" else known_type(kind, op))
        constant.append(bool(space.const[c]))
        weight = None if core(op) else small_weight(space, c)
        values.append(None if weight is None else weight.digest)
    output: Type
    if core(op):
        try:
            output = infer(op, attrs, inputs)
        except IllTyped as e:
            raise NotSingle(f"{op} does not fit once symbolic extents are 1: {e}") from None
    else:
        kind = space.node_type(i)
        if isinstance(kind, TupleType):
            output = TupleType(tuple(known_type(t, op) for t in kind.items))
        else:
            output = known_type(kind, op)
    return Kernel(op, attrs, tuple(inputs), tuple(constant), tuple(values), output)


def known_type(kind: TensorType, op: str) -> TensorType:
    """The type with 1 for each symbolic extent; raises `NotSingle` where the shape is unknown."""
    if kind.shape is None:
        raise NotSingle(f"{op}: a shape is unknown")
    return TensorType(tuple(d if isinstance(d, int) else 1 for d in kind.shape), kind.dtype)


def small_weight(space: SearchSpace, c: int) -> Weight | None:
    """The weight of a constant class, if it is one whose values are at hand."""
    for i in space.nodes_of(c) if space.const[c] else ():
        if space.ops[i] == "Weight":
            found = space.graph.weights.get(str(space.attrs(i)["digest"]))
            return found if found is not None and found.value is not None else None
    return None


def single_model(kernel: Kernel, space: SearchSpace, seed: int = 0) -> onnx.ModelProto | RelaxModel:
    """The kernel as a model of its own (`alone`).

    Constants are initializers with random content (small ones of opaque operators keep theirs: they may be axes);
    everything else is an input. Raises `NotSingle` where no content is known to be valid.
    """
    rng = np.random.default_rng(seed)
    g = GraphBuilder()
    operands = []
    for k, kind in enumerate(kernel.inputs):
        digest = kernel.values[k]
        if kind.dtype == "absent":
            operands.append(g.absent())
        elif digest is not None:
            operands.append(g.weight(space.graph.weights[digest]))
        elif kernel.constant[k]:
            operands.append(g.weight(Weight.of(constant_array(rng, kind, kernel.op), f"w{k}")))
        else:
            operands.append(g.input(f"x{k}", kind))
    if not core(kernel.op):
        digest = str(dict(kernel.attributes)["proto"])
        g.opaques[digest] = space.graph.opaques[digest]
    node = g.add(kernel.op, operands, kernel.attributes, kernel.output)
    if isinstance(kernel.output, TupleType):
        outputs = {f"y{k}": g.get(node, k) for k in range(len(kernel.output.items))}
    else:
        outputs = {"y": node}
    return alone(g, outputs, space)


def alone(kernel: GraphBuilder, outputs: dict[str, int], space: SearchSpace) -> onnx.ModelProto | RelaxModel:
    """A kernel of a space as a model of its own: in the opset of its graph, or a Relax module if it holds an opaque
    operator of Relax, which ONNX has not.

    Raises `ValueError` where it cannot be one.
    """
    from .onnx_writer import to_onnx
    from .relax_source import RelaxSource

    if kernel.opaques and isinstance(space.graph.source, RelaxSource):
        from .relax_program import of_region

        return of_region(kernel.build(outputs), space.graph, space.binding)
    return to_onnx(kernel.build(outputs, versions(space.graph.source)))


def constant_array(rng: np.random.Generator, kind: TensorType, op: str, spread: Spread | None = None) -> np.ndarray:
    """Content for a constant that operator `op` reads, of the size that the model's has if that is known.

    Raises `NotSingle` where none is known to be valid.
    """
    shape = tuple(d for d in kind.shape or () if isinstance(d, int))  # `known_type` left no other
    if kind.dtype in ("float16", "float32", "float64"):
        if spread is not None:
            return spread.draw(rng, shape).astype(kind.dtype)
        if op in ("Conv", "MatMul", "Gemm") and len(shape) >= 2:  # results of about the size of the other operand
            summed = np.prod(shape[1:]) if op == "Conv" else shape[-2]
            return (rng.standard_normal(shape) / np.sqrt(max(1, summed))).astype(kind.dtype)
        # Positive, so that a variance or a divisor is a sensible one; small, so that half precision does not overflow.
        return (0.05 + 0.1 * rng.random(shape)).astype(kind.dtype)
    if kind.dtype == "bool":
        return np.ones(shape, bool)
    size = int(np.prod(shape))
    if kind.dtype.startswith(("int", "uint")) and (core(op) or size > SMALL or op == "::Gather"):
        return np.zeros(shape, kind.dtype)
    raise NotSingle(f"{op}: no content is known to be valid for a constant {kind}")


def versions(source: Any) -> Any:
    """The source's opsets and functions, without its inputs, outputs and metadata."""
    if not isinstance(source, OnnxSource):
        return None
    skeleton = type(source.skeleton)()
    skeleton.ir_version = max(source.skeleton.ir_version, 4)
    skeleton.opset_import.extend(source.skeleton.opset_import)
    skeleton.functions.extend(source.skeleton.functions)
    skeleton.graph.name = "kernel"
    return OnnxSource(skeleton, {}, False, None)
