"""Fused operators in ONNX: which forms of them the reader takes as core, and how they are written.

Those of opset 23 are ONNX's own. Those of the domain com.microsoft are ONNX Runtime's: its CPU provider has kernels
for float32 (https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md). Forms with more operands or
outputs than the core operators of `egraph.fused` have stay opaque.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..egraph.fused import ACTIVATIONS
from ..egraph.graph import Node, TupleType
from .onnx_forms import FORMS, RENAMED, SINCE, NotWritable, Writer, conv_attributes, gemm_attributes
from .onnx_operators import CONVERTERS, Core, NotCore, Site, conv_core, converts, gemm_core

__all__ = ["CONVERTERS", "FORMS"]

MICROSOFT = "com.microsoft"


def _own(*ops: str) -> tuple[str, ...]:
    return tuple(f"{MICROSOFT}::{op}" for op in ops)


# Read


def _float(site: Site, name: str, default: float) -> float:
    return float(site.attrs.get(name, default))


def _scale(site: Site, name: str, head: Any) -> float:
    """The given scale, else 1/sqrt(head); 0 and absent mean the same."""
    given = float(site.attrs.get(name, 0.0))
    if given:
        return given
    if not isinstance(head, int):
        raise NotCore("the size of a head is not known")
    return float(1.0 / np.sqrt(head))


@converts("Attention", attrs="is_causal scale softcap qk_matmul_output_mode softmax_precision q_num_heads kv_num_heads")
def _attention(s: Site) -> Core:
    a = s.attrs
    if a.get("softcap", 0.0) or a.get("qk_matmul_output_mode", 0) or "softmax_precision" in a:
        raise NotCore("scores that are capped, returned, or of another precision")
    if any(s.has(k) for k in range(4, len(s.types))):
        raise NotCore("a cache")
    q, k, v = (s.shape(i) for i in range(3))
    if not len(q) == len(k) == len(v) == 4:
        raise NotCore("heads that are not an axis")
    if s.has(3) and s.types[3].dtype != s.types[0].dtype:  # type: ignore[union-attr]
        raise NotCore("a mask of booleans")
    if a.get("is_causal", 0) and q[2] != k[2]:
        raise NotCore("a causal mask that is not square")
    attrs = {"scale": _scale(s, "scale", q[3]), "causal": int(bool(a.get("is_causal", 0)))}
    return Core("Attention", (0, 1, 2, 3) if s.has(3) else (0, 1, 2), attrs)


@converts("RotaryEmbedding", attrs="interleaved num_heads rotary_embedding_dim")
def _rotary(s: Site) -> Core:
    if s.has(3) or s.attrs.get("rotary_embedding_dim", 0):
        raise NotCore("positions, or only a part of each head")
    return Core("RotaryEmbedding", (0, 1, 2), {"interleaved": int(bool(s.attrs.get("interleaved", 0)))})


@converts("SimplifiedLayerNormalization", attrs="axis epsilon stash_type")
def _simplified(s: Site) -> Core:
    if s.attrs.get("stash_type", 1) != 1:
        raise NotCore("stash_type other than float")
    axis = s.axis(s.attrs.get("axis", -1), len(s.shape()))
    return Core("RMSNormalization", (0, 1), {"axis": axis, "epsilon": _float(s, "epsilon", float(np.float32(1e-5)))})


@converts(*_own("MultiHeadAttention"), attrs="num_heads mask_filter_value scale unidirectional")
def _multi_head(s: Site) -> Core:
    if s.has(3) or s.has(4) or any(s.has(k) for k in range(6, len(s.types))):
        raise NotCore("a bias, a padding mask or a cache")
    q, k, v = (s.shape(i) for i in range(3))
    heads = int(s.attrs["num_heads"])
    if not len(q) == len(k) == len(v) == 3 or not isinstance(q[2], int):
        raise NotCore("keys or values of another form")
    causal = int(bool(s.attrs.get("unidirectional", 0)))
    if causal and q[1] != k[1]:
        raise NotCore("a causal mask that is not square")
    attrs = {"heads": heads, "scale": _scale(s, "scale", q[2] // heads), "causal": causal}
    return Core("MultiHeadAttention", (0, 1, 2, 5) if s.has(5) else (0, 1, 2), attrs)


@converts(*_own("FusedMatMul", "TransposeMatMul"), attrs="alpha transA transB transBatchA transBatchB")
def _matmul(s: Site) -> Core:
    if s.attrs.get("transBatchA", 0) or s.attrs.get("transBatchB", 0):
        raise NotCore("another order of axes")
    if min(len(s.shape(0)), len(s.shape(1))) < 2:
        raise NotCore("a vector")
    attrs = {k: int(bool(s.attrs.get(k, 0))) for k in ("transA", "transB")}
    return Core("FusedMatMul", (0, 1), {"alpha": _float(s, "alpha", 1.0), **attrs})


def _parameters(name: str, given: list[float]) -> dict[str, Any]:
    if name not in ACTIVATIONS or len(given) < len(ACTIVATIONS[name]):
        raise NotCore(f"activation {name}")
    return {"activation": name, "parameters": tuple(map(float, given[: len(ACTIVATIONS[name])]))}


@converts(
    *_own("FusedConv"),
    attrs="auto_pad dilations group kernel_shape pads strides activation activation_params",
)
def _conv(s: Site) -> Core:
    if s.has(3) and not s.has(2):
        raise NotCore("an addend but no bias")
    attrs = conv_core(s).attrs | _parameters(s.attrs.get("activation", ""), s.attrs.get("activation_params", []))
    return Core("FusedConv", tuple(k for k in range(4) if s.has(k)), attrs)


@converts(
    *_own("FusedGemm"),
    attrs="alpha beta transA transB activation activation_alpha activation_beta activation_gamma",
)
def _gemm(s: Site) -> Core:
    core, name = gemm_core(s), s.attrs.get("activation", "")
    if name == "Clip":
        raise NotCore("bounds that the operator cannot tell")
    given = [s.attrs[f"activation_{k}"] for k in ACTIVATIONS.get(name, ())]
    return Core("FusedGemm", core.operands, core.attrs | _parameters(name, given))


@converts(*_own("Gelu"))
def _gelu(s: Site) -> Core:
    return Core("Gelu", (0,), {"approximate": "none"})


@converts(*_own("QuickGelu"), attrs="alpha")
def _quick_gelu(s: Site) -> Core:
    return Core("Swish", (0,), {"alpha": _float(s, "alpha", float(np.float32(1.702)))})


@converts(*_own("BiasGelu"))
def _bias_gelu(s: Site) -> Core:
    return Core("BiasGelu", (0, 1), {})


@converts(*_own("FastGelu"))
def _fast_gelu(s: Site) -> Core:
    return Core("FastGelu", (0, 1), {}) if s.has(1) else Core("Gelu", (0,), {"approximate": "tanh"})


def _normalised_sum(s: Site, op: str, scales: int) -> Core:
    if s.reads - {0, 3}:
        raise NotCore("the statistics are used")
    operands = [*range(2 + scales)]
    if not all(map(s.has, operands)):
        raise NotCore("no shift")
    operands += [2 + scales] if s.has(2 + scales) else []
    default = float(np.float32(1e-12 if scales == 2 else 1e-5))
    attrs = {"epsilon": _float(s, "epsilon", default), "sum": int(3 in s.reads)}
    return Core(op, tuple(operands), attrs, (0, 3) if attrs["sum"] else None)


@converts(*_own("SkipLayerNormalization"), attrs="epsilon", outputs=4)
def _skip(s: Site) -> Core:
    return _normalised_sum(s, "SkipLayerNormalization", 2)


@converts(*_own("SkipSimplifiedLayerNormalization"), attrs="epsilon", outputs=4)
def _skip_simplified(s: Site) -> Core:
    return _normalised_sum(s, "SkipSimplifiedLayerNormalization", 1)


# Written


def _own_node(w: Writer, op: str, inputs: list[str], outputs: list[str], **attrs: Any) -> None:
    w.require(MICROSOFT, 1)
    w.emit(op, inputs, outputs, domain=MICROSOFT, **attrs)


def _plainly(w: Writer, node: Node, inputs: list[str], outputs: list[str]) -> None:
    _own_node(w, node.op, inputs, outputs, **node.attrs)


def _need(w: Writer, node: Node) -> None:
    if w.opset < SINCE[node.op]:
        raise NotWritable(f"{node.op} needs opset {SINCE[node.op]}, the model has {w.opset}")


def _write_attention(w: Writer, node: Node, inputs: list[str], outputs: list[str]) -> None:
    _need(w, node)
    causal = {"is_causal": 1} if node.attrs["causal"] else {}
    w.emit("Attention", inputs, outputs, scale=node.attrs["scale"], **causal)


def _write_rotary(w: Writer, node: Node, inputs: list[str], outputs: list[str]) -> None:
    _need(w, node)
    w.emit("RotaryEmbedding", inputs, outputs, **node.attrs)


def _write_multi_head(w: Writer, node: Node, inputs: list[str], outputs: list[str]) -> None:
    operands = [*inputs[:3], "", "", inputs[3]] if len(inputs) == 4 else inputs
    causal = {"unidirectional": 1} if node.attrs["causal"] else {}
    attrs = {"num_heads": node.attrs["heads"], "scale": node.attrs["scale"], **causal}
    _own_node(w, "MultiHeadAttention", operands, outputs, **attrs)


def _write_conv(w: Writer, node: Node, inputs: list[str], outputs: list[str]) -> None:
    attrs = conv_attributes(w, node)
    name, parameters = attrs.pop("activation"), attrs.pop("parameters")
    attrs |= {"activation": name} if name else {}
    attrs |= {"activation_params": [_finite(p) for p in parameters]} if parameters else {}
    _own_node(w, "FusedConv", inputs, outputs, **attrs)


def _finite(x: float) -> float:
    limit = float(np.finfo(np.float32).max)
    return min(max(x, -limit), limit)


def _write_gemm(w: Writer, node: Node, inputs: list[str], outputs: list[str]) -> None:
    name, parameters = node.attrs["activation"], node.attrs["parameters"]
    given = {f"activation_{k}": p for k, p in zip(ACTIVATIONS[name], parameters, strict=True)}
    attrs = {**gemm_attributes(node), **({"activation": name} if name else {}), **given}
    _own_node(w, "FusedGemm", inputs, outputs, **attrs)


def _write_skip(w: Writer, node: Node, inputs: list[str], outputs: list[str]) -> None:
    found = [outputs[0], "", "", outputs[1]] if isinstance(node.type, TupleType) else outputs
    _own_node(w, node.op, inputs, found, epsilon=node.attrs["epsilon"])


def _write_gelu(w: Writer, node: Node, inputs: list[str], outputs: list[str]) -> None:
    approximate = node.attrs["approximate"]
    if w.opset >= SINCE["Gelu"]:
        w.emit("Gelu", inputs, outputs, **({} if approximate == "none" else {"approximate": approximate}))
    else:
        _own_node(w, "Gelu" if approximate == "none" else "FastGelu", inputs, outputs)


def _write_swish(w: Writer, node: Node, inputs: list[str], outputs: list[str]) -> None:
    # ONNX Runtime has no kernel of ONNX's own for some opsets
    if w.opset >= SINCE["Swish"] and not getattr(w.graph.source, "contrib", False):
        w.emit("Swish", inputs, outputs, **node.attrs)
    else:
        _own_node(w, "QuickGelu", inputs, outputs, **node.attrs)


def _write_rms(w: Writer, node: Node, inputs: list[str], outputs: list[str]) -> None:
    # ONNX Runtime has the older name in ONNX's own domain
    name = "RMSNormalization" if w.opset >= SINCE["RMSNormalization"] else RENAMED["RMSNormalization"]
    w.emit(name, inputs, outputs, **node.attrs)


FORMS.update({
    **dict.fromkeys(("FusedMatMul", "BiasGelu", "FastGelu"), _plainly),
    **dict.fromkeys(("SkipLayerNormalization", "SkipSimplifiedLayerNormalization"), _write_skip),
    "Attention": _write_attention,
    "RotaryEmbedding": _write_rotary,
    "MultiHeadAttention": _write_multi_head,
    "FusedConv": _write_conv,
    "FusedGemm": _write_gemm,
    "Gelu": _write_gelu,
    "Swish": _write_swish,
    "RMSNormalization": _write_rms,
})  # fmt: skip
