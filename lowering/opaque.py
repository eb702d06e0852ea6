"""Opaque operators computed one at a time by ONNX Runtime, so that the evaluator can get past them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, ValueInfoProto, helper

from ..egraph.graph import UNKNOWN, Graph, Node, TensorType, TupleType, Type
from .evaluation import NotEvaluable
from .onnx_bodies import domain_of, subgraphs
from .onnx_tensor import OnnxSource, dtype_code, numpy_dtype
from .onnx_widening import widen

WIDENED = ("bfloat16", "float16")
"""Element types that are computed in float32, as long as the operator can be."""

_RANDOM = ("Random", "Multinomial", "Bernoulli", "Dropout", "Sampling")


class OpaqueRunner:
    """Calls the opaque operators of one graph: `runner(index, operands)` gives the list of the node's results.

    Floating-point operands are rounded to the types that the graph has, narrow ones to float32. custom_ops: shared
    libraries of operators. Raises `NotEvaluable` for operators that are random or have no kernel in ONNX Runtime.
    """

    def __init__(self, graph: Graph, custom_ops: Sequence[str] = ()) -> None:
        self.graph, self.custom_ops = graph, custom_ops
        self.sessions: dict[int, Any] = {}
        self.wide: dict[int, bool] = {}
        """How each node ran."""

    def __call__(self, index: int, operands: list[np.ndarray | None]) -> list[np.ndarray]:
        node = self.graph.nodes[index]
        if self.random(node):
            raise NotEvaluable(f"operator {node.op.removeprefix('::')} is random")
        return self.run(index, operands)

    def random(self, node: Node) -> bool:
        """Whether the node gives other results each time, as far as the names of its operators tell."""
        return "unique" in node.attrs and self.graph.source is not None and random_operators(self.graph, node)

    def run(self, index: int, operands: list[np.ndarray | None]) -> list[np.ndarray]:
        """The same, for random operators as well."""
        node = self.graph.nodes[index]
        label = node.op.removeprefix("::")
        first: Exception | None = None
        for wide in (self.wide[index],) if index in self.wide else (True, False):
            feeds = {}
            for k, (array, i) in enumerate(zip(operands, node.inputs, strict=True)):
                if array is not None:
                    kind = self._dtype(self.graph.nodes[i].type, array, wide)
                    feeds[_operand(node, k)] = np.asarray(array).astype(numpy_dtype(kind), copy=False)
            try:
                if index not in self.sessions:
                    self.sessions[index] = self._session(node, feeds, wide)
                made = iter(self.sessions[index].run(None, feeds))
                self.wide[index] = wide
                break
            except NotEvaluable:
                raise
            except Exception as error:
                self.sessions.pop(index, None)
                if not wide or index in self.wide or not self._narrow(node):
                    raise NotEvaluable(f"operator {label}: {first or error}") from error
                first = error
        missing = node.attrs.get("missing", ())
        results = [np.zeros(0, np.float32) if k in missing else next(made) for k in range(node.attrs["outputs"])]
        if not all(isinstance(r, np.ndarray) and r.dtype != object for r in results):
            raise NotEvaluable(f"operator {label}: its results are not all tensors of numbers")
        return results

    def _narrow(self, node: Node) -> bool:
        """Whether a node reads or gives a narrow type."""
        outputs = node.type.items if isinstance(node.type, TupleType) else (node.type,)
        kinds = [*outputs, *(self.graph.nodes[k].type for k in node.inputs)]
        return any(isinstance(t, TensorType) and t.dtype in WIDENED for t in kinds)

    def _dtype(self, kind: Type, array: np.ndarray, wide: bool) -> str:
        """The type that ONNX Runtime is given an operand in."""
        dtype = kind.dtype if isinstance(kind, TensorType) else UNKNOWN
        if dtype == UNKNOWN:
            dtype = "float32" if array.dtype == np.float64 else str(array.dtype)
        return "float32" if wide and dtype in WIDENED else dtype

    def _session(self, node: Node, feeds: dict[str, np.ndarray], wide: bool) -> Any:
        from .ort_session import runtime, session_options

        attrs, source = node.attrs, self.graph.source
        if not isinstance(source, OnnxSource):
            raise NotEvaluable(f"operator {node.op.removeprefix('::')} has no reference implementation")
        proto = NodeProto.FromString(self.graph.opaques[str(attrs["proto"])])
        outputs = node.type.items if isinstance(node.type, TupleType) else (node.type,)
        functions = [type(f).FromString(f.SerializeToString()) for f in source.skeleton.functions]
        if wide and self._narrow(node):
            for n in (proto, *(n for f in functions for n in f.node)):
                widen(n)
        regular = len(node.inputs) - len(attrs["captures"])
        proto.input.extend(_operand(node, k) if _operand(node, k) in feeds else "" for k in range(regular))
        inputs = [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), None)
            for name, array in feeds.items()
        ]
        proto.output.extend("" if k in attrs.get("missing", ()) else f"result:{k}" for k in range(len(outputs)))
        infos = []
        for name, kind in zip(proto.output, outputs, strict=True):
            if name and (kind.dtype == UNKNOWN or (wide and kind.dtype in WIDENED)):
                infos.append(ValueInfoProto(name=name))  # the runtime infers it
            elif name:
                infos.append(helper.make_tensor_value_info(name, dtype_code(kind.dtype), None))
        model = ModelProto(ir_version=source.skeleton.ir_version)
        model.opset_import.extend(source.skeleton.opset_import)
        model.functions.extend(functions)
        model.graph.CopyFrom(helper.make_graph([proto], "operator", inputs, infos))
        options = session_options(custom_ops=self.custom_ops)
        return runtime().InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _operand(node: Node, k: int) -> str:
    """Name of operand k in the model of one operator: bodies read their captures by their own names."""
    captures = node.attrs["captures"]
    regular = len(node.inputs) - len(captures)
    return f"operand:{k}" if k < regular else str(captures[k - regular])


def random_operators(graph: Graph, node: Node) -> bool:
    """Whether an opaque node, a body in it or a function that it calls holds an operator that is random by name."""
    source = graph.source
    functions = source.skeleton.functions if isinstance(source, OnnxSource) else ()
    bodies = {(domain_of(f.domain), f.name): f for f in functions}
    domain, _, op = node.op.rpartition("::")
    stack = [NodeProto.FromString(graph.opaques[str(node.attrs["proto"])])]
    stack[0].domain, stack[0].op_type = domain, op
    stack[0].input.extend("x" for _ in node.inputs)
    seen: set[tuple[str, str]] = set()
    while stack:
        n = stack.pop()
        key = (domain_of(n.domain), n.op_type)
        if key in bodies:
            if key not in seen:
                seen.add(key)
                stack.extend(bodies[key].node)
            continue
        if any(part in n.op_type for part in _RANDOM) and not _fixed(n):
            return True
        for body in subgraphs(n):
            stack.extend(body.node)
    return False


def _fixed(node: NodeProto) -> bool:
    """Dropout without its input `training_mode` does nothing."""
    return node.op_type == "Dropout" and len(node.input) < 3
