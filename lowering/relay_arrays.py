"""Arrays as TVM stores them: parameter files (`relay.save_param_dict`) and the constants of a module's metadata."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from .relay_text import NotRelay

_LIST, _ARRAY = 0xF7E58D4F05049CB7, 0xDD5E40F096B4A13F
_CODES = {0: "int", 1: "uint", 2: "float", 4: "bfloat"}
"""DLPack's codes of element types."""


class _Bytes:
    """A cursor over bytes."""

    def __init__(self, data: bytes, label: str) -> None:
        self.data, self.label, self.at = data, label, 0

    def take(self, n: int) -> bytes:
        if n < 0 or self.at + n > len(self.data):
            raise NotRelay(f"{self.label}: the data ends after {len(self.data)} bytes (is the file truncated?)")
        self.at += n
        return self.data[self.at - n : self.at]

    def numbers(self, form: str) -> tuple[Any, ...]:
        return struct.unpack(f"<{form}", self.take(struct.calcsize(f"<{form}")))


def read_params(data: bytes, label: str = "the parameters") -> dict[str, np.ndarray]:
    """The arrays of a parameter file, by name. Raises `NotRelay` for anything else."""
    cursor = _Bytes(data, label)
    if len(data) < 8 or cursor.numbers("Q")[0] != _LIST:
        raise NotRelay(f"{label}: no parameters as `relay.save_param_dict` writes them")
    cursor.take(8)
    names = [cursor.take(cursor.numbers("Q")[0]).decode(errors="replace") for _ in range(_count(cursor, 8))]
    if _count(cursor, 24) != len(names):
        raise NotRelay(f"{label}: not as many arrays as names (is the file truncated?)")
    return {name: _read(cursor) for name in names}


def _count(cursor: _Bytes, least: int) -> int:
    """A number of things that take so many bytes at least."""
    (n,) = cursor.numbers("Q")
    if n * least > len(cursor.data):
        raise NotRelay(f"{cursor.label}: the data ends after {len(cursor.data)} bytes (is the file truncated?)")
    return int(n)


def written_params(arrays: Mapping[str, np.ndarray]) -> bytes:
    """A parameter file of arrays by name."""
    names = b"".join(struct.pack("<Q", len(n.encode())) + n.encode() for n in arrays)
    count = struct.pack("<Q", len(arrays))
    return struct.pack("<QQ", _LIST, 0) + count + names + count + b"".join(map(_written, arrays.values()))


def _read(cursor: _Bytes) -> np.ndarray:
    magic, _ = cursor.numbers("QQ")
    if magic != _ARRAY:
        raise NotRelay(f"{cursor.label}: an array does not begin as TVM's do")
    cursor.take(8)  # the device
    (rank,) = cursor.numbers("i")
    code, bits, lanes = cursor.numbers("BBH")
    if not 0 <= rank <= 32 or code not in _CODES or lanes != 1:
        raise NotRelay(f"{cursor.label}: an array of rank {rank} and type {code}:{bits}x{lanes}")
    shape = cursor.numbers(f"{rank}q") if rank else ()
    kind = _CODES[code]
    dtype = np.dtype(ml_dtypes.bfloat16) if kind == "bfloat" else np.dtype("bool" if bits == 1 else f"{kind}{bits}")
    (size,) = cursor.numbers("q")
    elements = int(np.prod(shape, dtype=np.int64)) if all(d >= 0 for d in shape) else -1
    if size != elements * dtype.itemsize:
        raise NotRelay(f"{cursor.label}: {size} bytes for an array of shape {list(shape)} of {dtype}")
    return np.frombuffer(cursor.take(size), dtype).reshape(shape).copy()


def _written(array: np.ndarray) -> bytes:
    array = np.asarray(array, order="C")
    if array.dtype == ml_dtypes.bfloat16:
        code, bits = 4, 16
    elif array.dtype == bool:
        code, bits = 1, 1
    else:
        code = {"i": 0, "u": 1, "f": 2}[array.dtype.kind]
        bits = 8 * array.dtype.itemsize
    head = struct.pack("<QQiiiBBH", _ARRAY, 0, 1, 0, array.ndim, code, bits, 1)
    return head + struct.pack(f"<{array.ndim}q", *array.shape) + struct.pack("<q", array.nbytes) + array.tobytes()


def read_metadata(text: str, label: str = "the metadata") -> list[np.ndarray]:
    """The constants of a module's metadata section, in their order."""
    if not text:
        return []
    try:
        told = json.loads(text)
        nodes = told["nodes"]
        root = nodes[told["root"]]
        index = root["data"][root["keys"].index("relay.Constant")]
        arrays = [base64.b64decode(a) for a in told.get("b64ndarrays", [])]
        numbers = [int(nodes[i]["attrs"]["data"]) for i in nodes[index]["data"]]
        return [_read(_Bytes(arrays[n], f"{label}, constant {k}")) for k, n in enumerate(numbers)]
    except (KeyError, ValueError, IndexError, TypeError) as error:
        raise NotRelay(f"{label}: not as TVM writes it ({type(error).__name__}: {error})") from None


def written_metadata(arrays: Sequence[np.ndarray], version: str = "0.15.0") -> str:
    """The metadata section of constants."""
    if not arrays:
        return ""
    nodes: list[dict[str, Any]] = [{"type_key": ""}, {"type_key": "Map", "keys": ["relay.Constant"], "data": [2]}]
    constants: list[int] = []
    nodes.append({"type_key": "Array", "data": constants})

    def add(type_key: str, **rest: Any) -> int:
        nodes.append({"type_key": type_key, **rest})
        return len(nodes) - 1

    scope = add("runtime.String")
    device = add("VirtualDevice", attrs={
        "device_type_int": "-1", "memory_scope": str(scope), "target": "0", "virtual_device_id": "-1",
    })  # fmt: skip
    for k, array in enumerate(arrays):
        extents = [add("IntImm", attrs={"dtype": "int32", "span": "0", "value": str(d)}) for d in array.shape]
        shape = add("Array", **({"data": extents} if extents else {}))
        kind = add("relay.TensorType", attrs={"dtype": str(array.dtype), "shape": str(shape), "span": "0"})
        constants.append(add("relay.Constant", attrs={
            "_checked_type_": str(kind), "data": str(k), "span": "0", "virtual_device_": str(device),
        }))  # fmt: skip
    stored = [base64.b64encode(_written(a)).decode() for a in arrays]
    return json.dumps({"root": 1, "nodes": nodes, "b64ndarrays": stored, "attrs": {"tvm_version": version}}, indent=2)
