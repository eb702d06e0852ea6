"""Two small models that run along with every batch of kernels, to tell a slow machine from a slow kernel."""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx

REFERENCES = ("reference: product", "reference: traffic")
"""A product of matrices that stay in the cache, and a sum of two tensors that do not."""


@functools.cache
def reference_model(name: str) -> onnx.ModelProto:
    """The ONNX model of a reference; about 0.2 ms of arithmetic, or of memory traffic, on one core of 2026."""
    from onnx import TensorProto, helper, numpy_helper

    if name == REFERENCES[0]:
        shape, node = [64, 256], helper.make_node("MatMul", ["x", "w"], ["y"])
        weight = np.random.default_rng(0).standard_normal((256, 256)).astype(np.float32)
    else:
        shape, node = [1 << 20], helper.make_node("Add", ["x", "w"], ["y"])
        weight = np.ones(1 << 20, np.float32)
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n in ("x", "y")]
    graph = helper.make_graph([node], "reference", ends[:1], ends[1:], [numpy_helper.from_array(weight, "w")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def pace(figures: Mapping[str, Sequence[float]], known: Mapping[str, float]) -> float:
    """How many times slower the references ran by these figures (ms of each round) than is `known` of them (ms): the
    geometric mean over those that are in both; 1 if there are none."""
    changes = [math.log(statistics.median(figures[n]) / known[n]) for n in REFERENCES if n in figures and n in known]
    return math.exp(statistics.fmean(changes)) if changes else 1.0
