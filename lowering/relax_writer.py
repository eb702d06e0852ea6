"""Graphs written back as bindings of a Relax dataflow block."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..egraph.graph import Graph, Node, TensorType, Weight
from .onnx_forms import NotWritable
from .plain_session import first_line
from .relax_forms import WRITTEN
from .relax_source import RelaxSource, Value
from .tvm_module import tvm


class NotInRelax(NotWritable):
    """A graph that cannot be written as Relax."""


def write_region(graph: Graph, module: Any, params: Sequence[Any]) -> list[Any]:
    """The bindings that compute a graph whose source is a `RelaxSource`: those that the region was read from, where it
    says nothing else, and for what was read after it the same variables.

    module: whose functions opaque expressions call. params: of the function that the bindings are for. Raises
    `NotInRelax`.
    """
    tvm()
    from tvm import relax

    builder = relax.BlockBuilder(module)
    builder.begin_scope(params)  # so that it knows the extents as such, which are not negative
    try:
        return _Writer(graph, builder).bindings()
    except NotInRelax:
        raise
    except Exception as error:  # TVM's are of many types
        raise NotInRelax(first_line(error)) from error
    finally:
        builder.end_scope()


class _Writer:
    def __init__(self, graph: Graph, builder: Any) -> None:
        if not isinstance(graph.source, RelaxSource):
            raise NotInRelax("this graph was not read from Relax")
        self.graph, self.source, self.builder = graph, graph.source, builder
        self.made: list[Any] = []
        self.values: dict[int, Any] = {}
        self.readers: dict[int, set[int]] = {}
        """The nodes that read each node."""
        for i in graph.live:
            for k in graph.nodes[i].inputs:
                self.readers.setdefault(k, set()).add(i)

    def bindings(self) -> list[Any]:
        targets = self._targets()
        bound = set()
        for i in self.graph.live:
            node = self.graph.nodes[i]
            if self._part_of_reader(i):
                continue
            var = targets.get(i)
            self.values[i] = self._bound(node, self._expression(i, node), var)
            if var is not None and self.values[i] is var:
                bound.add(var)
        for var, value in self.source.outputs:
            if var not in bound:
                self._emit(var, self._whole(value))
        return self.made

    def _targets(self) -> dict[int, Any]:
        """Nodes that a variable which is read later holds by itself: they bind it."""
        from tvm import relax

        found: dict[int, Any] = {}
        for var, value in self.source.outputs:
            if isinstance(value, int):
                i = self.graph.outputs[value]
                node = self.graph.nodes[i]
                made = self.source.constants.get(str(node.attrs["digest"])) if node.op == "Weight" else None
                if node.op not in ("Input", "Weight") or isinstance(made, relax.Call):
                    found.setdefault(i, var)
        return found

    def _whole(self, value: Value) -> Any:
        from tvm import relax

        if isinstance(value, int):
            return self.values[self.graph.outputs[value]]
        assert isinstance(value, tuple)  # as the reader leaves them
        return relax.Tuple([self._whole(v) for v in value])

    def _part_of_reader(self, i: int) -> bool:
        """Whether a node is written by all that read it: roots by reciprocals, new axes by stacks."""
        node, readers = self.graph.nodes[i], self.readers.get(i)
        if node.op not in ("Sqrt", "Reshape") or not readers or i in self.graph.outputs:
            return False
        if node.op == "Sqrt":
            return all(self.graph.nodes[k].op == "Reciprocal" for k in readers)
        return all(map(self._stack, readers))

    def _stack(self, i: int) -> bool:
        """Whether a node is a concatenation that the region writes as a stack, of tensors that get a new axis."""
        node = self.graph.nodes[i]
        if node.op != "Concat" or "".join(node.names[:1]) not in self.source.stacks:
            return False
        axis, told = node.attrs["axis"], self.source.stacks[node.names[0]] or 0
        rank = len(node.type.shape or ()) if isinstance(node.type, TensorType) else 0
        if rank == 0 or told % rank != axis:
            return False
        for k in node.inputs:
            part = self.graph.nodes[k]
            known = self.graph.nodes[part.inputs[0]].type if part.op == "Reshape" else None
            shape = part.type.shape if isinstance(part.type, TensorType) else None
            if shape is None or not isinstance(known, TensorType) or known.shape is None:
                return False
            if (*known.shape[:axis], 1, *known.shape[axis:]) != shape:
                return False
        return True

    def _bound(self, node: Node, expr: Any, var: Any) -> Any:
        """A variable bound to an expression; leaves need none."""
        from tvm import relax

        if node.op in ("Input", "Weight") and not isinstance(expr, (relax.TupleGetItem, relax.Call)):
            return expr
        return self._emit(var, expr, node.names[0] if node.names else f"lv{len(self.made)}")

    def _emit(self, var: Any, expr: Any, name: str = "") -> Any:
        """Bind `var`, or a new variable; parts of an expression that are calls get variables of their own first."""
        from tvm import relax

        value = self._flat(expr)
        if var is None:
            var = relax.DataflowVar(name.replace(":", "_"), value.ty)
        self.made.append(relax.VarBinding(var, value))
        return var

    def _flat(self, expr: Any) -> Any:
        """An expression whose arguments are variables and constants, with its type."""
        from tvm import relax

        def leaf(e: Any) -> Any:
            if isinstance(e, (relax.Call, relax.TupleGetItem)):
                return self._emit(None, e, f"lv{len(self.made)}")
            return relax.Tuple([leaf(f) for f in e.fields]) if isinstance(e, relax.Tuple) else e

        if isinstance(expr, relax.Call):
            expr = relax.Call(expr.op, [leaf(a) for a in expr.args], expr.attrs, expr.ty_args, expr.span)
        elif isinstance(expr, relax.Tuple):
            expr = leaf(expr)
        elif isinstance(expr, relax.TupleGetItem) and isinstance(expr.tuple_value, relax.Call):
            expr = relax.TupleGetItem(leaf(expr.tuple_value), expr.index)
        return self.builder.normalize(expr)

    def _expression(self, i: int, node: Node) -> Any:
        from tvm import relax

        if node.op == "Input":
            return self.source.leaves[str(node.attrs["name"])]
        if node.op == "Weight":
            digest = str(node.attrs["digest"])
            known = self.source.constants.get(digest)
            return constant(self.graph.weights[digest]) if known is None else known
        if node.op == "Get":
            return relax.TupleGetItem(self.values[node.inputs[0]], int(node.attrs["index"]))
        if node.op == "Reciprocal" and node.inputs[0] not in self.values:
            return relax.op.rsqrt(self.values[self.graph.nodes[node.inputs[0]].inputs[0]])
        if self._stack(i):
            parts = [self.values[self.graph.nodes[k].inputs[0]] for k in node.inputs]
            return relax.op.stack(parts, self.source.stacks[node.names[0]])
        operands = [self.values[k] for k in node.inputs]
        if node.opaque:
            if str(node.attrs["proto"]) not in self.source.opaques:
                raise NotInRelax(f"Relax has no {node.op.removeprefix('::')}")
            return self.source.opaques[str(node.attrs["proto"])](operands)
        types = [self.graph.nodes[k].type for k in node.inputs]
        known = self.source.spelled(node.op, node.attributes, types, "".join(node.names[:1]))
        if known is not None:
            return known(operands)
        if node.op not in WRITTEN:
            raise NotInRelax(f"Relax has no {node.op}")
        tensors = [t for t in types if isinstance(t, TensorType)]
        return WRITTEN[node.op](relax.op, node, operands, tensors, self.source.extents)


def constant(weight: Weight) -> Any:
    """A weight as a Relax constant."""
    from tvm import relax

    array = np.asarray(weight.load(), order="C")  # `ascontiguousarray` gives scalars an axis
    if weight.type.dtype == "bfloat16" and array.dtype != np.dtype("V2"):
        import ml_dtypes

        array = array.view(ml_dtypes.bfloat16) if array.dtype == np.uint16 else array.astype(ml_dtypes.bfloat16)
    return relax.const(array, weight.type.dtype)
