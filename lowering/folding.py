"""Constant expressions stored as weights: small ones computed at once, large ones when their weight is loaded."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any, TypeAlias

import numpy as np
import torch

from ..egraph.graph import Attributes, Graph, GraphBuilder, Node, TensorType, Type, Weight
from ..egraph.operators import core
from .evaluation import NotEvaluable, evaluate_node, to_torch
from .onnx_tensor import Uniform, numpy_dtype, uniform_weight
from .steps import STEPS, decided, rounds

GROWTH = 4
"""A constant expression stays as it is if its result has more than this many times its operands' elements."""
NEGLIGIBLE = 1024
"""Results of at most this many elements are always folded."""
LATE = 1 << 16
"""Results of at least this many bytes are computed when they are loaded, not before."""

MOVEMENT = ("Concat", "Split", "Slice", "Transpose", "Reshape")
"""Operators that only move elements: nothing is rounded, so nothing needs to be widened."""

_FLOATS = ("float64", "float32", "float16", "bfloat16")
_MOVABLE = (*_FLOATS, "int64", "int32", "int16", "int8", "uint8", "bool")

Array: TypeAlias = np.ndarray | tuple[np.ndarray, ...]


def fold_constants(graph: Graph) -> Graph:
    """Replace every maximal expression of core operators over weights by one weight; drop what no output needs.

    Floating-point expressions are computed in float64 and rounded once, to the type of the result. Kept: opaque
    operators, steps that rounding might decide otherwise (`steps`), and those whose result is large (more than
    `NEGLIGIBLE` elements) and more than `GROWTH` times as large as their operands together, such as an outer sum;
    their operands are still folded. Weights of `LATE` bytes and more are handles: loading one computes it from its
    operands, which are then loaded, too.
    """
    return _Folding(graph).run()


@dataclass(frozen=True, eq=False)
class Term:
    """A constant operator over weights and other terms.

    digest: of the expression, not of its value. value: the unrounded result, if it was computed. exact: whether
    computing it in its own type would round nothing.
    """

    op: str
    attributes: Attributes
    operands: tuple[Term | Weight, ...]
    type: Type
    digest: str
    value: Array | None = None
    exact: bool = False

    @classmethod
    def of(cls, node: Node, operands: tuple[Term | Weight, ...]) -> Term:
        text = f"{node.op}|{node.attributes}|{[x.digest for x in operands]}|{node.type}"
        return cls(
            node.op, node.attributes, operands, node.type, hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
        )


@dataclass(frozen=True, eq=False)
class Folded:
    """Loads a weight by computing its expression."""

    term: Term
    dtype: str

    def __call__(self) -> np.ndarray:
        return rounded(compute(self.term), self.dtype)


def compute(root: Term | Weight) -> Array:
    """The value of an expression, unrounded; each weight is loaded once and nothing is held longer than needed."""
    order: list[Term | Weight] = []
    seen: set[int] = set()
    stack: list[tuple[Term | Weight, bool]] = [(root, False)]
    uses: dict[int, int] = {}
    while stack:
        x, ready = stack.pop()
        if ready:
            order.append(x)
        elif id(x) not in seen:
            seen.add(id(x))
            stack.append((x, True))
            for k in x.operands if isinstance(x, Term) and x.value is None else ():
                uses[id(k)] = uses.get(id(k), 0) + 1
                stack.append((k, False))
    values: dict[int, Array] = {}
    for x in order:
        if isinstance(x, Weight):
            values[id(x)] = x.load()
        elif x.value is not None:
            values[id(x)] = x.value
        else:
            values[id(x)] = _apply(x.op, dict(x.attributes), [values[id(k)] for k in x.operands])
            for k in x.operands:
                uses[id(k)] -= 1
                if not uses[id(k)]:
                    del values[id(k)]
    return values[id(root)]


def rounded(value: Array, dtype: str) -> np.ndarray:
    """The value in the type of the result."""
    assert isinstance(value, np.ndarray)
    with np.errstate(over="ignore", invalid="ignore"):
        return value.astype(numpy_dtype(dtype), copy=False)


def _apply(op: str, attrs: dict[str, Any], operands: Sequence[Array]) -> Array:
    if op == "Get":
        return operands[0][attrs["index"]]
    arrays = [x for x in operands if isinstance(x, np.ndarray)]
    kinds = {str(a.dtype) for a in arrays}
    if op in MOVEMENT and len(kinds) == 1 and kinds <= set(_MOVABLE):
        return _move(op, attrs, arrays)
    with np.errstate(invalid="ignore"):  # weights may be NaN
        tensors = [to_torch(a.astype(np.float64) if str(a.dtype) in _FLOATS else a) for a in arrays]
    del arrays
    with torch.no_grad():
        result = evaluate_node(op, attrs, tensors)
    return tuple(t.numpy() for t in result) if isinstance(result, tuple) else result.numpy()


def _move(op: str, attrs: dict[str, Any], arrays: list[np.ndarray]) -> Array:
    """Views wherever possible: what lies in a file is not read before it is needed."""
    x = arrays[0]
    try:
        if op == "Concat":
            return np.concatenate(arrays, attrs["axis"])
        if op == "Transpose":
            return x.transpose(attrs["perm"])
        if op == "Reshape":
            return x.reshape(attrs["shape"])
        if op == "Split":
            return tuple(np.split(x, np.cumsum(attrs["sizes"])[:-1], attrs["axis"]))
        cut = [slice(None)] * x.ndim
        for axis, start, end in zip(attrs["axes"], attrs["starts"], attrs["ends"], strict=True):
            cut[axis] = slice(start, end)
        return x[tuple(cut)]
    except (ValueError, TypeError, IndexError) as error:
        raise NotEvaluable(f"{op} of {x.dtype}{list(x.shape)}: {error}") from error


class _Folding:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.terms: dict[int, Term | Weight] = {}
        """What each constant node stands for."""
        self.labels: dict[int, tuple[str, ...]] = {}
        """Names of the weights below each constant node."""
        self.made: dict[int, int] = {}
        self.builder = GraphBuilder()

    def run(self) -> Graph:
        graph, nodes, builder = self.graph, self.graph.nodes, self.builder
        builder.opaques, builder.input_names = dict(graph.opaques), list(graph.input_names)
        for i, node in enumerate(nodes):
            if node.op == "Input":  # unused ones stay
                self.made[i] = builder.add(node.op, (), node.attributes, node.type, node.names)
        for i in graph.live:
            node = nodes[i]
            if node.op == "Weight":
                weight = graph.weights[str(node.attrs["digest"])]
                self.terms[i] = weight
                self.labels[i] = (weight.name,) if weight.name else ()
            elif node.op != "Input" and not self._folded(i, node):
                operands = [self._operand(k) for k in node.inputs]
                self.made[i] = builder.add(node.op, operands, node.attributes, node.type, node.names)
        outputs = {name: self._operand(i) for name, i in zip(graph.output_names, graph.outputs, strict=True)}
        return builder.build(outputs, graph.source)

    def _folded(self, i: int, node: Node) -> bool:
        """Make node i a term if all it reads is constant and the result is not too large."""
        if not core(node.op) or not all(k in self.terms for k in node.inputs) or self._grows(node):
            return False
        if not node.type.concrete:
            return False  # spread over a symbolic extent
        operands = tuple(self.terms[k] for k in node.inputs)
        try:
            self.terms[i] = _uniform(node, operands) or self._term(node, operands)
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

    def _term(self, node: Node, operands: tuple[Term | Weight, ...]) -> Term:
        term = Term.of(node, operands)
        if node.type.bytes >= LATE and _can_wait(node, operands):
            return term
        value = compute(term)
        if isinstance(value, np.ndarray) and value.base is not None:
            value = value.copy()  # not a view, which would keep all that it is a part of
        exact = all(isinstance(x, Weight) or x.exact for x in operands)
        if not exact and node.op in STEPS and not _decided(node, operands):
            raise NotEvaluable(f"{node.op} of numbers that rounding may take over its step")
        dtype = getattr(node.type, "dtype", "")
        if "float" in dtype:
            exact = exact and not rounds(node.op, dtype, value)
        return replace(term, value=value, exact=exact or (node.op in STEPS and "float" not in dtype))

    def _operand(self, k: int) -> int:
        """Index of node k in the new graph; a constant that is read from outside becomes a weight."""
        if k not in self.made:
            node, term = self.graph.nodes[k], self.terms[k]
            name = node.names[0] if node.names else "+".join(self.labels[k])[:80]
            if isinstance(term, Weight):
                weight = term if node.op == "Weight" else replace(term, name=name)
            elif isinstance(node.type, TensorType):
                dtype = node.type.dtype
                if term.value is not None:
                    weight = Weight.of(rounded(term.value, dtype), name, dtype)
                else:
                    weight = Weight(name, node.type, term.digest, Folded(term, dtype))
            else:  # a Split of constants read by an operator that stays: it stays too
                operands = [self._operand(j) for j in node.inputs]
                self.made[k] = self.builder.add(node.op, operands, node.attributes, node.type, node.names)
                return self.made[k]
            self.made[k] = self.builder.weight(weight)
        return self.made[k]


def _decided(node: Node, operands: tuple[Term | Weight, ...]) -> bool:
    """Whether rounding cannot change what a step makes of its operands."""
    dtype, to = operands[0].type.dtype if isinstance(operands[0].type, TensorType) else "", node.attrs.get("to", "")
    if "float" not in dtype or "float" in str(to):
        return True
    arrays = [np.asarray(compute(x)) for x in operands]
    return decided(node.op, lambda moved: np.asarray(_apply(node.op, node.attrs, moved)), arrays, dtype)


def _uniform(node: Node, operands: tuple[Term | Weight, ...]) -> Weight | None:
    """A tensor all of whose elements are equal is one after it was moved, too."""
    if node.op not in ("Reshape", "Transpose", "Slice") or not isinstance(node.type, TensorType):
        return None
    x = operands[0]
    if not isinstance(x, Weight) or not isinstance(x.load, Uniform) or not node.type.concrete:
        return None
    shape = tuple(d for d in node.type.shape or () if isinstance(d, int))
    return uniform_weight(x.load.value, shape, x.name)


def _can_wait(node: Node, operands: tuple[Term | Weight, ...]) -> bool:
    """Whether it is certain without computing it that a node can be computed."""
    if node.op == "Get":
        return True
    kinds = [x.type for x in operands]
    tensors = [t for t in kinds if isinstance(t, TensorType) and t.concrete]
    dtypes = {t.dtype for t in tensors}
    if len(tensors) < len(operands) or not dtypes:
        return False
    if node.op in MOVEMENT and len(dtypes) == 1:
        if node.op == "Reshape" and isinstance(node.type, TensorType):
            return node.type.concrete and prod(node.type.shape or ()) == tensors[0].elements and dtypes <= set(_MOVABLE)
        return dtypes <= set(_MOVABLE)
    if not dtypes <= set(_FLOATS) or (node.op in STEPS and "float" not in getattr(node.type, "dtype", "")):
        return False  # integers may be divided by 0, say, and a step may be undecided
    try:
        evaluate_node(node.op, dict(node.attributes), [_outline(t) for t in tensors])
    except NotEvaluable:
        return False
    return True


def _outline(kind: TensorType) -> torch.Tensor:
    """A tensor without data: it goes through an operator as the real one would."""
    return torch.empty([d for d in kind.shape or () if isinstance(d, int)], dtype=torch.float64, device="meta")
