"""Tensors and types between ONNX and the graph: dtype names, weights that load late, value infos."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from ..egraph.graph import SMALL, Dimension, TensorType, Weight, content_digest
from ..errors import UserError

UNKNOWN = "undefined"
"""dtype of values whose type is not known or that are no tensors."""

_SPECIAL = {TensorProto.FLOAT: "float32", TensorProto.DOUBLE: "float64", TensorProto.UNDEFINED: UNKNOWN}
_NAMES = {code: _SPECIAL.get(code, name.lower()) for name, code in TensorProto.DataType.items()}
_CODES = {name: code for code, name in _NAMES.items()}
_PLAIN = (
    "float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8",
    "uint64", "uint32", "uint16", "uint8", "bool", "complex64", "complex128",
)  # fmt: skip
"""dtypes whose raw data in ONNX are the array's bytes."""


def dtype_name(code: int) -> str:
    """numpy's name of an ONNX element type."""
    return _NAMES.get(code, UNKNOWN)


def dtype_code(name: str) -> int:
    """The ONNX element type of that name."""
    return _CODES[name]


def numpy_dtype(name: str) -> np.dtype:
    """The numpy (or ml_dtypes) dtype of that name."""
    return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(_CODES[name]))


class Symbols:
    """Names for dimensions that have none: each its own."""

    def __init__(self) -> None:
        self._made = 0

    def fresh(self) -> str:
        self._made += 1
        return f"?{self._made}"


def tensor_type(proto: onnx.TypeProto, symbols: Symbols) -> TensorType | None:
    """The type of a tensor, or None for sequences, maps, sparse tensors and the like."""
    if not proto.HasField("tensor_type"):
        return None
    kind = proto.tensor_type
    dtype = dtype_name(kind.elem_type)
    if not kind.HasField("shape"):
        return TensorType(None, dtype)
    shape: list[Dimension] = []
    for d in kind.shape.dim:
        if d.HasField("dim_value") and d.dim_value >= 0:
            shape.append(d.dim_value)
        else:
            shape.append(d.dim_param or symbols.fresh())
    return TensorType(tuple(shape), dtype)


def value_info(name: str, kind: TensorType) -> onnx.ValueInfoProto:
    """A value info of that type; dimensions that the reader named itself are written without a name."""
    shape = None if kind.shape is None else [None if str(d).startswith("?") else d for d in kind.shape]
    return onnx.helper.make_tensor_value_info(name, dtype_code(kind.dtype), shape)


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """Loads a tensor from its proto; written back unchanged."""

    proto: TensorProto

    def __call__(self) -> np.ndarray:
        return np.asarray(numpy_helper.to_array(self.proto))


@dataclass(frozen=True, eq=False)
class ExternalTensor:
    """Loads a tensor from a data file beside the model, memory-mapped."""

    path: Path
    offset: int
    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> np.ndarray:
        length = prod(self.shape) * numpy_dtype(self.dtype).itemsize
        if not length:
            return np.zeros(0, np.uint8)
        return np.memmap(self.path, np.uint8, "r", self.offset, (length,))

    def __call__(self) -> np.ndarray:
        return self.bytes.view(numpy_dtype(self.dtype)).reshape(self.shape)


@dataclass(frozen=True, eq=False)
class Uniform:
    """Loads a tensor all of whose elements are equal, without storing them; written as ConstantOfShape."""

    value: np.ndarray
    shape: tuple[int, ...]
    name: str = field(default="")

    def __call__(self) -> np.ndarray:
        return np.broadcast_to(self.value.reshape(()), self.shape)


def uniform_weight(value: np.ndarray, shape: tuple[int, ...], name: str) -> Weight:
    """A weight of that shape, filled with one value. Large ones take no memory."""
    dtype = str(value.dtype)
    if prod(shape) <= SMALL:
        return Weight.of(np.full(shape, value.reshape(())), name)
    digest = hashlib.blake2b(f"uniform {dtype}{shape}".encode() + value.tobytes(), digest_size=16).hexdigest()
    return Weight(name, TensorType(shape, dtype), digest, Uniform(value, shape))


def stored_weight(proto: TensorProto, name: str, folder: Path | None) -> Weight:
    """The weight that an initializer or constant stands for; `folder` is where its external data lies."""
    dtype, shape = dtype_name(proto.data_type), tuple(proto.dims)
    if proto.data_location == TensorProto.EXTERNAL:
        external = _external(proto, name, folder)
        if dtype in _PLAIN:
            digest = _digest(dtype, shape, external.bytes.data)
            value = np.array(external()) if prod(shape) <= SMALL else None
            return Weight(name, TensorType(shape, dtype), digest, external, value)
        copy = TensorProto()
        copy.CopyFrom(proto)
        onnx.external_data_helper.load_external_data_for_tensor(copy, str(folder))
        copy.data_location = TensorProto.DEFAULT
        del copy.external_data[:]
        proto = copy
    load = StoredTensor(proto)
    try:
        small = load() if prod(shape) <= SMALL else None
        if proto.raw_data and dtype in _PLAIN:
            if len(proto.raw_data) != prod(shape) * numpy_dtype(dtype).itemsize:
                raise ValueError(f"{len(proto.raw_data)} bytes for {dtype}{list(shape)}")
            digest = _digest(dtype, shape, proto.raw_data)
        else:
            digest = content_digest(load(), dtype)
    except (ValueError, TypeError) as error:
        raise UserError(f"weight {name!r} is damaged: {error}") from error
    if small is not None and small.dtype == object:
        small = None
    return Weight(name, TensorType(shape, dtype), digest, load, small)


def _digest(dtype: str, shape: tuple[int, ...], data: bytes | memoryview) -> str:
    # The same digest as `content_digest` gives for the array, without making the array.
    h = hashlib.blake2b(f"{dtype}{shape}".encode(), digest_size=16)
    h.update(data)
    return h.hexdigest()


def _external(proto: TensorProto, name: str, folder: Path | None) -> ExternalTensor:
    info = {e.key: e.value for e in proto.external_data}
    location = info.get("location", "")
    if folder is None:
        raise UserError(f"weight {name!r} lies in the external file {location!r}: give the model's path, not its bytes")
    # realpath, not the plain path: a link out of the folder is refused like "..", as onnx itself does.
    root = folder.resolve()
    path = (root / location).resolve()
    if not location or Path(location).is_absolute() or not path.is_relative_to(root):
        raise UserError(f"weight {name!r} refers to {location!r}, which is not a file below the model's folder")
    if not path.is_file():
        raise UserError(f"the external data file {location!r} of weight {name!r} is missing from {folder}")
    offset, shape, dtype = int(info.get("offset", 0)), tuple(proto.dims), dtype_name(proto.data_type)
    if dtype in _PLAIN and offset + prod(shape) * numpy_dtype(dtype).itemsize > path.stat().st_size:
        raise UserError(f"the external data file {location!r} is too short for weight {name!r}")
    return ExternalTensor(path, offset, dtype, shape)


def dense(sparse: onnx.SparseTensorProto) -> np.ndarray:
    """A sparse tensor's dense form."""
    values, indices = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
    out = np.zeros(tuple(sparse.dims), values.dtype)
    if indices.ndim == 1:
        out.reshape(-1)[indices] = values
    else:
        out[tuple(indices.T)] = values
    return out


@dataclass(frozen=True)
class OnnxSource:
    """What `onnx_writer` needs to write a graph back the way it came.

    skeleton: the model without nodes, initializers and value infos: versions, functions, metadata, inputs, outputs.
    defaults: initializers of inputs that a caller may override (IR version 4 and later).
    external: whether weights came from an external data file. path: where the model was read from, if from a file.
    """

    skeleton: onnx.ModelProto
    defaults: dict[str, TensorProto]
    external: bool
    path: Path | None

    @property
    def opset(self) -> int:
        """Version of the default operator set (18 if the model imports none)."""
        return next((o.version for o in self.skeleton.opset_import if o.domain in ("", "ai.onnx")), 18)
