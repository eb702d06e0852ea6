"""Programs that are no ONNX models, and have a runtime of their own."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from ..egraph.graph import Graph


@runtime_checkable
class OwnProgram(Protocol):
    """A graph as a program of another kind, such as `relax_program.RelaxModel`."""

    graph: Graph

    def session(self) -> Any:
        """What runs it: has `inputs`, `outputs` (their names) and `run`."""

    def SerializeToString(self, deterministic: bool = True) -> bytes:  # noqa: N802 (as protos have it)
        """What its file holds."""
