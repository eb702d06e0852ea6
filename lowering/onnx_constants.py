"""Integer arithmetic on small constants, such as exporters emit to compute shapes."""

from __future__ import annotations

from math import prod

import numpy as np
from onnx import NodeProto, helper

from ..egraph.graph import SMALL, Weight

COMPUTED = frozenset((
    "Shape", "Size", "Gather", "Cast", "Concat", "Slice", "Unsqueeze", "Squeeze", "Reshape", "Add", "Sub", "Mul", "Div",
    "Mod", "Min", "Max", "Neg", "Abs", "Equal", "Less", "Greater", "Not", "And", "Or", "Where", "Expand", "Range",
    "ReduceProd", "ReduceSum", "ReduceMax", "ReduceMin", "NonZero", "Transpose", "Ceil", "Floor",
))  # fmt: skip
"""Operators that are computed while reading, where all operands are small integer or boolean constants."""

ROUNDED = frozenset(("Cast", "Add", "Sub", "Mul", "Div", "Ceil", "Floor"))
"""Of those, the ones that are computed for floating-point constants as well: IEEE leaves only one result."""


def small_result(node: NodeProto, opset: int, values: list[np.ndarray]) -> Weight | None:
    """The node's result on these operands by ONNX's reference implementation; None if it is large or fails."""
    from onnx.reference import ReferenceEvaluator

    if any(v.dtype.kind == "f" and v.dtype not in (np.float32, np.float64) for v in values):
        return None
    if node.op_type == "Div" and any(v.dtype.kind != "f" and (v < 0).any() for v in values):
        return None  # the reference implementation rounds down, ONNX towards zero
    if _large(node.op_type, values):
        return None
    scalar = node.op_type in ROUNDED and not any(v.ndim for v in values)
    if scalar:  # numpy makes of them what the reference implementation refuses
        values = [v.reshape(1) for v in values]
    names = [f"x{k}" for k in range(len(values))]
    copy = NodeProto()
    copy.CopyFrom(node)
    copy.input[:], copy.output[:] = names, ["y"]
    copy.domain = ""
    function = helper.make_function("", "f", names, ["y"], [copy], [helper.make_opsetid("", opset)])
    try:
        with np.errstate(all="raise"):
            result = ReferenceEvaluator(function).run(None, dict(zip(names, values, strict=True)), {})[0]
    except Exception:  # noqa: BLE001 (whatever the reason, the node then stays as it is)
        return None
    if not isinstance(result, np.ndarray) or result.size > SMALL or result.dtype.kind not in "iubf":
        return None
    return Weight.of(result.reshape(()) if scalar else result, node.output[0])


def _large(op: str, values: list[np.ndarray]) -> bool:
    """Whether a result would be large that small operands do not bound: a few bytes can ask for any amount."""
    if op == "Range" and len(values) == 3 and all(v.size == 1 for v in values):
        start, limit, delta = (v.reshape(-1)[0].item() for v in values)
        return delta == 0 or (limit - start) / delta > SMALL
    return op == "Expand" and prod(max(int(d), 1) for d in values[-1].reshape(-1)) > SMALL
