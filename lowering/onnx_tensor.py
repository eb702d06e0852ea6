"""Tensors and types between ONNX and the graph: dtype names, weights that load late, value infos."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from ..egraph.dimension import Dimension, Polynomial, substitute, symbol
from ..egraph.graph import SMALL, UNKNOWN, TensorType, Weight, content_digest, made_up
from ..errors import UserError
from .onnx_storage import DataFile, Store, place

if TYPE_CHECKING:
    from .onnx_records import Records

_SPECIAL = {TensorProto.FLOAT: "float32", TensorProto.DOUBLE: "float64", TensorProto.UNDEFINED: UNKNOWN}
_NAMES = {code: _SPECIAL.get(code, name.lower()) for name, code in TensorProto.DataType.items()}
_CODES = {name: code for code, name in _NAMES.items()}
_PLAIN = (
    "float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8",
    "uint64", "uint32", "uint16", "uint8", "bool", "complex64", "complex128",
)  # fmt: skip
"""dtypes whose raw data in ONNX are the array's bytes."""
_BITS = {"uint4": 4, "int4": 4, "float4e2m1": 4, "uint2": 2, "int2": 2, "float6e2m3": 6, "float6e3m2": 6}
"""Of the dtypes that ONNX packs."""


def dtype_name(code: int) -> str:
    """numpy's name of an ONNX element type."""
    return _NAMES.get(code, UNKNOWN)


def dtype_code(name: str) -> int:
    """The ONNX element type of that name."""
    return _CODES[name]


def numpy_dtype(name: str) -> np.dtype:
    """The numpy (or ml_dtypes) dtype of that name."""
    return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(_CODES[name]))


ANONYMOUS = ("", "?", "-1", "None", "none", "unknown")
"""Names that exporters write where a dimension has none: two of them need not be equal."""


def stored_bytes(dtype: str, shape: Iterable[int]) -> int:
    """Bytes of a tensor's raw data in ONNX (strings have none: KeyError)."""
    if dtype == "string":
        raise KeyError(dtype)
    return -(-prod(shape) * _BITS.get(dtype, 8 * numpy_dtype(dtype).itemsize) // 8)


class Symbols:
    """A model's symbolic dimensions: names for those that have none, and what is known of those ONNX made up."""

    def __init__(self) -> None:
        self._made = 0
        self.given: set[str] = set()
        """The symbols of the model's inputs."""
        self.values: dict[str, Dimension] = {}
        """What made-up symbols have turned out to be."""

    def fresh(self) -> str:
        self._made += 1
        return f"?{self._made}"

    def learn(self, old: TensorType, new: TensorType) -> None:
        """Two types of one value: symbols that ONNX's inference made up for the old one are what the new one has."""
        for a, b in zip(old.shape or (), new.shape or (), strict=False):
            a, b = substitute(a, self.values), substitute(b, self.values)
            name = None if isinstance(a, int) else a.name
            if name is None or name in self.given or not made_up(name):
                continue
            if isinstance(b, int) or name not in b.symbols:
                known = {name: b}
                self.values = {other: substitute(d, known) for other, d in self.values.items()} | known


def anonymous(value: str, axis: int) -> str:
    """The symbol for a dimension of an input that has no name."""
    return f"?{value}.{axis}"


def tensor_type(proto: onnx.TypeProto, symbols: Symbols, value: str | None = None) -> TensorType | None:
    """The type of a tensor, or None for sequences, maps, sparse tensors and the like.

    value: name of the model's input that is meant; its unnamed dimensions get symbols by that name.
    """
    if not proto.HasField("tensor_type"):
        return None
    kind = proto.tensor_type
    dtype = dtype_name(kind.elem_type)
    if not kind.HasField("shape"):
        return TensorType(None, dtype)
    shape: list[Dimension] = []
    for axis, d in enumerate(kind.shape.dim):
        if d.HasField("dim_value") and d.dim_value >= 0:
            shape.append(d.dim_value)
        else:
            name = d.dim_param if d.dim_param not in ANONYMOUS else ""
            shape.append(symbol(name or (symbols.fresh() if value is None else anonymous(value, axis))))
    return TensorType(tuple(shape), dtype)


def value_info(name: str, kind: TensorType) -> onnx.ValueInfoProto:
    """A value info of that type; of symbolic dimensions only the model's own names are written."""
    shape = None if kind.shape is None else [d if isinstance(d, int) else _own_name(d) for d in kind.shape]
    return onnx.helper.make_tensor_value_info(name, dtype_code(kind.dtype), shape)


def _own_name(d: Polynomial) -> str | None:
    return d.name if d.name is not None and not made_up(d.name) else None


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """Loads a tensor from its proto; written back unchanged."""

    proto: TensorProto

    def __call__(self) -> np.ndarray:
        return np.asarray(numpy_helper.to_array(self.proto))


@dataclass(frozen=True, eq=False)
class ExternalTensor:
    """Loads a tensor from a file, memory-mapped; copied from there when it is written.

    proto: name, type and documentation, without the data.
    """

    proto: TensorProto
    file: DataFile
    offset: int
    length: int

    def chunks(self) -> Iterator[bytes]:
        """The raw data piece by piece."""
        return self.file.chunks(self.offset, self.length)

    def __call__(self) -> np.ndarray:
        dtype = dtype_name(self.proto.data_type)
        if dtype not in _PLAIN:
            proto = TensorProto(data_type=self.proto.data_type, dims=self.proto.dims, raw_data=b"".join(self.chunks()))
            return np.asarray(numpy_helper.to_array(proto))
        array = self.file.map(self.offset, self.length).view(numpy_dtype(dtype)).reshape(tuple(self.proto.dims))
        return array if array.flags.aligned else array.copy()


def copy_header(proto: TensorProto, to: TensorProto) -> None:
    """Copy type, extents, name and documentation, not the data and not where they lie."""
    for key in ("data_type", "name", "doc_string"):
        if proto.HasField(key):
            setattr(to, key, getattr(proto, key))
    to.dims.extend(proto.dims)
    if hasattr(proto, "metadata_props"):  # since onnx 1.17
        to.metadata_props.extend(proto.metadata_props)


@dataclass(frozen=True, eq=False)
class RawData:
    """The raw data of a weight, made or read only when they are written: `length` bytes."""

    load: Callable[[], np.ndarray]
    length: int

    def chunks(self) -> Iterator[bytes | memoryview]:
        """The data piece by piece."""
        if isinstance(self.load, ExternalTensor):
            yield from self.load.chunks()
            return
        array = np.asarray(self.load(), order="C")
        assert array.nbytes == self.length, f"{array.nbytes} bytes, not {self.length}"
        yield array.reshape(-1).view(np.uint8).data


def raw_data(weight: Weight) -> RawData | None:
    """The raw data of a weight, or None for types that are not stored as arrays have them."""
    dtype = weight.type.dtype
    if dtype not in _PLAIN and not (isinstance(weight.load, ExternalTensor)):
        return None
    shape = weight.type.shape or ()
    return RawData(weight.load, stored_bytes(dtype, (d for d in shape if isinstance(d, int))))


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


def stored_weight(proto: TensorProto, name: str, store: Store | None) -> Weight:
    """The weight that an initializer or constant stands for; `store` is where the model's external data lie.

    Raises `UserError` if its type, extents or data are not those of a tensor, or its data cannot be found.
    """
    dtype, shape = dtype_name(proto.data_type), tuple(proto.dims)
    if dtype == UNKNOWN or any(d < 0 for d in shape):
        what = f"the element type {proto.data_type}" if dtype == UNKNOWN else f"the shape {list(shape)}"
        raise UserError(f"weight {name!r} is damaged: it has {what}")
    if proto.data_location == TensorProto.EXTERNAL:
        if dtype == "string":
            raise UserError(f"weight {name!r} is damaged: strings cannot lie in an external file")
        length = stored_bytes(dtype, shape)
        header = TensorProto()
        copy_header(proto, header)
        external = ExternalTensor(header, *place(proto, name, length, store), length)
        value = np.array(external()) if prod(shape) <= SMALL else None
        return Weight(name, TensorType(shape, dtype), _digest(dtype, shape, external.chunks()), external, value)
    load = StoredTensor(proto)
    try:
        small = load() if prod(shape) <= SMALL else None
        raw = proto.raw_data
        if raw and dtype != "string":
            if len(raw) != stored_bytes(dtype, shape):
                raise ValueError(f"{len(raw)} bytes for {dtype}{list(shape)}")
            digest = _digest(dtype, shape, (raw,))
        else:
            digest = content_digest(load(), dtype)
    except (ValueError, TypeError) as error:
        raise UserError(f"weight {name!r} is damaged: {error}") from error
    if small is not None and small.dtype == object:
        small = None
    return Weight(name, TensorType(shape, dtype), digest, load, small)


def _digest(dtype: str, shape: tuple[int, ...], data: Iterable[bytes]) -> str:
    # The same digest as `content_digest` gives for the array, without making the array.
    h = hashlib.blake2b(f"{dtype}{shape}".encode(), digest_size=16)
    for piece in data:
        h.update(piece)
    return h.hexdigest()


DENSE_LIMIT = 1 << 31
"""Bytes up to which a sparse tensor is made dense: a few bytes of a file can stand for any number."""


def dense(sparse: onnx.SparseTensorProto) -> np.ndarray:
    """A sparse tensor's dense form. Raises `UserError` if its parts do not fit together or it would exceed 2 GiB."""
    name, shape = sparse.values.name, tuple(sparse.dims)
    for part in (sparse.values, sparse.indices):
        if part.data_location == TensorProto.EXTERNAL:
            raise UserError(f"sparse weight {name!r} lies in an external file, which is not supported")
    try:
        values, indices = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
        if any(d < 0 for d in shape):
            raise ValueError(f"it has the shape {list(shape)}")
        if prod(shape) * values.itemsize > DENSE_LIMIT:
            raise UserError(
                f"sparse weight {name!r} of shape {list(shape)} would take {prod(shape) * values.itemsize} bytes; "
                f"up to {DENSE_LIMIT} are supported"
            )
        if values.ndim != 1 or len(indices) != len(values):
            raise ValueError(f"{values.size} values at {len(indices)} places")
        out = np.zeros(shape, values.dtype)
        if (indices < 0).any():
            raise IndexError("an index is negative")
        if indices.ndim == 1:
            out.reshape(-1)[indices] = values
        elif indices.ndim == 2 and indices.shape[1] == len(shape):
            out[tuple(indices.T)] = values
        else:
            raise ValueError(f"places of shape {list(indices.shape)} in a tensor of rank {len(shape)}")
    except (ValueError, TypeError, IndexError, KeyError) as error:
        raise UserError(f"sparse weight {name!r} is damaged: {error}") from error
    return out


@dataclass(frozen=True)
class OnnxSource:
    """What `onnx_writer` needs to write a graph back the way it came.

    skeleton: the model without nodes, initializers and value infos: versions, functions, metadata, inputs, outputs.
    defaults: initializers of inputs that a caller may override (IR version 4 and later).
    external: whether weights came from an external data file. path: where the model was read from, if from a file.
    store: where its weights lie, if it was read from a file. records: names and documentation of nodes and values.
    contrib: whether operators of com.microsoft, which only ONNX Runtime has, may be introduced. lacking: operators that
    may not be introduced, because the runtime that the graph is meant for has them not.
    """

    skeleton: onnx.ModelProto
    defaults: dict[str, TensorProto]
    external: bool
    path: Path | None
    store: Store | None = field(default=None, repr=False)
    records: Records | None = field(default=None, repr=False)
    contrib: bool = False
    lacking: tuple[str, ...] = ()

    def writes(self, op: str) -> bool:
        """Whether a rule may introduce this core operator: the model's opset has it, or the runtime it is meant for."""
        from .onnx_forms import reachable

        return op not in self.lacking and reachable(op, self.opset, self.contrib)

    def forbids(self, op: str) -> bool:
        """Whether this operator, which a rule may introduce, is only a step on the way to one that can be written."""
        from .onnx_forms import STEPS, available

        return op in STEPS and not available(op, self.opset, self.contrib)

    @property
    def opset(self) -> int:
        """Version of the default operator set (18 if the model imports none)."""
        return next((o.version for o in self.skeleton.opset_import if o.domain in ("", "ai.onnx")), 18)

    @property
    def altered(self) -> bool:
        """Whether this is no longer the model that was read: specialised, or converted to another opset."""
        return self.records is not None and (self.records.specialised or self.records.converted_from is not None)

    @property
    def converted_from(self) -> int | None:
        """The opset that the model had, if it was converted to another one."""
        return None if self.records is None else self.records.converted_from
