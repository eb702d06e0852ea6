"""Core operators in the form that each opset gives them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import numpy as np

from ..egraph.dimension import Atom, Dimension, Least, Polynomial, Quotient
from ..egraph.graph import Graph, Node, TensorType
from ..egraph.operators import BINARY, UNARY
from ..errors import UserError
from .onnx_operators import reshape_target
from .onnx_tensor import numpy_dtype

_SINCE = {"Erf": 9, "LayerNormalization": 17}


def available(op: str, opset: int) -> bool:
    """Whether the writer can express a core operator in this opset (7 or later)."""
    return opset >= _SINCE.get(op, 7)


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

    def constant(self, value: Sequence[int] | np.ndarray, hint: str) -> str:
        """Name of an initializer with this content; lists are int64."""

    def free(self, wanted: str, generated: str) -> str:
        """A new name: `wanted`, or one made from `generated`."""


Form = Callable[[Writer, Node, list[str], list[str]], None]


def _plain(w: Writer, node: Node, inputs: list[str], outputs: list[str]) -> None:
    if not available(node.op, w.opset):
        raise NotWritable(f"{node.op} needs opset {_SINCE[node.op]}, the model has {w.opset}")
    w.emit(node.op, inputs, outputs, **node.attrs)


def _gemm(w: Writer, node: Node, inputs: list[str], outputs: list[str]) -> None:
    a = node.attrs
    defaults = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0}
    attrs = {k: type(d)(a[k]) for k, d in defaults.items() if a[k] != d}
    if len(inputs) == 2 and w.opset < 11:
        inputs = [*inputs, w.constant(np.zeros(1, numpy_dtype(tensor(node.type).dtype)), "zero")]
    w.emit("Gemm", inputs, outputs, **attrs)


def _conv(w: Writer, node: Node, inputs: list[str], outputs: list[str]) -> None:
    kernel = tensor(w.graph.nodes[node.inputs[1]].type).shape or ()
    w.emit("Conv", inputs, outputs, kernel_shape=kernel[2:], **node.attrs)


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


def _reduce_mean(w: Writer, node: Node, inputs: list[str], outputs: list[str]) -> None:
    axes, keep = node.attrs["axes"], node.attrs["keepdims"]
    if not axes:
        w.emit("Identity", inputs, outputs)
    elif w.opset < 18:
        w.emit("ReduceMean", inputs, outputs, axes=axes, keepdims=keep)
    else:
        w.emit("ReduceMean", [*inputs, w.constant(axes, "axes")], outputs, keepdims=keep)


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
    **dict.fromkeys((*UNARY, *BINARY), _plain),
    **dict.fromkeys(("MatMul", "BatchNormalization", "GlobalAveragePool", "LayerNormalization", "Concat"), _plain),
    "Gemm": _gemm,
    "Conv": _conv,
    "MaxPool": _pool,
    "AveragePool": _pool,
    "Softmax": _softmax,
    "ReduceMean": _reduce_mean,
    "Split": _split,
    "Slice": _slice,
    "Transpose": _transpose,
    "Reshape": _reshape,
}
