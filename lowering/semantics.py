"""What each core operator computes, in torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
import torch.nn.functional as F

Tensor = torch.Tensor
Value = Tensor | tuple[Tensor, ...]


class NotEvaluable(ValueError):
    """The evaluator has no form of this operator or element type; the message names it."""


Rule = Callable[[dict[str, Any], list[Tensor]], Value]
"""An operator's result from its attributes and operands."""


def cast(x: Tensor, to: str, width: torch.dtype, lenient: bool = False) -> Tensor:
    """Floating-point targets are all `width`: over the reals a cast between them changes nothing.

    What an integer cannot hold raises `NotEvaluable`, for runtimes differ; `lenient` gives the lowest integer, as x86
    does: exporters write the logarithm of 0 where a Where then leaves it out.
    """
    if "float" in to:
        return x.to(width)
    target = getattr(torch, to)
    if x.is_floating_point() and to != "bool":
        limits = torch.iinfo(target)
        held = (x > limits.min - 1.0) & (x < limits.max + 1.0)
        if not bool(held.all()):
            if not lenient or to not in ("int64", "int32"):
                raise NotEvaluable(f"Cast of numbers to {to}, which cannot hold them")
            return torch.where(held, torch.where(held, x, 0.0).to(target), limits.min)
    return x.to(target)


def _float_only(op: str, x: Tensor) -> None:
    if not x.is_floating_point():
        raise NotEvaluable(f"{op} of {x.dtype}")


def _function(name: str, f: Callable[[Tensor], Tensor]) -> Rule:
    def rule(attrs: dict[str, Any], xs: list[Tensor]) -> Tensor:
        _float_only(name, xs[0])  # torch would turn integers into floats
        return f(xs[0])

    return rule


def _div(attrs: dict[str, Any], xs: list[Tensor]) -> Tensor:
    if xs[0].is_floating_point():
        return xs[0] / xs[1]
    if bool((xs[1] == 0).any()):
        raise NotEvaluable("Div of integers by 0")
    return torch.div(xs[0], xs[1], rounding_mode="trunc")


def _pow(attrs: dict[str, Any], xs: list[Tensor]) -> Tensor:
    if not xs[0].is_floating_point() and bool((xs[1] < 0).any()):
        raise NotEvaluable("Pow of integers with a negative exponent")
    return torch.pow(xs[0], xs[1])


def _gemm(attrs: dict[str, Any], xs: list[Tensor]) -> Tensor:
    a, b = xs[0].t() if attrs["transA"] else xs[0], xs[1].t() if attrs["transB"] else xs[1]
    scale, shift = attrs["alpha"], attrs["beta"]
    if not a.is_floating_point():
        if scale != int(scale) or shift != int(shift):
            raise NotEvaluable("Gemm of integers with a fractional factor")
        scale, shift = int(scale), int(shift)
    out = a @ b
    out = out if scale == 1 else out * scale
    if len(xs) == 3:
        out = out + (xs[2] if shift == 1 else xs[2] * shift)
    return out


_CONVOLUTIONS: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def padded(x: Tensor, begins: Sequence[int], ends: Sequence[int], value: float) -> Tensor:
    """x with so many elements of `value` before and behind it along each of its last axes."""
    if not any((*begins, *ends)):
        return x
    flat = [p for pair in reversed(list(zip(begins, ends, strict=True))) for p in pair]
    return F.pad(x, flat, value=value)


def _spatial(op: str, n: int) -> None:
    if n not in _CONVOLUTIONS:
        raise NotEvaluable(f"{op} over {n} spatial axes")


def _conv(attrs: dict[str, Any], xs: list[Tensor]) -> Tensor:
    n = xs[0].dim() - 2
    _spatial("Conv", n)
    x, kernel = padded(xs[0], attrs["pads"][:n], attrs["pads"][n:], 0), xs[1]
    if 0 in kernel.shape[:2]:  # torch gives an empty sum the shape of its input, and takes no kernel without filters
        x = x.new_zeros(x.shape[0], attrs["group"], *x.shape[2:])
        kernel = x.new_zeros(kernel.shape[0] or attrs["group"], 1, *kernel.shape[2:])
    bias = xs[2] if len(xs) == 3 and len(xs[2]) else None
    sums = _CONVOLUTIONS[n](x, kernel, bias, attrs["strides"], 0, attrs["dilations"], attrs["group"])
    return sums[:, : len(xs[1])]


def _batch_normalization(attrs: dict[str, Any], xs: list[Tensor]) -> Tensor:
    x = xs[0]
    _float_only("BatchNormalization", x)
    scale, bias, mean, variance = (p.reshape(1, -1, *([1] * (x.dim() - 2))) for p in xs[1:])
    return (x - mean) / torch.sqrt(variance + attrs["epsilon"]) * scale + bias


def pooling(attrs: dict[str, Any], x: Tensor) -> tuple[list[int], list[int], list[int]]:
    """Extents of the result, and the padding at the ends that makes every window complete."""
    n = len(attrs["kernel"])
    extents, ends, strides = [], [], attrs["strides"]
    for i, kernel in enumerate(attrs["kernel"]):
        begin, end = attrs["pads"][i], attrs["pads"][n + i]
        size, reach = x.shape[2 + i], attrs["dilations"][i] * (kernel - 1) + 1
        span = size + begin + end - reach
        extent = (-(-span // strides[i]) if attrs["ceil"] else span // strides[i]) + 1
        if attrs["ceil"] and (extent - 1) * strides[i] >= size + begin:
            extent -= 1  # a window that would lie in the padding only
        extents.append(extent)
        ends.append(max(end, (extent - 1) * strides[i] + reach - size - begin))
    return extents, list(attrs["pads"][:n]), ends


def _cut(x: Tensor, extents: Sequence[int]) -> Tensor:
    return x[(slice(None), slice(None), *(slice(e) for e in extents))]


def _max_pool(attrs: dict[str, Any], xs: list[Tensor]) -> Tensor:
    x, n = xs[0], len(attrs["kernel"])
    _spatial("MaxPool", n)
    exact = x if x.is_floating_point() else x.double()  # 8-bit integers only, exact
    extents, begins, ends = pooling(attrs, x)
    full = padded(exact, begins, ends, float("-inf"))
    pool: Callable[..., Tensor] = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[n - 1]
    out = pool(full, attrs["kernel"], attrs["strides"], 0, attrs["dilations"])
    return _cut(out, extents).to(x.dtype)


def _average_pool(attrs: dict[str, Any], xs: list[Tensor]) -> Tensor:
    x, n = xs[0], len(attrs["kernel"])
    _spatial("AveragePool", n)
    _float_only("AveragePool", x)
    extents, begins, ends = pooling(attrs, x)

    def window_sums(t: Tensor) -> Tensor:
        flat = t.reshape(t.shape[0] * t.shape[1], 1, *t.shape[2:])
        kernel = torch.ones(1, 1, *attrs["kernel"], dtype=t.dtype)
        sums = _CONVOLUTIONS[n](flat, kernel, None, attrs["strides"], 0, attrs["dilations"])
        return _cut(sums.reshape(*t.shape[:2], *sums.shape[2:]), extents)

    # A window is divided by the number of positions in it that count: data, and the given padding if asked for.
    counted = torch.ones(1, 1, *x.shape[2:], dtype=x.dtype)
    if attrs["include_pad"]:
        counted = padded(counted, begins, attrs["pads"][n:], 1)
        rest = [e - p for e, p in zip(ends, attrs["pads"][n:], strict=True)]
        counted = padded(counted, [0] * n, rest, 0)
    else:
        counted = padded(counted, begins, ends, 0)
    return window_sums(padded(x, begins, ends, 0)) / window_sums(counted)


def _layer_normalization(attrs: dict[str, Any], xs: list[Tensor]) -> Tensor:
    x, axes = xs[0], tuple(range(attrs["axis"], xs[0].dim()))
    _float_only("LayerNormalization", x)
    centred = x - x.mean(axes, keepdim=True)
    out = centred / torch.sqrt((centred * centred).mean(axes, keepdim=True) + attrs["epsilon"]) * xs[1]
    return out + xs[2] if len(xs) == 3 else out


def _rms_normalization(attrs: dict[str, Any], xs: list[Tensor]) -> Tensor:
    x, axes = xs[0], tuple(range(attrs["axis"], xs[0].dim()))
    _float_only("RMSNormalization", x)
    return x / torch.sqrt((x * x).mean(axes, keepdim=True) + attrs["epsilon"]) * xs[1]


def _gelu(attrs: dict[str, Any], xs: list[Tensor]) -> Tensor:
    _float_only("Gelu", xs[0])
    return F.gelu(xs[0], approximate=attrs["approximate"])


def _clip(attrs: dict[str, Any], xs: list[Tensor]) -> Tensor:
    x, low, high = xs[0], attrs["min"], attrs["max"]
    if not x.is_floating_point():
        limits = torch.iinfo(x.dtype)
        low, high = int(max(low, limits.min)), int(min(high, limits.max))
    return torch.clamp(torch.clamp(x, min=low), max=high)


def _hard_sigmoid(attrs: dict[str, Any], xs: list[Tensor]) -> Tensor:
    _float_only("HardSigmoid", xs[0])
    return torch.clamp(xs[0] * attrs["alpha"] + attrs["beta"], 0, 1)


def _pad(attrs: dict[str, Any], xs: list[Tensor]) -> Tensor:
    n, value = xs[0].dim(), attrs["value"]
    if not xs[0].is_floating_point():
        value = int(value)
    return padded(xs[0], attrs["pads"][:n], attrs["pads"][n:], value)


def _gather(attrs: dict[str, Any], xs: list[Tensor]) -> Tensor:
    x, indices, axis = xs[0], xs[1], attrs["axis"]
    extent = x.shape[axis]
    if bool(((indices < -extent) | (indices >= extent)).any()):
        raise NotEvaluable(f"Gather beyond an extent of {extent}")
    flat = torch.where(indices < 0, indices + extent, indices).reshape(-1).long()
    return x.index_select(axis, flat).reshape((*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]))


def _reduction(f: Callable[..., Tensor]) -> Rule:
    def rule(attrs: dict[str, Any], xs: list[Tensor]) -> Tensor:
        axes = tuple(attrs["axes"])
        return f(xs[0], dim=axes, keepdim=bool(attrs["keepdims"])).to(xs[0].dtype) if axes else xs[0]

    return rule


def _mean(x: Tensor, axes: Sequence[int], keep: bool) -> Tensor:
    _float_only("ReduceMean", x)
    return x.mean(tuple(axes), keepdim=keep) if axes else x


def _split(attrs: dict[str, Any], xs: list[Tensor]) -> Value:
    return tuple(torch.split(xs[0], list(attrs["sizes"]), attrs["axis"]))


def _slice(attrs: dict[str, Any], xs: list[Tensor]) -> Tensor:
    out = xs[0]
    for axis, start, end in zip(attrs["axes"], attrs["starts"], attrs["ends"], strict=True):
        out = out.narrow(axis, start, end - start)
    return out


def _reshape(attrs: dict[str, Any], xs: list[Tensor]) -> Tensor:
    if prod(attrs["shape"]) != xs[0].numel():
        raise NotEvaluable(f"Reshape of {list(xs[0].shape)} to {list(attrs['shape'])}")
    return xs[0].reshape(tuple(attrs["shape"]))


RULES: dict[str, Rule] = {
    "Relu": lambda a, x: torch.clamp(x[0], min=0),
    "Sigmoid": _function("Sigmoid", torch.sigmoid),
    "Tanh": _function("Tanh", torch.tanh),
    "Erf": _function("Erf", torch.erf),
    "Sqrt": _function("Sqrt", torch.sqrt),
    "Exp": _function("Exp", torch.exp),
    "Neg": lambda a, x: -x[0],
    "Abs": lambda a, x: torch.abs(x[0]),
    "Add": lambda a, x: x[0] + x[1],
    "Sub": lambda a, x: x[0] - x[1],
    "Mul": lambda a, x: x[0] * x[1],
    "Div": _div,
    "Pow": _pow,
    "Min": lambda a, x: torch.minimum(x[0], x[1]),
    "Max": lambda a, x: torch.maximum(x[0], x[1]),
    "Reciprocal": _function("Reciprocal", torch.reciprocal),
    "Sin": _function("Sin", torch.sin),
    "Cos": _function("Cos", torch.cos),
    "Log": _function("Log", torch.log),
    "Softplus": _function("Softplus", lambda x: torch.logaddexp(x, torch.zeros((), dtype=x.dtype))),
    "Floor": _function("Floor", torch.floor),
    "Ceil": _function("Ceil", torch.ceil),
    "Sign": lambda a, x: torch.sign(x[0]),
    "HardSwish": _function("HardSwish", lambda x: x * torch.clamp(x / 6 + 0.5, 0, 1)),
    "Gelu": _gelu,
    "Swish": lambda a, x: _function("Swish", lambda t: t * torch.sigmoid(a["alpha"] * t))(a, x),
    "LeakyRelu": lambda a, x: _function("LeakyRelu", lambda t: torch.where(t < 0, a["alpha"] * t, t))(a, x),
    "Elu": lambda a, x: _function("Elu", lambda t: torch.where(t < 0, a["alpha"] * torch.expm1(t), t))(a, x),
    "HardSigmoid": _hard_sigmoid,
    "Clip": _clip,
    "Equal": lambda a, x: x[0] == x[1],
    "Greater": lambda a, x: x[0] > x[1],
    "GreaterOrEqual": lambda a, x: x[0] >= x[1],
    "Less": lambda a, x: x[0] < x[1],
    "LessOrEqual": lambda a, x: x[0] <= x[1],
    "And": lambda a, x: x[0] & x[1],
    "Or": lambda a, x: x[0] | x[1],
    "Not": lambda a, x: ~x[0],
    "IsNaN": lambda a, x: torch.isnan(x[0]),
    "Where": lambda a, x: torch.where(x[0], x[1], x[2]),
    "MatMul": lambda a, x: torch.matmul(x[0], x[1]),
    "Gemm": _gemm,
    "Conv": _conv,
    "BatchNormalization": _batch_normalization,
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "GlobalAveragePool": lambda a, x: _mean(x[0], range(2, x[0].dim()), True),
    "Softmax": lambda a, x: torch.softmax(x[0], a["axis"]),
    "LayerNormalization": _layer_normalization,
    "RMSNormalization": _rms_normalization,
    "ReduceMean": lambda a, x: _mean(x[0], a["axes"], bool(a["keepdims"])),
    "ReduceSum": _reduction(torch.sum),
    "ReduceMax": _reduction(torch.amax),
    "ReduceMin": _reduction(torch.amin),
    "Concat": lambda a, x: torch.cat(x, a["axis"]),
    "Split": _split,
    "Slice": _slice,
    "Transpose": lambda a, x: x[0].permute(tuple(a["perm"])),
    "Reshape": _reshape,
    "Expand": lambda a, x: x[0].expand(tuple(a["shape"])),
    "Pad": _pad,
    "Gather": _gather,
}
