"""What worker processes do: compile, tune and time models. Called by name, with plain arguments and results."""

from __future__ import annotations

import gc
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ..lowering.tvm_module import Here
    from ..lowering.tvm_remote import Remote
    from .target import Target

ROUND_MS = 2.0
"""A figure of kernel timing covers at least about this many milliseconds, so that the clock's grain does not show."""

LONG_MS = 50.0
"""Runs that take longer are timed one by one: what the caches hold at their beginning does not show in them."""

FEWEST = 3
"""Rounds of kernels that are timed at least, however little time there is."""

SESSION_SECONDS = 900.0
"""A session on a remote device ends after this time by itself, lest a client that is gone keeps it."""


def tvm_target_of(target: Target) -> Any:
    """The `tvm.target.Target` of a target that TVM compiles for."""
    from ..lowering import tvm_module

    if not target.tracker:
        return tvm_module.tvm_target(target.kind, target.threads)
    there = target.there
    assert there is not None  # `require` asked
    return tvm_module.tvm_target(target.kind, target.threads, there.arch or None, there.cpu, there.triple)


def place_of(target: Target) -> Here | Remote:
    """Where programs for a target run."""
    from ..lowering import tvm_module

    if not target.tracker:
        return tvm_module.Here(target.kind)
    from ..lowering.tvm_remote import Remote

    return Remote(target.tracker, target.key, target.kind, target.threads, SESSION_SECONDS)


def warm_up(target: Target) -> None:
    """Import what measuring on this target needs, so that the first kernel is not charged for it."""
    if target.kind == "onnxruntime":
        from ..lowering.ort_session import runtime

        runtime()
    else:
        from ..lowering import tvm_tuner  # noqa: F401

        tvm_target_of(target)


def _session(model: bytes | str, target: Target, symbols: dict[str, int] | None = None) -> Any:
    from ..lowering.ort_session import PROVIDER, Session

    return Session(
        model, target.threads, symbols, target.custom_ops, provider=target.provider or PROVIDER, level=target.level
    )


def _inputs(program: Any, given: str = "") -> dict[str, np.ndarray]:
    if given:
        from ..lowering.feeds import load_arrays

        arrays = load_arrays(given)
        return {s.name: arrays[s.name] for s in program.specs if s.name in arrays}
    from ..lowering.tvm_module import timing_inputs

    return timing_inputs(program.specs)


@contextmanager
def _device_watched() -> Iterator[None]:
    """Tells errors of programs from the loss of the device that they ran on: raises `DeviceLost` for that."""
    try:
        yield
    except Exception as error:
        if _place and not _place[0].alive():
            from ..lowering.tvm_remote import DeviceLost

            raise DeviceLost(f"the session ended: {error}") from None
        raise


# Kernels

_kept: dict[str, tuple[Any, dict[str, np.ndarray], float]] = {}
"""Programs that wait for their turns: inputs, and milliseconds of a run."""

_place: list[Any] = []
"""Where they are: one place, or none yet."""


@_device_watched()
def prepare_kernel(key: str, model: bytes, target: Target, folder: str, trials: int, seconds: float) -> dict[str, Any]:
    """Make a model that is one kernel ready for `time_kernels`: `ms`, what a run took just now, and what tuning was
    done.

    folder: of tuned schedules, which this call adds to. trials, seconds: limits of its tuning (TVM only).
    """
    detail: dict[str, Any] = {}
    program: Any
    if target.kind == "onnxruntime":
        program = _session(model, target)
    else:
        from ..lowering import tvm_module, tvm_sources, tvm_tasks, tvm_tuner

        compiled_for = tvm_target_of(target)
        module, specs = tvm_sources.imported(model)
        fused = tvm_module.fuse(module, compiled_for)
        if not _place:
            _place.append(place_of(target))
        schedules = None
        if trials > 0:
            tuning = tvm_tuner.tune(fused, compiled_for, Path(folder), trials, seconds, place=_place[0])
            detail = {"trials": sum(t.trials for t in tuning.tasks), "complete": tuning.complete}
            schedules = tvm_tasks.recorded(fused, compiled_for, Path(folder))
        executable = tvm_module.compile_module(fused, compiled_for, schedules)
        program = tvm_module.Program(executable, specs, _place[0])
    inputs = _inputs(program)
    once = _first(program, inputs)
    _kept[key] = program, inputs, once
    return {"ms": once, **detail}


def _first(program: Any, inputs: dict[str, np.ndarray]) -> float:
    """Milliseconds of a run of a program that has not run yet."""
    once: float = program.time(inputs, 1, 1)[0]
    return once if once > LONG_MS else min(once, *program.time(inputs, 1, 2))


def _runs(ms: float) -> tuple[int, int, bool]:
    """How a kernel that takes so many milliseconds is timed: runs of a figure, figures (the last one counts), and
    whether a run comes before them."""
    if ms > LONG_MS:
        return 1, 1, False
    number = max(1, min(1000, int(ROUND_MS / max(ms, 1e-4))))
    # After the others the caches hold little of it: its first runs are up to twice as long as later ones.
    return number, 3 if number == 1 else 2, True


def round_seconds(ms: float) -> float:
    """What a kernel of so many milliseconds takes of a round of `time_kernels`."""
    number, repeat, warm = _runs(ms)
    return (number * repeat + warm) * ms / 1e3


@_device_watched()
def time_kernels(least: int, most: int, seconds: float, limit: float | None = None) -> dict[str, list[float]]:
    """Milliseconds of all kernels that are ready, one figure in each round, after some runs that are not counted; the
    order within a round is random.

    least, most: rounds at least and at most; between these there are as many as fit in `seconds`. limit: seconds after
    which `FEWEST` have to do. The kernels are dropped afterwards.
    """
    figures: dict[str, list[float]] = {key: [] for key in _kept}
    rng, start = np.random.default_rng(0), time.monotonic()
    keys = list(_kept)
    for k in range(most):
        for i in rng.permutation(len(keys)).tolist():
            program, inputs, ms = _kept[keys[i]]
            figures[keys[i]].append(program.time(inputs, *_runs(ms))[-1])
        spent = time.monotonic() - start
        if (k + 1 >= least and spent > seconds) or (k + 1 >= FEWEST and limit is not None and spent > limit):
            break
    drop()
    return figures


def drop() -> None:
    """Forget what is loaded, and give a remote device back."""
    _kept.clear()
    _sides.clear()
    gc.collect()  # what is loaded over there is let go before the session
    while _place:
        _place.pop().close()


# The two sides of a confirmation


_fused: dict[str, Any] = {}
"""The model that this process was asked for last, as TVM fuses it, by what was asked for."""


def _fused_model(path: str, target: Target, symbols: dict[str, int]) -> Any:
    from ..lowering import tvm_module, tvm_sources

    key = f"{path} {target} {sorted(symbols.items())}"
    if key not in _fused:
        _fused.clear()
        _fused[key] = tvm_module.fuse(tvm_sources.imported(path, symbols)[0], tvm_target_of(target))
    return _fused[key]


def tune_model(
    path: str, target: Target, folder: str, trials: int, seconds: float, symbols: dict[str, int],
    part: tuple[int, int] = (0, 1),
) -> dict[str, Any]:  # fmt: skip
    """Tune a whole model's kernels, or each n-th of them, into `folder`; the tuning's summary.

    seconds: reading the model included. A process that is asked for the same model again has it.
    """
    from ..lowering import tvm_tuner

    end = time.monotonic() + seconds
    compiled_for, fused = tvm_target_of(target), _fused_model(path, target, symbols)
    place = place_of(target) if trials > 0 else None
    try:
        left = end - time.monotonic()
        tuning = tvm_tuner.tune(fused, compiled_for, Path(folder), trials, left, part=part, place=place, plateau=True)
        return tuning.summary()
    finally:
        if place is not None:
            place.close()


def compile_model(path: str, target: Target, folder: str, symbols: dict[str, int], library: str) -> dict[str, Any]:
    """Compile a model to `library` with the schedules in `folder` ("" for none); its `digest` and kernel summary."""
    from ..lowering import tvm_module, tvm_tasks, tvm_tuner

    compiled_for, fused = tvm_target_of(target), _fused_model(path, target, symbols)
    known = Path(folder) if folder else None
    tuning = tvm_tuner.tune(fused, compiled_for, known, 0, 0.0)
    schedules = tvm_tasks.recorded(fused, compiled_for, known) if known else None
    executable = tvm_module.compile_module(fused, compiled_for, schedules)
    handle, temporary = tempfile.mkstemp(dir=os.path.dirname(library), suffix=Path(library).suffix)
    os.close(handle)
    executable.export_library(temporary)
    os.replace(temporary, library)
    return {"digest": tvm_module.code_digest(fused), **tuning.summary()}


_sides: dict[int, tuple[Any, dict[str, np.ndarray]]] = {}
"""The programs that this process compares, or has its half of."""


@_device_watched()
def load_side(slot: int, path: str, target: Target, library: str, inputs: str, symbols: dict[str, int]) -> float:
    """Make this process ready to run a side, warm it up, and say how many milliseconds a run takes."""
    program: Any
    if target.kind == "onnxruntime":
        program = _session(path, target, symbols)
    else:
        from ..lowering import tvm_module, tvm_sources

        if not _place:
            _place.append(place_of(target))
        program = tvm_module.Program(library, tvm_sources.specs_of(path, symbols), _place[0])
    _sides[slot] = program, _inputs(program, inputs)
    return _first(*_sides[slot])


@_device_watched()
def time_side(slot: int, number: int, repeat: int, warm: bool = True) -> float:
    """Milliseconds of a run of a loaded side: the median of `repeat` figures, each the mean of `number` runs.

    warm: whether a run comes before them that is not counted.
    """
    program, inputs = _sides[slot]
    return float(statistics.median(program.time(inputs, number, repeat, warm)))


def digest_optimised(path: str, target: Target) -> str:
    """Digest of what ONNX Runtime makes of a model, names left out: equal digests run the same operators."""
    from ..lowering.ort_session import PROVIDER, optimised_digest

    return optimised_digest(path, target.threads, target.custom_ops, target.provider or PROVIDER, target.level)
