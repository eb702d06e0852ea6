"""Protobuf's wire format, as far as it takes to leave large tensors in a file when a model is read or written.

A message is a sequence of fields: a varint tag (number and wire type), for wire type 2 a varint length, the payload.
Fields may come in any order; those of nested messages that occur twice are merged.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import BinaryIO, Protocol

from onnx import ModelProto, TensorProto

LARGE = 1 << 16
"""Bytes of raw data from which a tensor stays in its file."""

_GRAPH, _INITIALIZER, _RAW_DATA = 7, 5, 9  # of ModelProto, GraphProto, TensorProto
_EXTERNAL, _LOCATION = 13, 14  # of TensorProto

# What to look into: the graph, its initializers, and the tensors in its nodes' attributes. Bodies are left alone.
_INTO: dict[str, dict[int, str]] = {
    "model": {_GRAPH: "graph"},
    "graph": {1: "node", _INITIALIZER: "tensor"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor"},
}


class _Odd(ValueError):
    """Not the wire format, or a form of it that is left to protobuf."""


def skim(data: memoryview, name: str) -> bytes | None:
    """The serialised model without its large raw data: those tensors become external ones.

    data: a serialised `ModelProto`; `name` is what its file is called, the location that such tensors get. Returns
    None if the data are not well-formed, or in a way that is better left to protobuf.
    """
    try:
        name.encode()
        return b"".join(_message(data, 0, len(data), "model", name))
    except (_Odd, UnicodeError):
        return None


def _varint(data: memoryview, at: int, end: int) -> tuple[int, int]:
    """The number at this position, and where it ends."""
    value = 0
    for k, byte in enumerate(data[at : min(end, at + 10)]):
        value |= (byte & 0x7F) << (7 * k)
        if byte < 0x80:
            return value, at + k + 1
    raise _Odd


def _fields(data: memoryview, at: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """(number, begin, payload's begin, end) of a message's fields; the number is 0 for wire types other than 2."""
    while at < end:
        begin = at
        tag, at = _varint(data, at, end)
        payload = at
        kind = tag & 7
        if kind == 0:
            _, at = _varint(data, at, end)
        elif kind == 1:
            at += 8
        elif kind == 2:
            length, payload = _varint(data, at, end)
            at = payload + length
        elif kind == 5:
            at += 4
        else:
            raise _Odd  # groups, which ONNX has none of
        if at > end:
            raise _Odd
        yield (tag >> 3 if kind == 2 else 0), begin, payload, at


def _message(data: memoryview, at: int, end: int, kind: str, name: str) -> list[bytes | memoryview]:
    """A message in pieces, its large tensors cut out."""
    if kind == "tensor":
        return _tensor(data, at, end, name)
    pieces: list[bytes | memoryview] = []
    copied = at
    for number, begin, payload, stop in _fields(data, at, end):
        inner = _INTO[kind].get(number)
        if inner is not None and stop - payload >= LARGE:
            parts = _message(data, payload, stop, inner, name)
            pieces += [data[copied:begin], head(number, sum(map(len, parts))), *parts]
            copied = stop
    pieces.append(data[copied:end])
    return pieces


def _tensor(data: memoryview, at: int, end: int, name: str) -> list[bytes | memoryview]:
    raw = [(begin, payload, stop) for n, begin, payload, stop in _fields(data, at, end) if n == _RAW_DATA]
    if len(raw) != 1 or raw[0][2] - raw[0][1] < LARGE:
        return [data[at:end]]
    begin, payload, stop = raw[0]
    rest = bytes(data[at:begin]) + bytes(data[stop:end])
    header = TensorProto()
    try:
        header.ParseFromString(rest)
    except Exception as error:  # protobuf raises several types
        raise _Odd from error
    if header.external_data or header.data_location != TensorProto.DEFAULT:
        return [data[at:end]]
    where = TensorProto(data_location=TensorProto.EXTERNAL)
    for key, value in (("location", name), ("offset", payload), ("length", stop - payload)):
        where.external_data.add(key=key, value=str(value))
    return [rest, where.SerializeToString()]


def head(number: int, length: int) -> bytes:
    """What stands before a nested message, string or bytes of that many bytes."""
    out = bytearray()
    for value in (number << 3 | 2, length):
        while value >= 0x80:
            out.append(value & 0x7F | 0x80)
            value >>= 7
        out.append(value)
    return bytes(out)


class Payload(Protocol):
    """Raw data of a tensor that are written piece by piece."""

    @property
    def length(self) -> int: ...
    def chunks(self) -> Iterator[bytes | memoryview]: ...


def size(model: ModelProto, payloads: Mapping[str, Payload]) -> int:
    """Bytes that `write` will write, within a few bytes for each tensor."""
    return model.ByteSize() + sum(p.length + 16 for p in payloads.values())


def write(model: ModelProto, payloads: Mapping[str, Payload], stream: BinaryIO) -> None:
    """Serialise a model of which some initializers, by name, have no data yet: `payloads` are their raw data.

    One payload at a time is in memory. The model is emptied on the way.
    """
    tensors = list(model.graph.initializer)
    del model.graph.initializer[:]
    graph = model.graph.SerializeToString(deterministic=True)
    model.ClearField("graph")
    heads: list[bytes] = []
    length = len(graph)
    for tensor in tensors:
        payload = payloads.get(tensor.name)
        rest = tensor.SerializeToString(deterministic=True) + head(_RAW_DATA, payload.length) if payload else b""
        inner = len(rest) + payload.length if payload else tensor.ByteSize()
        heads.append(head(_INITIALIZER, inner) + rest)
        length += len(heads[-1]) - len(rest) + inner
    stream.write(model.SerializeToString(deterministic=True))
    stream.write(head(_GRAPH, length))
    stream.write(graph)
    for tensor, before in zip(tensors, heads, strict=True):
        stream.write(before)
        payload = payloads.get(tensor.name)
        stream.writelines(payload.chunks() if payload else (tensor.SerializeToString(deterministic=True),))
