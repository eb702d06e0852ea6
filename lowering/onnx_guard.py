"""What stands between damaged files and the reader: what a file seems to be, names that are no text, surprises."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod

import onnx
from onnx import GraphProto, ModelProto, TensorProto

from ..errors import UserError
from .onnx_bodies import subgraphs

_FEW = 4096
"""Elements of tensors that are too small to do harm."""

_EXPORT = "export it with torch.onnx.export"
_SIGNATURES: tuple[tuple[int, bytes, str], ...] = (
    (0, b"PK\x03\x04", f"a zip archive; if it is a PyTorch checkpoint (.pt), {_EXPORT}"),
    (0, b"\x80\x02", f"a pickle; if it is a PyTorch checkpoint (.pt), {_EXPORT}"),
    (0, b"\x80\x04", f"a pickle; if it is a PyTorch checkpoint (.pt), {_EXPORT}"),
    (0, b"\x89HDF\r\n", "an HDF5 file; if it is a Keras model, convert it with tf2onnx"),
    (4, b"TFL3", "a TensorFlow Lite model; convert it with tf2onnx"),
    (4, b"ORTM", "a model in ONNX Runtime's own format; give the ONNX file that it was made of"),
    (0, b"GGUF", "a GGUF file, which holds weights and no graph"),
    (0, b"\x93NUMPY", "a numpy array"),
    (0, b"\x1f\x8b", "a gzip archive; unpack it first"),
    (0, b"\x89PNG", "a PNG image"),
    (0, b"\x7fELF", "a program or shared library"),
    (0, b"version https://git-lfs", "a pointer of git-lfs; fetch the file itself with `git lfs pull`"),
)


class Unforeseen(UserError):
    """A model that could not be read, for a reason that no check names."""


def seems(data: bytes) -> str | None:
    """What a file that is no ONNX model looks like, by its first bytes, and what to do about it."""
    for offset, signature, what in _SIGNATURES:
        if data[offset : offset + len(signature)] == signature:
            return what
    length = int.from_bytes(data[:8], "little")
    if len(data) > 8 and length < len(data) and data[8:9] == b"{":
        try:
            json.loads(data[8 : 8 + length])
        except ValueError:
            pass
        else:
            return "a safetensors file, which holds weights and no graph"
    try:
        head = data[:512].decode()
    except UnicodeDecodeError:
        return None
    return "a text file" if all(c.isprintable() or c in "\r\n\t" for c in head) else None


def not_a_model(label: str, data: bytes, otherwise: str) -> UserError:
    """The refusal of a file that is no ONNX model."""
    what = seems(data)
    return UserError(f"{label}: not an ONNX model but, it seems, {what}" if what else f"{label}: {otherwise}")


def check_text(model: ModelProto, label: str) -> None:
    """Raise `UserError` if a name in the model is not UTF-8 text, as ONNX demands: protobuf hands it out as bytes."""
    for place, text in _texts(model):
        if isinstance(text, bytes):
            raise UserError(f"{label}: {place} is {text[:40]!r}, which is no UTF-8 text; the file is damaged")


def _texts(model: ModelProto) -> Iterator[tuple[str, object]]:
    for imported in model.opset_import:
        yield "the domain of an opset", imported.domain
    for function in model.functions:
        yield from (("the name of a function", t) for t in (function.name, function.domain))
        yield from (("a value of a function", t) for t in (*function.input, *function.output))
        yield from _texts_of(function)
        for imported in function.opset_import:
            yield "the domain of an opset", imported.domain
    yield from _texts_of(model.graph)


def _texts_of(root: GraphProto | onnx.FunctionProto) -> Iterator[tuple[str, object]]:
    waiting: list[GraphProto | onnx.FunctionProto] = [root]
    while waiting:
        scope = waiting.pop()
        for number, node in enumerate(scope.node):
            place = f"a name in node {number}"
            yield place, node.op_type
            yield place, node.domain
            yield place, node.name
            yield place, node.doc_string
            yield from ((place, name) for name in node.input)
            yield from ((place, name) for name in node.output)
            for attribute in node.attribute:
                yield place, attribute.name
                yield place, attribute.ref_attr_name
            waiting.extend(subgraphs(node))
        for tensor in _tensors_of(scope):
            yield "the name of a weight", tensor.name
            for entry in tensor.external_data:
                yield "where a weight lies", entry.key
                yield "where a weight lies", entry.value
        if isinstance(scope, GraphProto):
            yield "the name of a graph", scope.name
            for info in (*scope.input, *scope.output, *scope.value_info):
                yield "the name of a value", info.name
                for d in info.type.tensor_type.shape.dim:
                    yield "the name of a dimension", d.dim_param


def check_sizes(model: ModelProto, label: str) -> None:
    """Raise `UserError` if a tensor claims far more elements than its bytes can hold.

    ONNX's shape inference would take memory for all of them.
    """
    waiting: list[GraphProto | onnx.FunctionProto] = [model.graph, *model.functions]
    while waiting:
        scope = waiting.pop()
        for tensor in _tensors_of(scope):
            elements = prod(tensor.dims)
            if elements > _FEW and tensor.data_location != TensorProto.EXTERNAL:
                held = tensor.ByteSize()
                if elements > 2 * held:  # two elements of four bits in a byte
                    raise UserError(
                        f"{label}: weight {tensor.name!r} is damaged: it has the shape {list(tensor.dims)} and holds "
                        f"{held} bytes"
                    )
        waiting.extend(body for node in scope.node for body in subgraphs(node))


def _tensors_of(scope: GraphProto | onnx.FunctionProto) -> Iterator[TensorProto]:
    """The tensors of a graph and of its nodes' attributes, without those of bodies."""
    if isinstance(scope, GraphProto):
        yield from scope.initializer
        for sparse in scope.sparse_initializer:
            yield sparse.values
            yield sparse.indices
    for node in scope.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            if attribute.HasField("sparse_tensor"):
                yield attribute.sparse_tensor.values
                yield attribute.sparse_tensor.indices


def _at(node: onnx.NodeProto | None) -> str:
    """How messages name a node: by its name, or by its first output."""
    if node is None:
        return ""
    name = f"node {node.name!r}" if node.name else f"the node of {node.output[0]!r}" if node.output else "a node"
    return f" ({name}, {node.op_type})"


@contextmanager
def guarded(label: str, node: onnx.NodeProto | None = None) -> Iterator[None]:
    """Let every exception of the block be a `UserError` of one line that names the model.

    Those that no check names become `Unforeseen`. node: what is being read.
    """
    try:
        yield
    except UserError as error:
        if label in str(error) or type(error) is not UserError:
            raise
        raise UserError(f"{label}: {error}") from error
    except RecursionError as error:
        raise UserError(f"{label} could not be read: bodies or functions are nested too deep") from error
    except MemoryError as error:
        raise UserError(f"{label} could not be read: not enough memory{_at(node)}") from error
    except Exception as error:
        what = " ".join(str(error).split())[:200]
        raise Unforeseen(
            f"{label} could not be read: {type(error).__name__}: {what}{_at(node)}; --debug shows where it failed"
        ) from error
