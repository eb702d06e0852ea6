"""Where a model's weights lie: data files that are read piece by piece, and the rules for naming them."""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from onnx import TensorProto

from ..errors import UserError
from .onnx_wire import LARGE, skim

CHUNK = 1 << 20
"""Bytes that are read at once."""

KEPT = 64
"""Data files of one model that are held open; further ones are opened each time (a process may open about 1,000)."""

_FLAGS = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


class DataFile:
    """A regular file, read by offset and length.

    It is held open (`keep`), so that its content stays readable when another file takes its name. One that is
    rewritten in place is noticed: `UserError`. Raises `OSError` if it cannot be opened, `ValueError` if it is a folder,
    device or pipe.
    """

    def __init__(self, path: Path, keep: bool = True) -> None:
        self.path = path
        if not stat.S_ISREG(os.stat(path).st_mode):  # before it is opened: devices may do something then
            raise ValueError("not a regular file")
        handle = os.open(path, _FLAGS)
        state = os.fstat(handle)
        self.size = state.st_size
        self._state = _state(state)
        self._handle = handle if keep else -1
        if not keep:
            os.close(handle)
        if not stat.S_ISREG(state.st_mode):
            raise ValueError("not a regular file")

    def __del__(self) -> None:
        if getattr(self, "_handle", -1) >= 0:
            os.close(self._handle)

    def same(self, path: str | os.PathLike[str]) -> bool:
        """Whether `path` names this very file."""
        try:
            state = os.stat(path)
        except OSError:
            return False
        return (state.st_dev, state.st_ino) == self._state[:2]

    @contextmanager
    def _opened(self) -> Iterator[int]:
        """A handle of the file, which must be as it was when it was opened first."""
        try:
            handle = self._handle if self._handle >= 0 else os.open(self.path, _FLAGS)
        except OSError as error:
            raise UserError(f"{self.path} cannot be read any more: {error.strerror}") from error
        try:
            if _state(os.fstat(handle)) != self._state:
                raise UserError(f"{self.path} was changed while it was in use: run again")
            yield handle
        finally:
            if handle != self._handle:
                os.close(handle)

    def map(self, offset: int, length: int) -> np.ndarray:
        """Bytes of the file as a read-only uint8 array; they are mapped, not read, for as long as it lives."""
        if not length:
            return np.zeros(0, np.uint8)
        before = offset % mmap.ALLOCATIONGRANULARITY
        with self._opened() as handle:
            mapped = mmap.mmap(handle, before + length, access=mmap.ACCESS_READ, offset=offset - before)
        return np.frombuffer(mapped, np.uint8, length, before)

    def chunks(self, offset: int, length: int) -> Iterator[bytes]:
        """The same bytes, `CHUNK` at a time, without mapping them."""
        with self._opened() as handle:
            end = offset + length
            while offset < end:
                piece = _read(handle, min(CHUNK, end - offset), offset)
                if not piece:
                    raise UserError(f"{self.path} ends early: it was changed while it was in use")
                yield piece
                offset += len(piece)


def _state(found: os.stat_result) -> tuple[int, int, int, int]:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _read(handle: int, size: int, offset: int) -> bytes:
    if hasattr(os, "pread"):
        return os.pread(handle, size, offset)
    os.lseek(handle, offset, os.SEEK_SET)
    return os.read(handle, size)


class Store:
    """The files that the weights of the model at `path` lie in.

    own: the model's file itself, in which large tensors stay until they are needed (`onnx_wire.skim`).
    """

    def __init__(self, path: Path, own: DataFile | None = None) -> None:
        self.path, self.own = path, own
        folder = path.parent.resolve()
        # Where the model is a link (as in the cache of a model hub), its data lies beside the file that it links to.
        self.roots = tuple(dict.fromkeys((folder, path.resolve().parent)))
        self.files: dict[Path, DataFile] = {}

    def file(self, location: str, name: str) -> DataFile:
        """The data file at a relative `location` for the weight `name`.

        Raises `UserError` if it does not lie below the model's folder, is missing or is no regular file.
        """
        if self.own is not None and location == self.path.name:
            return self.own
        root = self.roots[0]
        try:
            path = (root / location).resolve()
            inside = any(path.is_relative_to(r) for r in self.roots) and path not in self.roots
        except (OSError, RuntimeError, ValueError):  # a loop of links, too long, a NUL
            inside = False
        if not location or Path(location).is_absolute() or ".." in Path(location).parts or not inside:
            # A link out of the folder is refused like "..", as onnx itself does.
            raise UserError(f"weight {name!r} refers to {location!r}, which is not a file below the model's folder")
        if path not in self.files:
            try:
                self.files[path] = DataFile(path, keep=len(self.files) < KEPT)
            except ValueError:
                raise UserError(f"weight {name!r} refers to {location!r}, which is not a regular file") from None
            except FileNotFoundError:
                raise UserError(
                    f"the external data file {location!r} of weight {name!r} is missing from {self.path.parent}"
                ) from None
            except OSError as error:
                raise UserError(
                    f"the external data file {location!r} of weight {name!r} cannot be read: {error.strerror}"
                ) from error
        return self.files[path]


def read(path: Path) -> tuple[bytes, Store]:
    """The serialised model in a file, its large tensors left there, and the store to find them in.

    Raises `UserError` if there is no such file or it cannot be read.
    """
    try:
        own = DataFile(path)
        if own.size > 16 * LARGE:
            data = skim(own.map(0, own.size).data, path.name)
        else:
            data = None
        return (b"".join(own.chunks(0, own.size)) if data is None else data), Store(path, own)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (ValueError, OSError) as error:
        if path.is_dir():
            raise UserError(f"{path} is a folder: give the path of an ONNX file") from error
        why = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{path} cannot be read: {why}") from error


def elsewhere(proto: TensorProto, store: Store | None) -> bool:
    """Whether a tensor lies in another file than the model's own."""
    if proto.data_location != TensorProto.EXTERNAL:
        return False
    location = next((e.value for e in proto.external_data if e.key == "location"), "")
    return store is None or location != store.path.name


def place(proto: TensorProto, name: str, length: int, store: Store | None) -> tuple[DataFile, int]:
    """The data file and offset of an external tensor of `length` bytes.

    Raises `UserError` if it cannot lie where the proto says, or if there is no store: the model came without a path.
    """
    info = {e.key: e.value for e in proto.external_data}
    location = info.get("location", "")
    if store is None:
        raise UserError(
            f"weight {name!r} lies in the external file {location!r}: give the model's path, not the model in memory"
        )
    file = store.file(location, name)
    offset, given = _number(info, "offset", name), _number(info, "length", name)
    if "length" in info and given != length:
        raise UserError(f"weight {name!r} needs {length} bytes of {location!r}, but the model says {given}")
    if offset + length > file.size:
        raise UserError(
            f"the external data file {location!r} is too short for weight {name!r}: "
            f"{file.size} bytes, not {offset + length}"
        )
    return file, offset


def _number(info: dict[str, str], key: str, name: str) -> int:
    text = info.get(key, "0")
    if not (text.isascii() and text.isdecimal() and len(text) < 20):
        raise UserError(f"weight {name!r} has the {key} {text[:40]!r} in its external file: not a number of bytes")
    return int(text)
