"""What a run may be told, and which of it makes sense."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .errors import UserError

METHODS = ("auto", "rl", "saturation", "greedy", "greedy-group", "beam", "mcts", "random", "original")
EXTRACTORS = ("climb", "ilp", "dag", "tree")


@dataclass
class Options:
    """What a run may be told.

    method: how to choose; "auto" tries "saturation" and the policy and keeps the cheaper result.
    extractor: what "saturation" extracts with; None climbs first, and integer programming goes on from there.
    target: llvm, cuda, onnxruntime or roofline:DEVICE; None takes cuda where a GPU is found, else llvm.
    cost: "fusion" (kernels as TVM fuses them, measured), "kernels" (each operator's own, measured), fusion:DEVICE or
    roofline:DEVICE; None takes fusion on llvm and cuda, kernels on onnxruntime, and the target itself if a roofline.
    budget: seconds for everything. max_steps: cost evaluations of an extractor; with a roofline target and this set,
    no decision depends on time and the result's bytes only on input, seed, flags and version.
    trials: schedules tried for each kernel that TVM tunes.
    shape: extents that specialise symbolic dimensions, as `load` takes them. at: points to measure a dynamic model at,
    each a binding of symbols or text as `--at` takes it; the result is slower at none of them.
    inputs: an .npz file or a mapping of arrays, one for each of the model's inputs: verified and measured on them too.
    custom_ops: shared libraries of operators for ONNX Runtime. provider: its execution provider ("" is the CPU's).
    level: of its optimisations, on both sides of every comparison: none, basic, extended or all.
    tracker, key: an RPC tracker ("HOST:PORT") and what the devices behind it are called: llvm and cuda are theirs then.
    opset: convert the model to this opset first; the result has it, too, where the original is returned.
    params: the parameters of a Relay module, a file or arrays by name.
    explain_misses: find out where rules almost fired and why they did not.
    """

    method: str = "auto"
    extractor: str | None = None
    target: str | None = None
    cost: str | None = None
    budget: float = 120.0
    max_steps: int | None = None
    max_enodes: int | None = None
    max_weight_growth: float = 1.05
    rules: tuple[str, ...] | None = None
    without: tuple[str, ...] = ()
    threads: int = 1
    trials: int = 4
    policy: str | None = None
    seed: int = 0
    verify: bool = True
    inputs: str | os.PathLike[str] | Mapping[str, Any] | None = None
    custom_ops: tuple[str, ...] = ()
    provider: str = ""
    level: str = "all"
    tracker: str = ""
    key: str = ""
    opset: int | None = None
    params: str | os.PathLike[str] | Mapping[str, Any] | None = None
    explain_misses: bool = False
    shape: Any = ()
    at: Sequence[str | Mapping[str, int]] = ()

    @property
    def classical(self) -> str:
        """The extractor of the method "saturation"."""
        return self.extractor or "saturation"

    def check(self) -> None:
        """Raises `UserError` for a value that makes no sense."""
        if self.method not in METHODS:
            raise UserError(f"unknown method {self.method!r}: give one of {', '.join(METHODS)}")
        if self.extractor is not None and self.extractor not in EXTRACTORS:
            raise UserError(f"unknown extractor {self.extractor!r}: give one of {', '.join(EXTRACTORS)}")
        for name, least in (
            ("budget", 1e-9),
            ("max_enodes", 1),
            ("max_weight_growth", 1.0),
            ("threads", 1),
            ("trials", 0),
        ):
            value = getattr(self, name)
            if not (value is None and name == "max_enodes") and not value >= least:  # also refuses NaN
                raise UserError(f"{name.replace('_', '-')} must be at least {least:g}, not {value}")
        if isinstance(self.at, (str, Mapping)):  # one point
            self.at = (self.at,)
        if not isinstance(self.at, Sequence) or not all(isinstance(p, (str, Mapping)) for p in self.at):
            raise UserError('at must be points such as "batch=1,seq=128" or {"batch": 1, "seq": 128}')
        if not isinstance(self.shape, (str, Mapping, Sequence)):
            raise UserError('shape must be extents such as "batch=1" or {"input_ids": (1, 128)}')
        if self.max_steps is not None and self.max_steps < 1:
            raise UserError(f"max-steps must be at least 1, not {self.max_steps}")
        if self.seed < 0:
            raise UserError(f"seed must not be negative, not {self.seed}")
