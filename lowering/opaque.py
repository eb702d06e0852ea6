"""Opaque operators computed one at a time by ONNX Runtime, so that the evaluator can get past them."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, helper

from ..egraph.graph import Graph, Node, TupleType
from .evaluation import NotEvaluable
from .onnx_tensor import UNKNOWN, OnnxSource, dtype_code, numpy_dtype


class OpaqueRunner:
    """Calls the opaque operators of one graph: `runner(index, operands)` gives the list of the node's results.

    Floating-point operands are rounded to the types that the graph has. Raises `NotEvaluable` for operators that are
    random, read values from inside bodies, or have no kernel in ONNX Runtime.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.sessions: dict[int, Any] = {}

    def __call__(self, index: int, operands: list[np.ndarray | None]) -> list[np.ndarray]:
        node = self.graph.nodes[index]
        try:
            if index not in self.sessions:
                self.sessions[index] = self._session(node)
            kinds = [self.graph.nodes[k].type for k in node.inputs]
            feeds = {}
            for k, (array, kind) in enumerate(zip(operands, kinds, strict=True)):
                if array is not None:
                    assert not isinstance(kind, TupleType)
                    feeds[f"x{k}"] = np.asarray(array).astype(numpy_dtype(kind.dtype), copy=False)
            return list(self.sessions[index].run(None, feeds))
        except NotEvaluable:
            raise
        except Exception as error:
            raise NotEvaluable(f"operator {node.op.removeprefix('::')}: {error}") from error

    def _session(self, node: Node) -> Any:
        import onnxruntime as ort

        attrs = node.attrs
        if not isinstance(self.graph.source, OnnxSource) or attrs["captures"] or "unique" in attrs:
            raise NotEvaluable(f"operator {node.op.removeprefix('::')} has no reference implementation")
        proto = NodeProto.FromString(self.graph.opaques[str(attrs["proto"])])
        outputs = node.type.items if isinstance(node.type, TupleType) else (node.type,)
        inputs = []
        for k, index in enumerate(node.inputs):
            kind = self.graph.nodes[index].type
            given = not isinstance(kind, TupleType) and kind.dtype != "absent"
            proto.input.append(f"x{k}" if given else "")
            if given:
                assert not isinstance(kind, TupleType)
                inputs.append(helper.make_tensor_value_info(f"x{k}", self._code(kind.dtype, node), None))
        proto.output.extend(f"y{k}" for k in range(len(outputs)))
        infos = [helper.make_tensor_value_info(f"y{k}", self._code(t.dtype, node), None) for k, t in enumerate(outputs)]
        model = ModelProto(ir_version=self.graph.source.skeleton.ir_version)
        model.opset_import.extend(self.graph.source.skeleton.opset_import)
        model.functions.extend(self.graph.source.skeleton.functions)
        model.graph.CopyFrom(helper.make_graph([proto], "operator", inputs, infos))
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4
        return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    @staticmethod
    def _code(dtype: str, node: Node) -> int:
        if dtype == UNKNOWN:
            raise NotEvaluable(f"operator {node.op.removeprefix('::')} has operands or results of unknown type")
        return dtype_code(dtype)
