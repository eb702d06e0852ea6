"""ONNX files and their data files: written by streaming, copied, and put in place together or not at all.

A model may be saved over the file that it was read from: its weights stay readable, for `onnx_storage` holds their
files open, and nothing is put in place before all is written.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from google.protobuf.message import EncodeError
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto

from ..egraph.graph import Graph, Weight
from ..errors import UserError
from .onnx_storage import Store, read
from .onnx_tensor import OnnxSource, RawData, StoredTensor, Uniform, raw_data
from .onnx_wire import LARGE, size, write
from .onnx_writer import Writer

EXTERNAL_LIMIT = (1 << 31) - (1 << 26)
"""Bytes of weights beyond which they go to a data file: protobuf messages end at 2 GiB."""

RESIDENT = 1 << 28
"""Bytes beyond which a model that is only written to be run goes to files, so that its weights can be mapped."""

MAPPED = 1024
"""Least bytes of a weight that goes to a data file; runtimes want to see smaller ones, such as axes, in the model."""

PAGE = 4096
"""Alignment of tensors in a data file, so that readers can map each."""


def save(graph: Graph, path: str | os.PathLike[str], fold: bool = True, external: bool | None = None) -> None:
    """Write the graph to `path`, its constant expressions folded unless `fold` is False; one weight at a time is in
    memory.

    Weights go to `<path>.data` (`<path>.1.data` and so on where that file belongs to another model) if `external` says
    so; by default, if they came from external data or exceed 2 GB. All is complete under temporary names in the same
    folder before anything gets its own. Raises `UserError` if the path cannot be written.
    """
    target = Path(path)
    source = graph.source if isinstance(graph.source, OnnxSource) else None
    check_target(target, source.store if source else None)
    from .folding import fold_constants

    folded = fold_constants(graph) if fold else graph
    try:
        with Files() as files:
            if external is None:
                external = (source is not None and source.external) or folded.weight_bytes > EXTERNAL_LIMIT
            if external:
                data = data_path(target, source.store if source else None)
                with files.open(data) as stream:
                    sink = _External(stream, data.name)
                    model = Writer(folded, sink).model()
                if not sink.offset:
                    files.drop(data)
                with files.open(target) as main:
                    main.write(model.SerializeToString(deterministic=True))
            else:
                kept = _Kept()
                model = Writer(folded, kept).model()
                if size(model, kept.payloads) >= 1 << 31:
                    raise UserError(f"{target} cannot be written: beside its weights the model exceeds 2 GB")
                with files.open(target) as main:
                    write(model, kept.payloads, main)
    except OSError as error:
        raise UserError(f"{target} cannot be written: {error.strerror or error}") from error
    except EncodeError as error:
        raise UserError(f"{target} cannot be written: beside its weights the model exceeds 2 GB") from error
    except MemoryError as error:
        raise UserError(f"{target} cannot be written: not enough memory to fold its largest weight") from error


def written_bytes(graph: Graph) -> float:
    """Bytes of the weights that a file of this graph holds: tensors filled with one value take none."""
    nodes = (graph.nodes[i] for i in graph.live if graph.nodes[i].op == "Weight")
    weights = (graph.weights[str(node.attrs["digest"])] for node in nodes)
    return sum(w.type.bytes for w in weights if not isinstance(w.load, Uniform))


class _External:
    """Writes the data of large weights to a data file."""

    def __init__(self, stream: BinaryIO, name: str) -> None:
        self.stream, self.name, self.offset = stream, name, 0

    def take(self, tensor: TensorProto, weight: Weight) -> bool:
        raw = raw_data(weight)
        if raw is None or raw.length < MAPPED:
            return False
        padding = -self.offset % PAGE
        self.stream.write(b"\0" * padding)
        self.offset += padding
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", self.name), ("offset", self.offset), ("length", raw.length)):
            tensor.external_data.add(key=key, value=str(value))
        for piece in raw.chunks():
            self.stream.write(piece)
        self.offset += raw.length
        return True


class _Kept:
    """Remembers large weights, to be written when the rest of the message is known."""

    def __init__(self) -> None:
        self.payloads: dict[str, RawData] = {}

    def take(self, tensor: TensorProto, weight: Weight) -> bool:
        raw = None if isinstance(weight.load, StoredTensor) else raw_data(weight)
        if raw is None or raw.length < LARGE:
            return False
        self.payloads[tensor.name] = raw
        return True


# Putting files in place


class Files:
    """Files that belong together. Each is written under a temporary name beside its own; when the block ends without
    an exception all get their own names, the last opened last, else none does and what was there stays.
    """

    def __init__(self) -> None:
        self.written: dict[Path, Path] = {}
        """Temporary names by final ones."""

    def __enter__(self) -> Self:
        return self

    @contextlib.contextmanager
    def open(self, path: Path) -> Iterator[BinaryIO]:
        """A stream to write the file with."""
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:40]}.")
        self.written[path] = Path(name)
        with os.fdopen(handle, "wb") as stream:
            yield stream

    def drop(self, path: Path) -> None:
        """Do without a file that was written."""
        self.written.pop(path).unlink()

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        try:
            if kind is None:
                self._place()
        finally:
            for temporary in self.written.values():
                temporary.unlink(missing_ok=True)

    def _place(self) -> None:
        mask = os.umask(0)
        os.umask(mask)
        for temporary in self.written.values():
            os.chmod(temporary, 0o666 & ~mask)  # mkstemp's files are private
        *others, last = self.written
        done: list[tuple[Path, Path | None]] = []
        try:
            for path in others:
                backup = _aside(path)
                done.append((path, backup))
                os.replace(self.written[path], path)
            os.replace(self.written[last], last)
        except BaseException:
            for path, backup in reversed(done):
                if backup is not None:
                    os.replace(backup, path)
                    backup.unlink(missing_ok=True)  # two names of one file: then the line above does nothing
                elif not self.written[path].exists():  # it had got its place
                    path.unlink(missing_ok=True)
            raise
        for _, backup in done:
            if backup is not None:
                with contextlib.suppress(OSError):
                    backup.unlink()


def _aside(path: Path) -> Path | None:
    """Another name for the file at `path`, to bring it back by; None if there is none."""
    if not os.path.lexists(path):
        return None
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:40]}.", suffix=".old")
    os.close(handle)
    os.unlink(name)
    try:
        os.link(path, name, follow_symlinks=False)
    except (OSError, NotImplementedError):  # a file system without links: for a moment the file is not there
        os.rename(path, name)
    return Path(name)


def check_target(target: Path, store: Store | None = None) -> None:
    """Raises `UserError` if `target` cannot or must not be replaced by a model: a folder, a device, a file that holds
    weights of the model in `store`.
    """
    if target.is_dir():
        raise UserError(f"{target} cannot be written: it is a folder; name a file to write")
    if not target.parent.is_dir():
        raise UserError(f"{target} cannot be written: no such folder as {target.parent}; make it first")
    if target.exists() and not target.is_file():
        raise UserError(f"{target} cannot be written: it is a device or a pipe; name a file to write")
    for file in store.files.values() if store is not None else ():
        if file.same(target):
            raise UserError(f"{target} cannot be written: it holds the weights of {store.path.name}")  # type: ignore[union-attr]


def check_apart(model: Path, target: Path) -> None:
    """Raises `UserError` if `target` holds weights of the model in a file. Cheap: asked before any work is done."""
    if target.is_file() and not os.path.samefile(model, target) and _names(model, target):
        raise UserError(f"{target} cannot be written: it holds the weights of {model.name}")


# Data files


def tensors(model: ModelProto) -> Iterator[TensorProto]:
    """Every tensor of a model: initializers, those in attributes, in bodies and in functions."""
    stack: list[GraphProto | NodeProto | AttributeProto] = [model.graph, *(n for f in model.functions for n in f.node)]
    stack += [g for t in model.training_info for g in (t.initialization, t.algorithm)]
    while stack:
        item = stack.pop()
        if isinstance(item, GraphProto):
            yield from item.initializer
            yield from (t for s in item.sparse_initializer for t in (s.values, s.indices))
            stack.extend(item.node)
        elif isinstance(item, NodeProto):
            stack.extend(item.attribute)
        else:
            if item.HasField("t"):
                yield item.t
            yield from item.tensors
            sparse = [item.sparse_tensor] if item.HasField("sparse_tensor") else []
            yield from (t for s in (*sparse, *item.sparse_tensors) for t in (s.values, s.indices))
            stack.extend(([item.g] if item.HasField("g") else []) + list(item.graphs))


def locations(path: Path) -> tuple[str, ...]:
    """The external data files that the model in a file names, as it names them; none if it is no model."""
    data, _ = read(path)
    model = ModelProto()
    try:
        model.ParseFromString(data)
    except Exception:  # noqa: BLE001 (protobuf raises several types)
        return ()
    found = (e.value for t in tensors(model) for e in t.external_data if e.key == "location")
    return tuple(dict.fromkeys(name for name in found if name and name != path.name))


def stored_bytes(path: Path) -> int:
    """Bytes of a model's file and of the data files that it names."""
    files = (path, *(path.parent / name for name in locations(path)))
    return sum(file.stat().st_size for file in files if file.exists())


def data_path(target: Path, store: Store | None) -> Path:
    """Where to write the data of a model at `target`: beside it, in a file that is not there or only its own."""
    k = 0
    while True:
        path = target.with_name(f"{target.name}.{k}.data" if k else f"{target.name}.data")
        if not os.path.lexists(path) or (path.is_file() and _own(path, target, store)):
            return path
        k += 1


def _own(data: Path, target: Path, store: Store | None) -> bool:
    """Whether a data file belongs to the model at `target`, which will be replaced, and to no other model there."""
    if not target.is_file():
        return False
    replaced = store is not None and store.own is not None and store.own.same(target)
    if store is not None and not replaced and any(f.same(data) for f in store.files.values()):
        return False
    models = [p for p in sorted(target.parent.iterdir()) if p.suffix in (".onnx", ".pb", ".ort") and p.is_file()]
    users = [p for p in {*models, target} if _names(p, data)]
    return users == [target]


def _names(model: Path, data: Path) -> bool:
    try:
        return any(os.path.samefile(model.parent / name, data) for name in locations(model) if _exists(model, name))
    except UserError:
        return False


def _exists(model: Path, name: str) -> bool:
    try:
        return (model.parent / name).exists()
    except (OSError, ValueError):
        return False


def copy(source: str | os.PathLike[str], path: str | os.PathLike[str]) -> None:
    """Copy a model byte for byte, with the data files that it names, if they are not there already.

    Nothing happens if both are the same file. All is complete under temporary names before anything gets its own.
    Raises `UserError` if the path cannot be written, or where a data file would have to take the place of another
    one that does not belong to the model at `path` alone.
    """
    here, target = Path(source), Path(path)
    if target.exists() and os.path.samefile(here, target):
        return
    store = Store(here)
    named = {name: store.file(name, name) for name in locations(here)}
    check_target(target, store)
    apart = not os.path.samefile(here.parent, target.parent)
    try:
        with Files() as files:
            for name, file in named.items() if apart else ():
                place = target.parent / name
                if not place.parent.resolve().is_relative_to(target.parent.resolve()):
                    raise UserError(f"{place} cannot be written: it is outside of {target.parent}")
                if place.is_file() and (file.same(place) or _equal(file.path, place)):
                    continue
                if os.path.lexists(place) and not (place.is_file() and _own(place, target, None)):
                    raise UserError(
                        f"{target} cannot be written: its weights lie in {name}, and {target.parent} has another file "
                        "of that name; choose another folder"
                    )
                place.parent.mkdir(parents=True, exist_ok=True)
                with files.open(place) as stream:
                    for piece in file.chunks(0, file.size):
                        stream.write(piece)
            with files.open(target) as stream, here.open("rb") as original:
                shutil.copyfileobj(original, stream, 1 << 20)
    except OSError as error:
        raise UserError(f"{target} cannot be written: {error.strerror or error}") from error


def _equal(a: Path, b: Path) -> bool:
    if a.stat().st_size != b.stat().st_size:
        return False
    with a.open("rb") as one, b.open("rb") as two:
        while piece := one.read(1 << 20):
            if piece != two.read(1 << 20):
                return False
    return True
