"""Programs that are no ONNX models, and have a runtime of their own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from ..egraph.graph import Graph


@runtime_checkable
class OwnProgram(Protocol):
    """A graph as a program of another kind, such as `relax_program.RelaxModel`.

    schedules: folder of tuned ones to run it with. runs: makes a session of it in another way than its own. file: where
    it was written.
    """

    graph: Graph
    schedules: Path | None
    runs: Callable[[Any], Any] | None
    file: Path | None

    def session(self) -> Any:
        """What runs it: has `inputs`, `outputs` (their names) and `run`."""

    def SerializeToString(self, deterministic: bool = True) -> bytes:  # noqa: N802 (as protos have it)
        """What its file holds."""

    def written(self, path: Path) -> Path:
        """Where its file is: `path`, unless it was written before."""
