"""Programs that TVM compiles and runs, in a process of their own: a crash there costs one run.

A lookup that reads outside of its table, say, ends the process ("fast mode segfaults", as TVM says of `take`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any, Self

import numpy as np

from ..lowering.relax_program import RelaxModel, RelaxSession
from .worker import Worker, WorkerDied, WorkerError, WorkerTimeout, unknown_function

SECONDS = 600.0
"""Seconds that a program has to be compiled, and for each run."""


class Apart:
    """One process for the programs of a comparison; it begins with the first of them. To be used as a context."""

    def __init__(self) -> None:
        self.worker = Worker()
        self.folder = tempfile.TemporaryDirectory(prefix="xrlflow-")
        self.numbers = count()

    def session(self, model: RelaxModel) -> ApartSession | RelaxSession:
        """A program, ready to run. One that calls what only this process knows, functions that the user registered,
        is run in this process. Raises `WorkerError` if it cannot be compiled."""
        number = next(self.numbers)
        path = model.written(Path(self.folder.name, f"{number}.program"))
        try:
            return ApartSession(self.worker, number, path, model)
        except WorkerError as error:
            if not unknown_function(error):
                raise
            return RelaxSession(model)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.worker.close()
        self.folder.cleanup()


class ApartSession:
    """What `RelaxSession` is, apart."""

    def __init__(self, worker: Worker, number: int, path: Path, model: RelaxModel) -> None:
        self.worker, self.number = worker, number
        self.inputs, self.outputs = list(model.graph.input_names), list(model.graph.output_names)
        self.source = str(path), None if model.schedules is None else str(model.schedules)
        self.start = 0
        self._load()

    def _load(self) -> None:
        self.worker.call(f"{__name__}:load", self.number, *self.source, timeout=SECONDS)
        self.start = self.worker.starts

    def run(self, inputs: Mapping[str, Any]) -> list[Any]:
        """The outputs, in order. Raises `WorkerError` for what the program does not take or does not survive."""
        self.worker.start()
        if self.start != self.worker.starts:  # the process that had it is gone
            self._load()
        try:
            return list(
                self.worker.call(f"{__name__}:run", self.number, [inputs[n] for n in self.inputs], timeout=SECONDS)
            )
        except (WorkerDied, WorkerTimeout):
            self.start = -1
            raise


# In the process

_loaded: dict[int, Any] = {}


def load(number: int, path: str, schedules: str | None) -> None:
    """Compile a program."""
    from ..lowering.relax_file import unpacked
    from ..lowering.tvm_sources import Main

    _loaded[number] = Main(unpacked(Path(path)), None if schedules is None else Path(schedules))


def run(number: int, arrays: list[np.ndarray]) -> list[np.ndarray]:
    """Run it."""
    found: list[np.ndarray] = _loaded[number](arrays)
    return found
