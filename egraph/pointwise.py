"""Type rules of the element-wise operators."""

from __future__ import annotations

from typing import Any

from .graph import TensorType, Type
from .registry import IllTyped, broadcast, same_dtype, shape_of, typed

PLAIN = (
    "Relu", "Sigmoid", "Tanh", "Erf", "Sqrt", "Exp", "Neg", "Abs", "Reciprocal", "Sin", "Cos", "Log", "Softplus",
    "Floor", "Ceil", "Sign", "HardSwish",
)  # fmt: skip
"""Functions of one operand, without attributes, that keep its element type."""

PARAMETRIC = ("Gelu", "Swish", "LeakyRelu", "Elu", "HardSigmoid", "Clip")
"""Functions of one operand, with attributes, that keep its element type."""

UNARY = (*PLAIN, *PARAMETRIC)
BINARY = ("Add", "Sub", "Mul", "Div", "Pow", "Min", "Max")
COMPARISONS = ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")
LOGICAL = ("And", "Or")
ELEMENTWISE = (*UNARY, *BINARY, *COMPARISONS, *LOGICAL, "Not", "IsNaN", "Cast", "Where")

FLOATS = ("float64", "float32", "float16", "bfloat16")
INTEGERS = ("int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8")


@typed(*UNARY)
def _unary(attrs: dict[str, Any], xs: list[TensorType]) -> Type:
    return xs[0]


@typed(*BINARY)
def _binary(attrs: dict[str, Any], xs: list[TensorType]) -> Type:
    if len(xs) != 2:
        raise IllTyped(f"an element-wise operator of {len(xs)} operands")
    return TensorType(broadcast(shape_of(xs[0]), shape_of(xs[1])), same_dtype("element-wise operator", *xs))


@typed(*COMPARISONS)
def _comparison(attrs: dict[str, Any], xs: list[TensorType]) -> Type:
    same_dtype("comparison", *xs)
    return TensorType(broadcast(shape_of(xs[0]), shape_of(xs[1])), "bool")


@typed(*LOGICAL, "Not")
def _logical(attrs: dict[str, Any], xs: list[TensorType]) -> Type:
    shape = shape_of(xs[0]) if len(xs) == 1 else broadcast(shape_of(xs[0]), shape_of(xs[1]))
    if same_dtype("logical operator", *xs) != "bool":
        raise IllTyped(f"logical operator of {xs[0]}")
    return TensorType(shape, "bool")


@typed("IsNaN")
def _is_nan(attrs: dict[str, Any], xs: list[TensorType]) -> Type:
    return TensorType(xs[0].shape, "bool")


@typed("Cast")
def _cast(attrs: dict[str, Any], xs: list[TensorType]) -> Type:
    known = (*FLOATS, *INTEGERS, "bool")
    if xs[0].dtype not in known or attrs["to"] not in known:
        raise IllTyped(f"Cast of {xs[0]} to {attrs['to']}")
    return TensorType(xs[0].shape, attrs["to"])


@typed("Where")
def _where(attrs: dict[str, Any], xs: list[TensorType]) -> Type:
    if len(xs) != 3 or xs[0].dtype != "bool":
        raise IllTyped(f"Where of {', '.join(map(str, xs))}")
    shape = broadcast(broadcast(shape_of(xs[0]), shape_of(xs[1])), shape_of(xs[2]))
    return TensorType(shape, same_dtype("Where", xs[1], xs[2]))
