"""How TVM sees an operator when it fuses: the primitive functions that it becomes, each with its pattern kind.

TVM's `FuseOps` knows of a function only its *pattern kind*, which it derives from how the function indexes its
operands. The kinds and names here are those that apache-tvm 0.27 gives to ONNX models after `LegalizeOps`,
`AnnotateTIROpPattern` and `FoldConstant`; `tests/test_fusion.py` asks TVM itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import Any, NamedTuple

from ..egraph.graph import Attributes, TensorType, Type
from ..egraph.pointwise import ELEMENTWISE


class Kind(IntEnum):
    """Pattern kinds, numbered as TVM numbers them: the larger, the less can be fused."""

    ELEMENTWISE = 0
    BROADCAST = 1
    INJECTIVE = 2
    REDUCTION = 3
    FUSABLE = 4
    """Reads its operands in a way of its own, but element-wise functions can follow it in one kernel: a product."""
    OPAQUE = 8


class Primitive(NamedTuple):
    """One primitive function.

    names: TVM's names of it; several for a chain of element-wise ones that nothing can come between.
    kind: pattern kind. reads: for each operand, its number among the operator's operands, or ~j for the result of the
    operator's j-th primitive.
    """

    names: tuple[str, ...]
    kind: Kind
    reads: tuple[int, ...]


_FUNCTIONS = {
    "Relu": "relu", "Sigmoid": "tir_sigmoid", "Tanh": "tir_tanh", "Erf": "erf", "Sqrt": "tir_sqrt", "Exp": "tir_exp",
    "Neg": "tir_negative", "Abs": "tir_abs", "Reciprocal": "divide", "Sin": "tir_sin", "Cos": "tir_cos",
    "Log": "tir_log", "Floor": "tir_floor", "Ceil": "tir_ceil", "Sign": "tir_sign", "LeakyRelu": "leaky_relu",
    "Cast": "cast", "Not": "tir_logical_not", "IsNaN": "tir_isnan", "Add": "add", "Sub": "subtract", "Mul": "multiply",
    "Div": "divide", "Pow": "power", "Equal": "equal", "Greater": "greater", "GreaterOrEqual": "greater_equal",
    "Less": "less", "LessOrEqual": "less_equal", "And": "logical_and", "Or": "logical_or", "Where": "where",
}  # fmt: skip

_CHAINS = {
    "Softplus": ("maximum", "tir_abs", "tir_negative", "tir_exp", "add", "tir_log", "add"),
    "HardSwish": ("add", "tir_clip", "divide", "multiply"),
    "HardSigmoid": ("multiply", "add", "tir_clip"),
    "Elu": ("tir_exp", "subtract", "relu", "multiply", "relu", "add"),
    "Swish": ("tir_sigmoid", "multiply"),
}

_WHOLE: dict[str, tuple[str, Kind]] = {
    "MatMul": ("matmul", Kind.FUSABLE), "MaxPool": ("max_pool2d", Kind.FUSABLE),
    "AveragePool": ("avg_pool2d", Kind.FUSABLE), "GlobalAveragePool": ("mean", Kind.FUSABLE),
    "Softmax": ("softmax", Kind.FUSABLE), "LayerNormalization": ("layer_norm", Kind.FUSABLE),
    "RMSNormalization": ("rms_norm", Kind.FUSABLE), "ReduceMean": ("mean", Kind.FUSABLE),
    "ReduceSum": ("sum", Kind.REDUCTION), "ReduceMax": ("max", Kind.REDUCTION), "ReduceMin": ("min", Kind.REDUCTION),
    "Concat": ("concatenate", Kind.INJECTIVE), "Split": ("split", Kind.INJECTIVE), "Get": ("", Kind.INJECTIVE),
    "Slice": ("strided_slice", Kind.INJECTIVE), "Transpose": ("transpose", Kind.INJECTIVE),
    "Reshape": ("reshape", Kind.INJECTIVE), "Pad": ("pad", Kind.INJECTIVE),
    "BatchNormalization": ("batch_norm", Kind.INJECTIVE), "::Squeeze": ("squeeze", Kind.INJECTIVE),
    "::Unsqueeze": ("expand_dims", Kind.INJECTIVE), "::Flatten": ("reshape", Kind.INJECTIVE),
    "::Identity": ("", Kind.INJECTIVE), "::LogSoftmax": ("log_softmax", Kind.FUSABLE),
}  # fmt: skip
"""Operators that become one function; of `Get` and `Identity` nothing is left."""


def primitives(
    op: str, attrs: Attributes | dict[str, Any], inputs: Sequence[Type], constant: Sequence[bool], output: Type
) -> tuple[Primitive, ...]:
    """The primitive functions of an operator in an order in which they can run; the last one gives its result.

    inputs, output: types. constant: which operands are constants; what is computed of those alone is folded.
    An operator of which nothing is known is one opaque function.
    """
    known: dict[str, Any] = dict(attrs)
    every = tuple(range(len(inputs)))
    if op in ("Min", "Max"):
        return _stacked(op, inputs, constant, output)
    if op in _CHAINS:
        return (Primitive(_CHAINS[op], Kind.ELEMENTWISE, every),)
    if op == "Gelu":
        return (Primitive(("gelu_tanh" if known["approximate"] == "tanh" else "gelu",), Kind.ELEMENTWISE, every),)
    if op == "Clip":
        bounds = (known["min"] > float("-inf")) * ("maximum",) + (known["max"] < float("inf")) * ("minimum",)
        return (Primitive(bounds, Kind.ELEMENTWISE, every),)
    if op in ELEMENTWISE:
        return (Primitive((_FUNCTIONS[op],), _pointwise(inputs, output), every),)
    if op == "Expand":
        return (Primitive(("broadcast_to",), _pointwise(inputs, output), every),)
    if op == "Conv":
        product = Primitive((f"conv{_rank(inputs[1]) - 2}d",), Kind.FUSABLE, (0, 1))
        return (product, Primitive(("add",), Kind.ELEMENTWISE, (~0, 2))) if len(inputs) > 2 else (product,)
    if op == "Gemm":
        return _gemm(known, inputs, constant)
    if op == "Gather":
        return _gather(constant)
    if op in _WHOLE:
        name, kind = _WHOLE[op]
        return (Primitive((name,) if name else (), kind, every),)
    return (Primitive((op,), Kind.OPAQUE, every),)


def _rank(t: Type) -> int:
    return len(t.shape) if isinstance(t, TensorType) and t.shape is not None else 4


def _pointwise(inputs: Sequence[Type], output: Type) -> Kind:
    """Element-wise if an operand has the result's extents, else broadcasting."""
    same = any(isinstance(t, TensorType) and t.shape == getattr(output, "shape", None) for t in inputs)
    return Kind.ELEMENTWISE if same else Kind.BROADCAST


def _stacked(op: str, inputs: Sequence[Type], constant: Sequence[bool], output: Type) -> tuple[Primitive, ...]:
    """ONNX's Min and Max have any number of operands: they are stacked, and the stack is reduced."""
    out: list[Primitive] = []
    stack: list[int] = []
    for k, (t, c) in enumerate(zip(inputs, constant, strict=True)):
        stack.append(k)
        if not c:
            out.append(Primitive(("broadcast_to",), _pointwise([t], output), (k,)))
            stack[-1] = ~(len(out) - 1)
    out.append(Primitive(("stack",), Kind.BROADCAST, tuple(stack)))
    out.append(Primitive((op.lower(),), Kind.REDUCTION, (~(len(out) - 1),)))
    return tuple(out)


def _gemm(attrs: dict[str, Any], inputs: Sequence[Type], constant: Sequence[bool]) -> tuple[Primitive, ...]:
    out: list[Primitive] = []

    def apply(name: str, kind: Kind, *reads: int) -> int:
        out.append(Primitive((name,), kind, reads))
        return ~(len(out) - 1)

    a, b, c = 0, 1, 2
    if attrs.get("alpha", 1.0) != 1.0 and not constant[0]:
        a = apply("multiply", Kind.ELEMENTWISE, a)
    if attrs.get("transA") and not constant[0]:
        a = apply("transpose", Kind.INJECTIVE, a)
    if attrs.get("transB") and not constant[1]:
        b = apply("transpose", Kind.INJECTIVE, b)
    last = apply("matmul", Kind.FUSABLE, a, b)
    if len(inputs) > 2:
        if attrs.get("beta", 1.0) != 1.0 and not constant[2]:
            c = apply("multiply", Kind.ELEMENTWISE, c)
        apply("add", Kind.ELEMENTWISE, last, c)
    return tuple(out)


def _gather(constant: Sequence[bool]) -> tuple[Primitive, ...]:
    """Negative indices are made positive first, unless they are known."""
    take = ("take",)
    if constant[1]:
        return (Primitive(take, Kind.OPAQUE, (0, 1)),)
    return (
        Primitive(("less", "add", "where"), Kind.ELEMENTWISE, (1,)),
        Primitive(take, Kind.OPAQUE, (0, ~0)),
    )


def free(names: Sequence[str]) -> bool:
    """Whether a kernel of these functions alone moves nothing: a view, or the part of a tuple."""
    return len(names) == 0 or tuple(names) in (("reshape",), ("squeeze",), ("expand_dims",))
