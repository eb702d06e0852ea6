"""Operators of narrow floating-point types as float32 ones: ONNX Runtime's CPU provider has few bfloat16 kernels, and
rounding to float16 after each operator hides small errors.
"""

from __future__ import annotations

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, TypeProto, numpy_helper

from .onnx_bodies import subgraphs

_NARROW = (TensorProto.BFLOAT16, TensorProto.FLOAT16)
_TYPED = ("to", "dtype", "output_dtype", "stash_type")
"""Attributes that hold an element type."""


def widen(node: NodeProto) -> None:
    """Make float32 of every narrow type that a node's attributes and bodies name, in place."""
    for a in node.attribute:
        if a.name in _TYPED and a.i in _NARROW:
            a.i = TensorProto.FLOAT
        for tensor in (a.t, *a.tensors) if a.HasField("t") or a.tensors else ():
            _tensor(tensor)
    for body in subgraphs(node):
        _body(body)


def _body(body: GraphProto) -> None:
    for info in (*body.input, *body.output, *body.value_info):
        _type(info.type)
    for tensor in body.initializer:
        _tensor(tensor)
    for node in body.node:
        widen(node)


def _type(kind: TypeProto) -> None:
    which = kind.WhichOneof("value")
    if which == "tensor_type" and kind.tensor_type.elem_type in _NARROW:
        kind.tensor_type.elem_type = TensorProto.FLOAT
    elif which == "sequence_type":
        _type(kind.sequence_type.elem_type)
    elif which == "optional_type":
        _type(kind.optional_type.elem_type)


def _tensor(tensor: TensorProto) -> None:
    if tensor.data_type in _NARROW:
        array = np.asarray(numpy_helper.to_array(tensor), np.float32)
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
