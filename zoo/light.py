"""The image classifiers that the `onnx` package carries without weights, given weights.

Their files (onnx/backend/test/data/light) hold the full graph and build every large weight by ConstantOfShape. Here
each weight becomes an initializer with seeded values of the right scale, so that the graph is the published one and
behaves like a network: constants differ, batch-normalisation variances are positive, activations stay of order one.
"""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .builder import IR_VERSIONS, OPSET, Size, filled, finished, outlined

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto

LIGHT = (
    "bvlc_alexnet", "densenet121", "inception_v1", "inception_v2", "resnet50", "shufflenet", "squeezenet", "vgg19",
    "zfnet512",
)  # fmt: skip
"""Names of the models that the `onnx` package carries in this form."""


def light(name: str, seed: int = 0, image: int = 224, batch: Size = 1, opset: int = OPSET) -> ModelProto:
    """The light model `name` (one of `LIGHT`) with seeded weights, converted from opset 9 to `opset` (9 to 22).

    `image` is the height and width in pixels; only squeezenet and densenet121 end in a global pool and allow another
    than 224 (ValueError otherwise). Input: the file's, float32 [batch, 3, image, image]; output: 1000 scores.
    """
    import onnx
    from onnx import version_converter

    if opset not in IR_VERSIONS:
        raise ValueError(f"opset {opset} is not one of {min(IR_VERSIONS)} to {max(IR_VERSIONS)}")
    if name not in LIGHT:
        raise ValueError(f"there is no light model {name!r}, only {', '.join(LIGHT)}")
    folder = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
    model = onnx.load(folder / f"light_{name}.onnx")
    graph = model.graph
    graph.name = name
    _resize(graph, name, image, batch)
    # Up to opset 12 Softmax worked on the flattened input, which the converter spells out by Flatten and Reshape.
    # These models only apply it to one vector per picture, where axis 1 says the same.
    final = graph.node.pop() if graph.node[-1].op_type == "Softmax" else None
    if final:
        graph.output[0].name = final.input[0]
    graph = version_converter.convert_version(model, opset).graph
    _give_weights(graph, np.random.default_rng(seed))
    if final:
        graph.node.append(onnx.helper.make_node("Softmax", final.input, final.output, axis=1))
        graph.output[0].name = final.output[0]
    graph.output[0].CopyFrom(onnx.ValueInfoProto(name=graph.output[0].name))
    if outlined():
        return onnx.helper.make_model(graph)
    return finished(graph, opset)


def squeezenet(seed: int = 0, image: int = 224, batch: Size = 1, opset: int = OPSET) -> ModelProto:
    """SqueezeNet 1.1 (Iandola et al., 2016). Input `data_0` [batch, 3, image, image]."""
    return light("squeezenet", seed, image, batch, opset)


def resnet50(seed: int = 0, batch: Size = 1, opset: int = OPSET) -> ModelProto:
    """ResNet-50 (He et al., 2016). Input `gpu_0/data_0` [batch, 3, 224, 224]."""
    return light("resnet50", seed, 224, batch, opset)


def _give_weights(graph: GraphProto, random: np.random.Generator) -> None:
    """Replace every float weight by seeded values, and leave as inputs of the graph only what is no weight."""
    from onnx import numpy_helper

    stored = {t.name: t for t in graph.initializer}
    shapes: dict[str, tuple[int, ...]] = {name: tuple(t.dims) for name, t in stored.items() if t.data_type == 1}
    fills = [n for n in graph.node if n.op_type == "ConstantOfShape"]
    for node in fills:
        shapes[node.output[0]] = tuple(numpy_helper.to_array(stored[node.input[0]]).tolist())
        graph.node.remove(node)
    users: dict[str, list[tuple[NodeProto, int]]] = {}
    for node in graph.node:
        for position, name in enumerate(node.input):
            users.setdefault(name, []).append((node, position))
    del graph.initializer[:]
    for name, tensor in stored.items():
        if name in users and name not in shapes:
            graph.initializer.append(tensor)
    for name, shape in shapes.items():
        if name in users:
            graph.initializer.append(filled(name, shape, partial(_values, name, shape, users, random)))
    weights = {t.name for t in graph.initializer} | set(stored)
    inputs = [i for i in graph.input if i.name not in weights]
    del graph.input[:]
    graph.input.extend(inputs)


def _values(
    name: str, shape: tuple[int, ...], users: dict[str, list[tuple[NodeProto, int]]], random: np.random.Generator
) -> np.ndarray:
    """Values for a weight by what its first user does with it."""
    node, position = users[name][0]
    while node.op_type in ("Unsqueeze", "Reshape"):
        node, position = users[node.output[0]][0]
    normal = random.standard_normal(shape, dtype=np.float32)
    spread = 0.2 * random.random(shape, dtype=np.float32)
    if node.op_type == "Conv" and position == 1:
        return normal * np.float32(math.sqrt(2 / math.prod(shape[1:])))
    if node.op_type == "Gemm" and position == 1:
        last = node.output[0] not in users
        # Scores stay a few units apart, or Softmax would hide every difference.
        return normal * np.float32((0.2 if last else math.sqrt(2)) / math.sqrt(shape[-1]))
    if node.op_type == "BatchNormalization" and position == 4:
        return 0.5 + 10 * spread
    if (node.op_type, position) in (("BatchNormalization", 1), ("Mul", 1)):
        # A branch that is added to a shortcut gets a small gain, which keeps the sums from growing with depth.
        added = any(user.op_type in ("Sum", "Add") for user, _ in users[node.output[0]])
        gain = 0.5 if added and node.op_type == "BatchNormalization" and not _scaled(node, users) else 1.0
        return np.float32(gain) * (0.9 + spread)
    if position >= 1:
        return np.float32(0.1) * normal
    raise ValueError(f"{name} is read by {node.op_type} in a way that no light model does")


def _scaled(node: NodeProto, users: dict[str, list[tuple[NodeProto, int]]]) -> bool:
    """Whether a Mul and an Add by weights follow, as Caffe's pair of normalisation and scale."""
    return any(user.op_type == "Mul" for user, _ in users[node.output[0]])


def _resize(graph: GraphProto, name: str, image: int, batch: Size) -> None:
    """Set the extents of the input, and the batch in the constant shapes of Reshapes of activations."""
    from onnx import numpy_helper

    stored = {t.name: t for t in graph.initializer}
    picture = next(i for i in graph.input if i.name not in stored)
    dims = picture.type.tensor_type.shape.dim
    weights = {*stored, *(n.output[0] for n in graph.node if n.op_type == "ConstantOfShape")}
    reshapes = [n for n in graph.node if n.op_type == "Reshape" and n.input[0] not in weights]
    if image != dims[2].dim_value and reshapes:
        raise ValueError(f"{name} has a fixed Reshape, so its image must be {dims[2].dim_value}, not {image}")
    dims[2].dim_value, dims[3].dim_value = image, image
    if isinstance(batch, str):
        dims[0].dim_param = batch
    else:
        dims[0].dim_value = batch
    for node in reshapes:
        shape = numpy_helper.to_array(stored[node.input[1]]).copy()
        shape[0] = 0 if isinstance(batch, str) else batch  # 0: as it is
        stored[node.input[1]].CopyFrom(numpy_helper.from_array(shape, node.input[1]))
