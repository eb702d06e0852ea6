"""Writes an ONNX model node by node: names, seeded weights, and the layers that several models share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto

OPSET = 18
"""Opset of the models built here, unless another is asked for; exporters write 17 to 20 by default."""

IR_VERSIONS = {9: 4, 10: 5, 11: 6, 12: 7, 13: 7, 14: 7, 15: 8, 16: 8, 17: 8, 18: 8, 19: 9, 20: 9, 21: 10, 22: 10}
"""For each opset the IR version of the ONNX release that brought it."""

Size = int | str
"""An extent: a number, or the name of a symbol that stands for any number."""

SMALL = 1024
"""Tensors up to this many elements are kept in an outline: shapes, axes and scalars are among them."""

LARGEST = 2_000_000_000
"""Bytes of weights that go into one file: protobuf's limit is 2 GiB."""

OLDEST = 13
"""The oldest opset that the builder writes: since then Unsqueeze takes its axes as an input."""


_outline: ContextVar[bool] = ContextVar("outline", default=False)


@contextmanager
def outline() -> Iterator[None]:
    """Models built inside have their large weights without values and are not checked: quick, for counting only."""
    token = _outline.set(True)
    try:
        yield
    finally:
        _outline.reset(token)


def outlined() -> bool:
    """Whether only an outline is wanted."""
    return _outline.get()


def filled(name: str, shape: Sequence[int], values: Callable[[], np.ndarray]) -> TensorProto:
    """A float32 tensor of these values; in an outline one without values, unless it is small."""
    import onnx

    if outlined() and math.prod(shape) > SMALL:
        return onnx.TensorProto(name=name, dims=shape, data_type=onnx.TensorProto.FLOAT)
    return onnx.numpy_helper.from_array(np.asarray(values(), dtype=np.float32), name)


class Builder:
    """One model under construction. Values are passed around by name.

    Weights are drawn from one `numpy.random.Generator` in the order in which they are asked for, so the same calls
    with the same seed make the same bytes.

    >>> b = Builder("example", seed=0)
    >>> x = b.input("x", (1, 8))
    >>> y = b.op("Relu", b.linear(x, 8, 4))
    >>> model = b.build({"y": y})
    """

    def __init__(self, name: str, seed: int = 0, opset: int = OPSET) -> None:
        if not OLDEST <= opset <= max(IR_VERSIONS):
            raise ValueError(f"opset {opset} is not one of {OLDEST} to {max(IR_VERSIONS)}")
        self.name = name
        self.opset = opset
        self.random = np.random.default_rng(seed)
        self.nodes: list[NodeProto] = []
        self.inputs: list[ValueInfoProto] = []
        self.initializers: dict[str, TensorProto] = {}
        self.scopes: list[str] = []
        self._taken: dict[str, int] = {}
        self._weights = 0

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Names made inside start with `name` and a slash."""
        self.scopes.append(name)
        try:
            yield
        finally:
            self.scopes.pop()

    def numbered(self, name: str) -> AbstractContextManager[None]:
        """A scope of this name, which gets a number where the name is taken."""
        return self.scope(self.fresh(name)[len("/".join([*self.scopes, ""])) :])

    def fresh(self, name: str) -> str:
        """A name that is not taken, in the current scope."""
        full = "/".join([*self.scopes, name])
        seen = self._taken.get(full, 0)
        self._taken[full] = seen + 1
        return f"{full}_{seen}" if seen else full

    # -- leaves ------------------------------------------------------------------------------------------------

    def input(self, name: str, shape: Sequence[int | str], dtype: str = "float32") -> str:
        """A graph input; strings among the dimensions are symbols."""
        import onnx

        kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        self.inputs.append(onnx.helper.make_tensor_value_info(name, kind, list(shape)))
        self._taken[name] = 1
        return name

    def constant(self, value: Any, name: str = "constant", dtype: str = "float32") -> str:
        """An initializer with this value."""
        import onnx

        full = self.fresh(name)
        self.initializers[full] = onnx.numpy_helper.from_array(np.asarray(value, dtype=dtype), full)
        return full

    def drawn(self, shape: Sequence[int], values: Callable[[], np.ndarray], name: str = "weight") -> str:
        """A float32 initializer of this shape with the values that a function draws."""
        self._weights += math.prod(shape)
        if not outlined() and 4 * self._weights > LARGEST:
            raise ValueError(
                f"over {LARGEST // 10**9} GB of weights do not fit into one ONNX file; choose smaller sizes"
            )
        full = self.fresh(name)
        self.initializers[full] = filled(full, shape, values)
        return full

    def weight(self, shape: Sequence[int], std: float = 1.0, mean: float = 0.0, name: str = "weight") -> str:
        """A float32 initializer drawn from a normal distribution."""
        shape = tuple(shape)
        return self.drawn(shape, lambda: mean + std * self.random.standard_normal(shape, dtype=np.float32), name)

    # -- operators ---------------------------------------------------------------------------------------------

    def op(self, op: str, *inputs: str, name: str | None = None, **attributes: Any) -> str:
        """Add an operator with one output and return the output's name."""
        return self.ops(op, *inputs, outputs=1, name=name, **attributes)[0]

    def ops(self, op: str, *inputs: str, outputs: int, name: str | None = None, **attributes: Any) -> list[str]:
        """Add an operator with any number of outputs and return their names."""
        import onnx

        full = self.fresh(name or op)
        names = [full] if outputs == 1 else [f"{full}.{i}" for i in range(outputs)]
        self.nodes.append(onnx.helper.make_node(op, list(inputs), names, name=full, **attributes))
        return names

    def reshape(self, x: str, shape: Sequence[Size]) -> str:
        """Reshape; where `shape` has a symbol `x` must have it at the same position, for it is written as 0."""
        return self.op("Reshape", x, self.constant([0 if isinstance(d, str) else d for d in shape], "shape", "int64"))

    def extent(self, x: str, axis: int) -> str:
        """The extent of an axis as an int64 vector of one element, by Shape and Gather as exporters write it."""
        return self.op("Gather", self.op("Shape", x), self.constant([axis], "axis", "int64"), axis=0)

    def expand(self, x: str, shape: Sequence[Size], like: str) -> str:
        """Expand to a shape whose symbols are those that the value `like` has at the same positions."""
        if not any(isinstance(d, str) for d in shape):
            return self.op("Expand", x, self.constant(list(shape), "shape", "int64"))
        parts = [
            self.extent(like, i) if isinstance(d, str) else self.constant([d], "extent", "int64")
            for i, d in enumerate(shape)
        ]
        return self.op("Expand", x, self.op("Concat", *parts, axis=0))

    def prefix(self, x: str, axis: int, count: str) -> str:
        """The first entries along an axis; `count` is an int64 vector of one element."""
        start, axes = self.constant([0], "starts", "int64"), self.constant([axis], "axes", "int64")
        return self.op("Slice", x, start, count, axes)

    def split(self, x: str, axis: int, sizes: Sequence[int]) -> list[str]:
        return self.ops("Split", x, self.constant(list(sizes), "sizes", "int64"), outputs=len(sizes), axis=axis)

    def slice(self, x: str, axis: int, start: int, end: int) -> str:
        ends = [self.constant([v], n, "int64") for v, n in ((start, "starts"), (end, "ends"), (axis, "axes"))]
        return self.op("Slice", x, *ends)

    def mean(self, x: str, *axes: int, keepdims: int = 1) -> str:
        """ReduceMean over these axes, which are an attribute before opset 18 and an input since."""
        if self.opset < 18:
            return self.op("ReduceMean", x, axes=list(axes), keepdims=keepdims)
        return self.op("ReduceMean", x, self.constant(list(axes), "axes", "int64"), keepdims=keepdims)

    # -- layers ------------------------------------------------------------------------------------------------

    def linear(
        self, x: str, width_in: int, width_out: int, name: str = "linear", bias: bool = True, gain: float = 1.0
    ) -> str:
        """`x @ w + b` as the exporters write it: MatMul, then Add with the bias first. `gain` multiplies the weight."""
        with self.scope(name):
            y = self.op("MatMul", x, self.weight((width_in, width_out), gain / math.sqrt(width_in)))
            return self.op("Add", self.weight((width_out,), 0.1, name="bias"), y) if bias else y

    def layer_norm(self, x: str, width: int, name: str = "norm", epsilon: float = 1e-12) -> str:
        """LayerNormalization over the last axis; below opset 17, where the operator begins, its decomposed form."""
        with self.scope(name):
            scale, bias = self.weight((width,), 0.1, 1.0, "scale"), self.weight((width,), 0.1, name="bias")
            if self.opset >= 17:
                return self.op("LayerNormalization", x, scale, bias, axis=-1, epsilon=epsilon)
            centred = self.op("Sub", x, self.mean(x, -1))
            variance = self.mean(self.op("Pow", centred, self.constant(2.0, "two")), -1)
            deviation = self.op("Sqrt", self.op("Add", variance, self.constant(epsilon, "epsilon")))
            return self.op("Add", self.op("Mul", self.op("Div", centred, deviation), scale), bias)

    def gelu(self, x: str) -> str:
        """The exact GELU, x / 2 · (1 + erf(x / √2)), by elementary operators."""
        with self.scope("gelu"):
            erf = self.op("Erf", self.op("Div", x, self.constant(math.sqrt(2), "sqrt2")))
            gate = self.op("Mul", x, self.op("Add", erf, self.constant(1.0, "one")))
            return self.op("Mul", gate, self.constant(0.5, "half"))

    def conv(
        self, x: str, channels_in: int, channels_out: int, kernel: int | tuple[int, int] = 1, stride: int = 1,
        pad: int | None = None, group: int = 1, bias: bool = True, name: str = "conv", gain: float = 1.0,
    ) -> str:  # fmt: skip
        """Convolution; `pad` is that of all sides and defaults to half the kernel, which keeps extents at stride 1."""
        tall, wide = kernel if isinstance(kernel, tuple) else (kernel, kernel)
        pads = [tall // 2, wide // 2] * 2 if pad is None else [pad] * 4
        fan_in = channels_in // group * tall * wide
        with self.scope(name):
            std = gain * math.sqrt(2 / fan_in)
            operands = [x, self.weight((channels_out, channels_in // group, tall, wide), std)]
            if bias:
                operands.append(self.weight((channels_out,), 0.1, name="bias"))
            return self.op("Conv", *operands, kernel_shape=[tall, wide], strides=[stride] * 2, pads=pads, group=group)

    def pool(self, op: str, x: str, kernel: int, stride: int, pad: int = 0, **attributes: Any) -> str:
        """MaxPool or AveragePool with a square window."""
        return self.op(op, x, kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[pad] * 4, **attributes)

    def classifier(self, x: str, batch: Size, channels: int, classes: int) -> str:
        """Mean over the picture, then scores by Gemm."""
        with self.scope("classifier"):
            return self.gemm(self.reshape(self.op("GlobalAveragePool", x), (batch, channels)), channels, classes)

    def gemm(self, x: str, width_in: int, width_out: int, gain: float = 1.0) -> str:
        """A biased linear layer on [rows, width_in] as exporters write it: Gemm with a transposed weight."""
        weight, bias = (
            self.weight((width_out, width_in), gain * width_in**-0.5),
            self.weight((width_out,), 0.1, name="bias"),
        )
        return self.op("Gemm", x, weight, bias, transB=1)

    def batch_norm(self, x: str, channels: int, gain: float = 1.0, name: str = "norm") -> str:
        """BatchNormalization at inference, with random statistics of positive variance; `gain` multiplies the scale."""
        with self.scope(name):
            uniform = self.random.uniform
            scale = self.drawn((channels,), lambda: gain * uniform(0.8, 1.2, channels), "scale")
            bias = self.weight((channels,), 0.1, name="bias")
            mean = self.weight((channels,), 0.1, name="mean")
            variance = self.drawn((channels,), lambda: uniform(0.5, 2.5, channels), "variance")
            return self.op("BatchNormalization", x, scale, bias, mean, variance, epsilon=1e-5)

    # -- the end -----------------------------------------------------------------------------------------------

    def build(self, outputs: dict[str, str]) -> ModelProto:
        """The model with these outputs (name → value), checked in full and with every output's type inferred.

        Outputs are the values themselves under their new names; a value may be an output once.
        """
        import onnx

        if outlined():
            return onnx.helper.make_model(
                onnx.helper.make_graph(self.nodes, self.name, self.inputs, [], list(self.initializers.values()))
            )
        renamed = {value: name for name, value in outputs.items()}
        if len(renamed) != len(outputs):
            raise ValueError("a value can be an output only once")
        for node in self.nodes:
            for field in (node.input, node.output):
                for i, value in enumerate(field):
                    field[i] = renamed.get(value, value)
        declared = [onnx.ValueInfoProto(name=name) for name in outputs]
        graph = onnx.helper.make_graph(self.nodes, self.name, self.inputs, declared, list(self.initializers.values()))
        return finished(graph, self.opset)


def finished(graph: GraphProto, opset: int) -> ModelProto:
    """A model of this graph at this opset: outputs typed by strict shape inference, checked in full."""
    import onnx

    opsets = [onnx.helper.make_opsetid("", opset)]
    model = onnx.helper.make_model(
        graph, producer_name="xrlflow.zoo", opset_imports=opsets, ir_version=IR_VERSIONS[opset]
    )
    # Both checks copy the model several times, so they get it without the data of its large weights.
    skeleton = onnx.GraphProto(name=graph.name, node=graph.node, input=graph.input, output=graph.output)
    for tensor in graph.initializer:
        if math.prod(tensor.dims) > SMALL:
            skeleton.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
        else:
            skeleton.initializer.append(tensor)
    bare = onnx.helper.make_model(skeleton, opset_imports=opsets, ir_version=IR_VERSIONS[opset])
    inferred = onnx.shape_inference.infer_shapes(bare, check_type=True, strict_mode=True, data_prop=True).graph
    types = {v.name: v for v in (*inferred.output, *inferred.value_info)}
    for output, unchecked in zip(model.graph.output, bare.graph.output, strict=True):
        output.CopyFrom(types[output.name])
        for dim in output.type.tensor_type.shape.dim:
            if dim.dim_param.startswith("unk__"):  # a name that inference made up
                dim.ClearField("dim_param")
        unchecked.CopyFrom(output)
    onnx.checker.check_model(bare, full_check=True)
    return model
