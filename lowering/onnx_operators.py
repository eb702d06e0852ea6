"""ONNX operators in core form: for each, how its node of any opset becomes a core operator of `egraph.operators`.

Operator versions are those of https://onnx.ai/onnx/operators/; every converter knows opsets 7 to 24 and later ones
that changed element types only. Those that move elements are in `onnx_movement`, fused ones in `onnx_fused`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..egraph.operators import BINARY, COMPARISONS, FLOATS, LOGICAL, PLAIN, REDUCTIONS
from . import onnx_movement
from .onnx_sites import CONVERTERS, Core, NotCore, Site, convert, converts, number
from .onnx_tensor import dtype_name

__all__ = [
    "CONVERTERS", "Core", "NotCore", "Site", "conv_core", "convert", "converts", "gemm_core", "onnx_movement",
]  # fmt: skip

_EPSILON = float(np.float32(1e-5))


@converts(*PLAIN, *BINARY, *COMPARISONS, *LOGICAL, "Not", "Where", "MatMul", "GlobalAveragePool")
def _plain(s: Site) -> Core:
    return Core(s.op, tuple(range(len(s.types))), {})


@converts("IsNaN")
def _is_nan(s: Site) -> Core:
    _floating(s)
    return Core("IsNaN", (0,), {})


def _floating(s: Site) -> None:
    kind = s.types[0]
    if kind is None or kind.dtype not in FLOATS:
        raise NotCore(f"an operand of type {kind}")


@converts("Gelu", attrs="approximate")
def _gelu(s: Site) -> Core:
    approximate = s.attrs.get("approximate", "none")
    if approximate not in ("none", "tanh"):
        raise NotCore(f"approximate {approximate}")
    return Core("Gelu", (0,), {"approximate": approximate})


_SLOPES = {"Swish": 1.0, "LeakyRelu": float(np.float32(0.01)), "Elu": 1.0}


@converts(*_SLOPES, attrs="alpha")
def _sloped(s: Site) -> Core:
    return Core(s.op, (0,), {"alpha": float(s.attrs.get("alpha", _SLOPES[s.op]))})


@converts("HardSigmoid", attrs="alpha beta")
def _hard_sigmoid(s: Site) -> Core:
    attrs = {"alpha": float(s.attrs.get("alpha", np.float32(0.2))), "beta": float(s.attrs.get("beta", 0.5))}
    return Core("HardSigmoid", (0,), attrs)


@converts("Clip", attrs="min max")
def _clip(s: Site) -> Core:
    if s.opset < 11:
        largest = float(np.finfo(np.float32).max)
        low, high = float(s.attrs.get("min", -largest)), float(s.attrs.get("max", largest))
    else:
        low, high = number(s, 1, -np.inf), number(s, 2, np.inf)
    return Core("Clip", (0,), {"min": float(low), "max": float(high)})


@converts("Cast", attrs="to saturate")
def _cast(s: Site) -> Core:
    return Core("Cast", (0,), {"to": dtype_name(s.attrs["to"])})


@converts("Sum")
def _sum(s: Site) -> Core:
    if len(s.types) != 2:
        raise NotCore("a sum of other than two operands")
    return Core("Add", (0, 1), {})


@converts("Gemm", attrs="alpha beta transA transB")
def _gemm(s: Site) -> Core:
    return gemm_core(s)


def gemm_core(s: Site) -> Core:
    """A Gemm, whatever else the node does."""
    addend = s.has(2)
    attrs = {
        "alpha": float(s.attrs.get("alpha", 1.0)),
        "beta": float(s.attrs.get("beta", 1.0)) if addend else 1.0,
        "transA": int(bool(s.attrs.get("transA", 0))),
        "transB": int(bool(s.attrs.get("transB", 0))),
    }
    return Core("Gemm", (0, 1, 2) if addend else (0, 1), attrs)


def _pads(s: Site, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]) -> tuple[int, ...]:
    """Explicit padding: all begins, then all ends."""
    n, auto = len(kernel), s.attrs.get("auto_pad", "NOTSET")
    if auto in ("NOTSET", ""):
        pads = tuple(s.attrs.get("pads", (0,) * (2 * n)))
        if len(pads) != 2 * n or min(pads) < 0:
            raise NotCore(f"pads {pads}")
        return pads
    if s.attrs.get("ceil_mode", 0):
        raise NotCore("auto_pad together with ceil_mode")
    if auto == "VALID":
        return (0,) * (2 * n)
    if auto not in ("SAME_UPPER", "SAME_LOWER"):
        raise NotCore(f"auto_pad {auto}")
    if any(d != 1 for d in dilations):
        raise NotCore("auto_pad together with dilations")  # runtimes disagree
    begins, ends = [], []
    for extent, k, stride in zip(s.shape()[2:], kernel, strides, strict=True):
        if stride == 1:
            total = k - 1  # whatever the extent
        elif isinstance(extent, int):
            total = max((-(-extent // stride) - 1) * stride + k - extent, 0)
        else:
            raise NotCore("auto_pad over an extent that is not known")
        small, large = total // 2, total - total // 2
        begins.append(large if auto == "SAME_LOWER" else small)
        ends.append(small if auto == "SAME_LOWER" else large)
    return (*begins, *ends)


def _window(s: Site, kernel: Sequence[int]) -> dict[str, Any]:
    ones = (1,) * len(kernel)
    strides, dilations = tuple(s.attrs.get("strides", ones)), tuple(s.attrs.get("dilations", ones))
    if not kernel or len(s.shape()) != len(kernel) + 2 or {len(strides), len(dilations)} != {len(kernel)}:
        raise NotCore("window attributes of different lengths")
    if min(*kernel, *strides, *dilations) < 1:
        raise NotCore("window attributes below 1")
    return {"strides": strides, "dilations": dilations, "pads": _pads(s, kernel, strides, dilations)}


@converts("Conv", attrs="auto_pad dilations group kernel_shape pads strides")
def _conv(s: Site) -> Core:
    return conv_core(s)


def conv_core(s: Site) -> Core:
    """A convolution, whatever else the node does."""
    weight = s.known_shape(1)
    if len(weight) < 3 or tuple(s.attrs.get("kernel_shape", weight[2:])) != weight[2:]:
        raise NotCore("kernel_shape does not fit the weight")
    attrs = {**_window(s, weight[2:]), "group": int(s.attrs.get("group", 1))}
    return Core("Conv", (0, 1, 2) if s.has(2) else (0, 1), attrs)


@converts("BatchNormalization", attrs="epsilon momentum spatial training_mode", outputs=1)
def _batch_normalization(s: Site) -> Core:
    if s.attrs.get("training_mode", 0) or s.listed > 1 or not s.attrs.get("spatial", 1):
        raise NotCore("training mode, or statistics of single positions")
    return Core("BatchNormalization", (0, 1, 2, 3, 4), {"epsilon": float(s.attrs.get("epsilon", _EPSILON))})


@converts("MaxPool", attrs="auto_pad ceil_mode dilations kernel_shape pads storage_order strides")
def _max_pool(s: Site) -> Core:
    kernel = tuple(s.attrs["kernel_shape"])
    return Core("MaxPool", (0,), {"kernel": kernel, **_window(s, kernel), "ceil": int(s.attrs.get("ceil_mode", 0))})


@converts("AveragePool", attrs="auto_pad ceil_mode count_include_pad dilations kernel_shape pads strides")
def _average_pool(s: Site) -> Core:
    kernel = tuple(s.attrs["kernel_shape"])
    attrs = {"kernel": kernel, **_window(s, kernel), "ceil": int(s.attrs.get("ceil_mode", 0))}
    return Core("AveragePool", (0,), {**attrs, "include_pad": int(bool(s.attrs.get("count_include_pad", 0)))})


@converts("Softmax", attrs="axis")
def _softmax(s: Site) -> Core:
    rank = len(s.shape())
    if s.opset >= 13:
        return Core("Softmax", (0,), {"axis": s.axis(s.attrs.get("axis", -1), rank)})
    # Up to opset 12 the operand is coerced to a matrix [before axis, from axis on]: the softmax of one axis only
    # where all others from there on have extent 1.
    axis = s.axis(s.attrs.get("axis", 1), rank)
    wide = [i for i in range(axis, rank) if s.shape()[i] != 1]
    if len(wide) > 1:
        raise NotCore("a softmax over several axes")
    return Core("Softmax", (0,), {"axis": wide[0] if wide else axis})


@converts("LayerNormalization", attrs="axis epsilon stash_type")
def _layer_normalization(s: Site) -> Core:
    if s.attrs.get("stash_type", 1) != 1:
        raise NotCore("stash_type other than float")
    axis = s.axis(s.attrs.get("axis", -1), len(s.shape()))
    attrs = {"axis": axis, "epsilon": float(s.attrs.get("epsilon", _EPSILON))}
    return Core("LayerNormalization", (0, 1, 2) if s.has(2) else (0, 1), attrs)


@converts("RMSNormalization", attrs="axis epsilon stash_type")
def _rms_normalization(s: Site) -> Core:
    if s.attrs.get("stash_type", 1) != 1:
        raise NotCore("stash_type other than float")
    axis = s.axis(s.attrs.get("axis", -1), len(s.shape()))
    return Core("RMSNormalization", (0, 1), {"axis": axis, "epsilon": float(s.attrs.get("epsilon", _EPSILON))})


@converts(*REDUCTIONS, attrs="axes keepdims noop_with_empty_axes")
def _reduce(s: Site) -> Core:
    rank, axes = len(s.shape()), s.axes(since=13 if s.op == "ReduceSum" else 18)
    if axes is None and not s.attrs.get("noop_with_empty_axes", 0):
        axes = tuple(range(rank))
    if not axes:
        raise NotCore("no axes")
    resolved = tuple(sorted({s.axis(a, rank) for a in axes}))
    return Core(s.op, (0,), {"axes": resolved, "keepdims": int(bool(s.attrs.get("keepdims", 1)))})
