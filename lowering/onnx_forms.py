"""Core operators in the form that each opset gives them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from ..egraph.dimension import Atom, Dimension, Least, Polynomial, Quotient
from ..egraph.fused import CONTRIB
from ..egraph.graph import Graph, Node, TensorType
from ..egraph.operators import BINARY, COMPARISONS, LOGICAL, PLAIN, REDUCTIONS
from ..errors import UserError
from .onnx_movement import reshape_target
from .onnx_tensor import dtype_code, numpy_dtype

SINCE = {
    "Erf": 9, "LayerNormalization": 17, "RMSNormalization": 23, "Gelu": 20, "Swish": 24, "HardSwish": 14, "Sign": 9,
    "IsNaN": 9, "Where": 9, "Expand": 8, "GreaterOrEqual": 12, "LessOrEqual": 12, "Min": 8, "Max": 8, "Equal": 11,
    "Greater": 9, "Less": 9, "Attention": 23, "RotaryEmbedding": 23,
}  # fmt: skip
"""The first opset in which the writer can express a core operator for all element types; 7 for the others."""


UNTIL = {"Swish": 24}
"""The last opset for which ONNX Runtime, which verifies results, has kernels: rules make the operator in no later."""

RENAMED = {"RMSNormalization": "SimplifiedLayerNormalization", "Gelu": "Gelu", "Swish": "QuickGelu"}
"""Operators that ONNX Runtime has under these names in opsets where ONNX has them not yet."""

STEPS = ("Attention",)
"""Operators by which rules get to what ONNX Runtime has, even where they cannot be written themselves."""


def available(op: str, opset: int, contrib: bool = False) -> bool:
    """Whether the writer can express a core operator in this opset (7 or later).

    contrib: for a runtime that has ONNX Runtime's own operators.
    """
    if op in CONTRIB:
        return contrib
    return opset >= SINCE.get(op, 7) or (contrib and op in RENAMED)


TVM_LACKS = ("Attention", "RotaryEmbedding", "Swish")
"""Core operators of ONNX that TVM's importer does not take; the other ones that rules introduce it does."""


def meant_for(graph: Graph, kind: str) -> Graph:
    """The graph as one for a kind of target: rules may introduce what its runtime has, and nothing that it lacks."""
    source = graph.source
    if not hasattr(source, "contrib"):
        return graph
    lacking = TVM_LACKS if kind in ("llvm", "cuda") else ()
    return graph.with_source(replace(source, contrib=kind == "onnxruntime", lacking=lacking))


def reachable(op: str, opset: int, contrib: bool = False) -> bool:
    """Whether the operator may be in an e-graph: it can be written, or it leads to one that can."""
    runs = opset <= UNTIL.get(op, opset) or (contrib and op in RENAMED)
    return (runs and available(op, opset, contrib)) or (contrib and op in STEPS)


class NotWritable(UserError, ValueError):
    """The graph cannot be written in its model's opset, or without losing what the model says about training."""


def tensor(kind: object) -> TensorType:
    assert isinstance(kind, TensorType)
    return kind


class Writer(Protocol):
    """What a form needs of the writer."""

    opset: int
    graph: Graph
    computed: dict[str, str]
    """Values that were written beside the graph's own, by what computes them."""

    def emit(self, op: str, inputs: Iterable[str], outputs: Iterable[str], **attrs: Any) -> None:
        """Write a node."""

    def require(self, domain: str, version: int) -> None:
        """Let the model import a domain."""

    def constant(self, value: Sequence[int] | np.ndarray, hint: str) -> str:
        """Name of an initializer with this content; lists are int64."""

    def free(self, wanted: str, generated: str) -> str:
        """A new name: `wanted`, or one made from `generated`."""


Form = Callable[[Writer, Node, list[str], list[str]], None]


def _plain(w: Writer, node: Node, inputs: list[str], outputs: list[str]) -> None:
    _need(w, node)
    w.emit(node.op, inputs, outputs, **node.attrs)


def _need(w: Writer, node: Node) -> None:
    if not available(node.op, w.opset) and node.op not in _EARLIER:
        raise NotWritable(f"{node.op} needs opset {SINCE[node.op]}, the model has {w.opset}")


_EARLIER = ("Equal", "Greater", "Less", "Min", "Max")
"""Older forms of these serve some element types or shapes: whoever read one can write it."""


def _gelu(w: Writer, node: Node, inputs: list[str], outputs: list[str]) -> None:
    _need(w, node)
    approximate = node.attrs["approximate"]
    w.emit("Gelu", inputs, outputs, **({} if approximate == "none" else {"approximate": approximate}))


def _clip(w: Writer, node: Node, inputs: list[str], outputs: list[str]) -> None:
    limits, dtype = {k: node.attrs[k] for k in ("min", "max")}, tensor(node.type).dtype
    if w.opset < 11:
        if dtype not in ("float32", "float64", "float16"):
            raise NotWritable(f"Clip of {dtype} needs opset 12, the model has {w.opset}")
        w.emit("Clip", inputs, outputs, **{k: v for k, v in limits.items() if np.isfinite(v)})
        return
    names = [w.constant(np.array(v, numpy_dtype(dtype)), k) if np.isfinite(v) else "" for k, v in limits.items()]
    while names and not names[-1]:
        names.pop()
    w.emit("Clip", [*inputs, *names], outputs)


def _cast(w: Writer, node: Node, inputs: list[str], outputs: list[str]) -> None:
    w.emit("Cast", inputs, outputs, to=dtype_code(node.attrs["to"]))


def _expand(w: Writer, node: Node, inputs: list[str], outputs: list[str]) -> None:
    _need(w, node)
    before, after = tensor(w.graph.nodes[node.inputs[0]].type).shape or (), node.attrs["shape"]
    if all(isinstance(d, int) for d in after):
        w.emit("Expand", [*inputs, w.constant(after, "shape")], outputs)
        return
    late = len(after) - len(before)
    # Expand is a broadcast: 1 stands for an extent that stays as it is
    kept = [1 if i >= late and before[i - late] is d else d for i, d in enumerate(after)]
    if all(isinstance(d, int) for d in kept):
        w.emit("Expand", [*inputs, w.constant([d for d in kept if isinstance(d, int)], "shape")], outputs)
        return
    w.emit("Expand", [*inputs, _Extents(w, before, inputs[0]).vector(kept)], outputs)


def _pad(w: Writer, node: Node, inputs: list[str], outputs: list[str]) -> None:
    pads, value = node.attrs["pads"], node.attrs["value"]
    if w.opset < 11:
        w.emit("Pad", inputs, outputs, pads=pads, value=value)
        return
    names = [w.constant(pads, "pads")]
    if value:
        names.append(w.constant(np.array(value, numpy_dtype(tensor(node.type).dtype)), "value"))
    w.emit("Pad", [*inputs, *names], outputs)


def gemm_attributes(node: Node) -> dict[str, Any]:
    a = node.attrs
    defaults = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0}
    return {k: type(d)(a[k]) for k, d in defaults.items() if a[k] != d}


def _gemm(w: Writer, node: Node, inputs: list[str], outputs: list[str]) -> None:
    attrs = gemm_attributes(node)
    if len(inputs) == 2 and w.opset < 11:
        inputs = [*inputs, w.constant(np.zeros(1, numpy_dtype(tensor(node.type).dtype)), "zero")]
    w.emit("Gemm", inputs, outputs, **attrs)


def _conv(w: Writer, node: Node, inputs: list[str], outputs: list[str]) -> None:
    w.emit("Conv", inputs, outputs, **conv_attributes(w, node))


def conv_attributes(w: Writer, node: Node) -> dict[str, Any]:
    kernel = tensor(w.graph.nodes[node.inputs[1]].type).shape or ()
    return {"kernel_shape": kernel[2:], **node.attrs}


def _pool(w: Writer, node: Node, inputs: list[str], outputs: list[str]) -> None:
    a = node.attrs
    attrs: dict[str, Any] = {"kernel_shape": a["kernel"], "strides": a["strides"], "pads": a["pads"]}
    if a["ceil"]:
        attrs["ceil_mode"] = 1
        if w.opset < 10:
            raise NotWritable(f"{node.op} with ceil_mode needs opset 10, the model has {w.opset}")
    if any(d != 1 for d in a["dilations"]):
        attrs["dilations"] = a["dilations"]
        if w.opset < (10 if node.op == "MaxPool" else 19):
            raise NotWritable(f"{node.op} with dilations needs a newer opset than {w.opset}")
    if a.get("include_pad"):
        attrs["count_include_pad"] = 1
    w.emit(node.op, inputs, outputs, **attrs)


def _softmax(w: Writer, node: Node, inputs: list[str], outputs: list[str]) -> None:
    axis, shape = node.attrs["axis"], tensor(node.type).shape or ()
    if w.opset >= 13 or all(d == 1 for d in shape[axis + 1 :]):
        w.emit("Softmax", inputs, outputs, axis=axis)
        return
    # Up to opset 12 all axes from the given one on are normalised together, so the axis has to be the last one.
    last = len(shape) - 1
    perm = [*(i for i in range(last + 1) if i != axis), axis]
    before, after = w.free("", outputs[0] + "_before"), w.free("", outputs[0] + "_after")
    w.emit("Transpose", inputs, [before], perm=perm)
    w.emit("Softmax", [before], [after], axis=last)
    w.emit("Transpose", [after], outputs, perm=[perm.index(i) for i in range(last + 1)])


def _reduce(w: Writer, node: Node, inputs: list[str], outputs: list[str]) -> None:
    axes, keep = node.attrs["axes"], node.attrs["keepdims"]
    if not axes:
        w.emit("Identity", inputs, outputs)
    elif w.opset < (13 if node.op == "ReduceSum" else 18):
        w.emit(node.op, inputs, outputs, axes=axes, keepdims=keep)
    else:
        w.emit(node.op, [*inputs, w.constant(axes, "axes")], outputs, keepdims=keep)


def _split(w: Writer, node: Node, inputs: list[str], outputs: list[str]) -> None:
    axis, sizes = node.attrs["axis"], node.attrs["sizes"]
    if w.opset < 13:
        w.emit("Split", inputs, outputs, axis=axis, split=sizes)
    else:
        w.emit("Split", [*inputs, w.constant(sizes, "sizes")], outputs, axis=axis)


def _slice(w: Writer, node: Node, inputs: list[str], outputs: list[str]) -> None:
    a = node.attrs
    if not a["axes"]:
        w.emit("Identity", inputs, outputs)
    elif w.opset < 10:
        w.emit("Slice", inputs, outputs, axes=a["axes"], starts=a["starts"], ends=a["ends"])
    else:
        bounds = [w.constant(a[key], key) for key in ("starts", "ends", "axes")]
        w.emit("Slice", [*inputs, *bounds], outputs)


def _transpose(w: Writer, node: Node, inputs: list[str], outputs: list[str]) -> None:
    if node.attrs["perm"]:
        w.emit("Transpose", inputs, outputs, perm=node.attrs["perm"])
    else:
        w.emit("Identity", inputs, outputs)  # a scalar; an empty list is no valid attribute


def _reshape(w: Writer, node: Node, inputs: list[str], outputs: list[str]) -> None:
    before, after = tensor(w.graph.nodes[node.inputs[0]].type).shape or (), node.attrs["shape"]
    target = reshape_target(before, after)
    if target is not None:
        w.emit("Reshape", [*inputs, w.constant(target, "shape")], outputs)
        return
    extents = _Extents(w, before, inputs[0])
    w.emit("Reshape", [*inputs, extents.vector(after)], outputs)


class _Extents:
    """Writes the computation of symbolic extents from the shapes of the model's inputs, or of a given operand."""

    def __init__(self, w: Writer, shape: Sequence[Dimension], value: str) -> None:
        self.w = w
        self.sources: dict[str, tuple[str, int]] = {}
        for node in w.graph.nodes:
            if node.op == "Input" and isinstance(node.type, TensorType):
                self._tell(node.type.shape or (), str(node.attrs["name"]))
        self._tell(shape, value)

    def _tell(self, shape: Sequence[Dimension], value: str) -> None:
        for i, d in enumerate(shape):
            if isinstance(d, Polynomial) and d.name:
                self.sources.setdefault(d.name, (value, i))

    def vector(self, dims: Sequence[Dimension]) -> str:
        """Name of a value that holds these dimensions."""
        return self._emit("Concat", [self.extent(d) for d in dims], axis=0)

    def extent(self, d: Dimension) -> str:
        """Name of a value of shape [1] that holds this dimension."""
        if isinstance(d, int):
            return self.w.constant([d], "extent")
        total = ""
        for monomial, coefficient in d.terms:
            term = "" if coefficient == 1 and monomial else self.w.constant([coefficient], "extent")
            for atom, power in monomial:
                for _ in range(power):
                    factor = self._atom(atom)
                    term = factor if not term else self._emit("Mul", [term, factor])
            total = term if not total else self._emit("Add", [total, term])
        return total

    def _atom(self, atom: Atom) -> str:
        if isinstance(atom, Quotient):
            return self._emit("Div", [self.extent(atom.of), self.w.constant([atom.by], "extent")])
        if isinstance(atom, Least):
            if self.w.opset < 12:
                raise NotWritable(f"the minimum of two extents needs opset 12, the model has {self.w.opset}")
            return self._emit("Min", [self.extent(atom.of), self.w.constant([atom.bound], "extent")])
        if atom not in self.sources:
            raise NotWritable(f"no input tells the extent {atom}")
        value, axis = self.sources[atom]
        return self._emit("Gather", [self._emit("Shape", [value]), self.w.constant([axis], "axis")], axis=0)

    def _emit(self, op: str, inputs: list[str], **attrs: Any) -> str:
        key = f"{op} {inputs} {attrs}"  # what was written once is there for all later nodes
        if key not in self.w.computed:
            self.w.computed[key] = self.w.free("", f"extent_{op.lower()}")
            self.w.emit(op, inputs, [self.w.computed[key]], **attrs)
        return self.w.computed[key]


FORMS: dict[str, Form] = {
    **dict.fromkeys((*PLAIN, *BINARY, *COMPARISONS, *LOGICAL, "Not", "IsNaN", "Where"), _plain),
    **dict.fromkeys(("Swish", "LeakyRelu", "Elu", "HardSigmoid", "Gather", "Concat", "MatMul"), _plain),
    **dict.fromkeys(("BatchNormalization", "GlobalAveragePool", "LayerNormalization", "RMSNormalization"), _plain),
    **dict.fromkeys(REDUCTIONS, _reduce),
    "Gelu": _gelu,
    "Clip": _clip,
    "Cast": _cast,
    "Expand": _expand,
    "Pad": _pad,
    "Gemm": _gemm,
    "Conv": _conv,
    "MaxPool": _pool,
    "AveragePool": _pool,
    "Softmax": _softmax,
    "Split": _split,
    "Slice": _slice,
    "Transpose": _transpose,
    "Reshape": _reshape,
}
