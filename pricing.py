"""Which cost a search goes by, and which kernels are timed for it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from .errors import UserError

if TYPE_CHECKING:
    from .cost.base import Cost, CostModel
    from .cost.target import Target
    from .options import Options

DEFAULTS = {"llvm": "fusion", "cuda": "fusion"}
"""The cost of a target that is measured, unless another is asked for; "kernels" for those that are not here."""

LOOKS, LOOK = 2000, 10.0
"""Cost evaluations with which the next kernels to time are looked for, and seconds."""


def cost_model(
    target: Target, name: str | None, options: Options, seconds: float, tell: Callable[[int, int], None] | None
) -> CostModel:
    """The cost model called `name` for this target; None takes the target's own."""
    from .cost.fusion import fusion
    from .cost.roofline import roofline

    if name is None:
        name = DEFAULTS.get(target.kind, "kernels") if target.measured else f"roofline:{target.device}"
    kind, _, device = name.partition(":")
    if kind == "roofline":
        return roofline(device)
    if kind == "fusion" and (device or not target.measured):
        return fusion(device or target.device)
    if kind not in ("kernels", "fusion") or device:
        raise UserError(f"unknown cost {name!r}: give kernels, fusion, fusion:DEVICE or roofline:DEVICE")
    if not target.measured:
        raise UserError(f"cost kernels needs a target that is measured, not {target}")
    from .cost.database import Database

    if kind == "fusion":
        from .cost.fused import FusedKernels

        if target.kind == "onnxruntime":
            raise UserError("cost fusion is how TVM fuses; for the target onnxruntime give kernels or roofline:DEVICE")
        return FusedKernels(target, Database(), options.trials, seconds, tell)
    from .cost.kernels import kernels

    return kernels(target, Database(), trials=options.trials, seconds=seconds, progress=tell)


def refine(cost: Cost, seconds: float, seed: int = 0) -> None:
    """Time the kernels of what a search finds, and search again by what they took, until that asks for no new ones.

    So of all kernels that a space could lead to only those are timed on which the choice hangs. Those of the input and
    of what is found in the end are timed once more, together. Does nothing for a cost without timed kernels.
    """
    from .cost.fused import FusedKernels
    from .cost.fusion import FusionCost
    from .policy.base import Budget, extractor

    if not isinstance(cost, FusionCost) or not isinstance(cost.model, FusedKernels):
        return
    deadline, model = time.monotonic() + seconds, cost.model
    while time.monotonic() < deadline:
        budget = Budget(min(LOOK, deadline - time.monotonic()), LOOKS)
        found = extractor("saturation").extract(cost.space, cost, budget, np.random.default_rng(seed))
        left = deadline - time.monotonic()
        if left <= 0:
            break
        if model.measure([(cost, found.selection)], left):
            continue
        plain = model.plain(cost)
        finalists = [(plain, plain.space.original), (cost, cost.space.original), (cost, found.selection)]
        if found.selection == cost.space.original or not model.settle(finalists, deadline - time.monotonic()):
            break
