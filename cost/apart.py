"""Programs that TVM compiles and runs, each in a process of its own: a crash there costs one run.

A lookup that reads outside of its table, say, ends the process ("fast mode segfaults", as TVM says of `take`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Self, TypeAlias

import numpy as np

from ..lowering.relax_program import RelaxModel, RelaxSession
from .worker import Worker, WorkerDied, WorkerError, WorkerTimeout, roomy, together, unknown_function

SECONDS = 600.0
"""Seconds that a program has to be compiled, and for each run."""

Session: TypeAlias = "ApartSession | RelaxSession"


class Apart:
    """Processes for the programs of a comparison. To be used as a context."""

    def __init__(self) -> None:
        self.workers: list[Worker] = []
        self.folder = tempfile.TemporaryDirectory(prefix="xrlflow-")
        self.expected: dict[int, Session | Exception] = {}

    def expect(self, *models: Any) -> None:
        """Compile what will be asked for, side by side if there is room: that takes most of a comparison."""
        files = [self._file(model) for model in models]
        jobs = [partial(self._tried, model) for model in models]
        both = together(jobs, self.workers) if all(map(roomy, files)) else [job() for job in jobs]
        self.expected |= {id(model): found for model, found in zip(models, both, strict=True)}

    def session(self, model: RelaxModel) -> Session:
        """A program, ready to run. One that calls what only this process knows, functions that the user registered,
        is run in this process. Raises `WorkerError` if it cannot be compiled."""
        found = self.expected.pop(id(model), None)
        found = self._session(model) if found is None else found
        if isinstance(found, Exception):
            raise found
        return found

    def _tried(self, model: RelaxModel) -> Session | Exception:
        try:
            return self._session(model)
        except Exception as error:  # noqa: BLE001 (raised where the session is asked for)
            return error

    def _file(self, model: RelaxModel) -> Path:
        return model.written(Path(self.folder.name, f"{id(model)}.program"))

    def _session(self, model: RelaxModel) -> Session:
        worker = Worker()
        self.workers.append(worker)
        try:
            return ApartSession(worker, self._file(model), model)
        except WorkerError as error:
            if not unknown_function(error):
                raise
            return RelaxSession(model)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for worker in self.workers:
            worker.close()
        self.folder.cleanup()


class ApartSession:
    """What `RelaxSession` is, apart."""

    def __init__(self, worker: Worker, path: Path, model: RelaxModel) -> None:
        self.worker = worker
        self.inputs, self.outputs = list(model.graph.input_names), list(model.graph.output_names)
        self.source = str(path), None if model.schedules is None else str(model.schedules)
        self.start = 0
        self._load()

    def _load(self) -> None:
        self.worker.call(f"{__name__}:load", *self.source, timeout=SECONDS)
        self.start = self.worker.starts

    def run(self, inputs: Mapping[str, Any]) -> list[Any]:
        """The outputs, in order. Raises `WorkerError` for what the program does not take or does not survive."""
        self.worker.start()
        if self.start != self.worker.starts:  # the process that had it is gone
            self._load()
        try:
            return list(self.worker.call(f"{__name__}:run", [inputs[n] for n in self.inputs], timeout=SECONDS))
        except (WorkerDied, WorkerTimeout):
            self.start = -1
            raise


# In the process

_loaded: list[Any] = []


def load(path: str, schedules: str | None) -> None:
    """Compile a program."""
    from ..lowering.relax_file import unpacked
    from ..lowering.tvm_sources import Main

    _loaded[:] = [Main(unpacked(Path(path)), None if schedules is None else Path(schedules))]


def run(arrays: list[np.ndarray]) -> list[np.ndarray]:
    """Run it."""
    found: list[np.ndarray] = _loaded[0](arrays)
    return found
