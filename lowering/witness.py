"""What a model's own computation tells of its errors: the witness that `comparison` calls."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np

from .evaluation import NotEvaluable
from .plain_session import PlainSession
from .reference import RUNS, Reference, disturbed


class OwnWitness:
    """What the original's own error on one input is: by the reference, or by disturbing the original itself."""

    def __init__(
        self, reference: Reference, session: PlainSession | None, inputs: Mapping[str, Any], seed: int
    ) -> None:
        self.reference, self.session, self.inputs, self.seed = reference, session, inputs, seed

    @cached_property
    def _own(self) -> tuple[list[Any] | None, bool]:
        try:
            return self.reference.run(self.inputs), True
        except (NotEvaluable, KeyError, MemoryError):
            return (self._disturbed(1)[0] if self.session is not None and self._disturbed(1) else None), False

    @cached_property
    def _noisy(self) -> list[list[Any]]:
        rng = np.random.default_rng([self.seed, 1])
        try:
            return [self.reference.noisy(self.inputs, rng, 4.0) for _ in range(RUNS)]
        except (NotEvaluable, KeyError, MemoryError):
            return self._disturbed(RUNS)

    def _disturbed(self, runs: int) -> list[list[Any]]:
        """The original itself on disturbed inputs."""
        found: list[list[Any]] = []
        rng = np.random.default_rng(self.seed)
        for _ in range(runs if self.session is not None else 0):
            inputs = {
                k: disturbed(v, rng, 2.0).astype(v.dtype) if isinstance(v, np.ndarray) and v.dtype.kind == "f" else v
                for k, v in self.inputs.items()
            }
            try:
                assert self.session is not None
                found.append(self.session.run(inputs))
            except Exception:  # noqa: BLE001
                break
        return found

    def own(self, j: int) -> tuple[np.ndarray | None, bool]:
        outputs, exact = self._own
        if outputs is None or not isinstance(outputs[j], np.ndarray) or outputs[j].dtype == object:
            return None, False
        return np.asarray(outputs[j], np.float64).reshape(-1), exact

    def noisy(self, j: int) -> list[np.ndarray]:
        return [run[j] for run in self._noisy if isinstance(run[j], np.ndarray)]

    def tied(self, j: int, a: np.ndarray, b: np.ndarray) -> np.ndarray | None:
        return self.reference.tied(j, self.inputs, a, b)

    def steps(self) -> bool:
        return self.reference.steps
