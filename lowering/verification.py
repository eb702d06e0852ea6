"""Whether two models compute the same: both are run on fresh random inputs, without optimisation.

Three tiers, each output on each input:

1. no NaN and no infinity that the original has not;
2. cosine similarity of at least `COSINE`;
3. every element within the dtype's tolerance, relative to itself and to the output's scale, or within four times the
   original's own error. That error is measured against a float64 reference (opaque operators in their own type by ONNX
   Runtime); where there is none, it is estimated as the change that rounding-sized noise on the inputs makes.

Integers, booleans and strings have to be equal.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from onnx import ModelProto

from ..egraph.graph import Graph, TensorType
from ..errors import UserError
from .evaluation import NotEvaluable, evaluate
from .folding import fold_constants
from .inputs import DISTRIBUTIONS, random_inputs
from .onnx_reader import load
from .onnx_writer import EXTERNAL_LIMIT, save, to_onnx
from .opaque import OpaqueRunner

Model: TypeAlias = Graph | ModelProto | bytes | str | os.PathLike[str]

COSINE = 0.9999
TOLERANCES = {  # relative to the element, and to the output's scale (its largest magnitude)
    "float64": (1e-7, 1e-8),
    "float32": (1e-4, 1e-5),
    "float16": (1e-3, 1e-3),
    "bfloat16": (1.6e-2, 1.6e-2),
}
OWN_ERROR_FACTOR = 4.0
OWN_ERROR_LIMIT = 1e-3
"""An *estimated* own error is believed up to this share of the output's scale; more would hide a real difference."""


@dataclass(frozen=True)
class Verification:
    """Result of `verify`.

    verdict: "passed", "failed", or "unavailable" (the original cannot be run; `detail` says why).
    max_abs: largest absolute difference of any output. max_rel: largest difference relative to its output's largest
    magnitude. cosine: lowest cosine similarity. samples: inputs compared. worst: output with the largest `max_rel`,
    or the one that failed. detail: what failed, or how it was judged.
    """

    verdict: str
    max_abs: float = 0.0
    max_rel: float = 0.0
    cosine: float = 1.0
    samples: int = 0
    detail: str = ""
    worst: str = ""
    notes: tuple[str, ...] = field(default=())

    @property
    def passed(self) -> bool:
        """Whether the models were run and found equal."""
        return self.verdict == "passed"

    def __str__(self) -> str:
        if self.verdict == "unavailable":
            return f"not verified: {self.detail}"
        numbers = (
            f"largest difference {self.max_abs:.2g} ({self.max_rel:.2g} of the output's scale), "
            f"cosine {self.cosine:.7f}, {self.samples} samples"
        )
        text = f"{self.verdict}: {numbers}" + (f", worst output {self.worst!r}" if self.worst else "")
        return text + (f": {self.detail}" if self.detail else "") + "".join(f"; {note}" for note in self.notes)


class _Failed(Exception):
    pass


class _Unavailable(Exception):
    pass


def verify(
    original: Model,
    optimized: Model,
    samples: int = 3,
    seed: int = 0,
    symbols: Mapping[str, int] | None = None,
) -> Verification:
    """Run both models in ONNX Runtime (CPU, unoptimised, one thread) on `samples` random inputs and compare.

    Models are graphs, protos, bytes or paths. Floating-point inputs take several distributions in turn; symbolic
    dimensions that `symbols` does not bind take several extents, 1 among them. Never raises for a model that cannot
    run: the verdict is then "unavailable" (the original) or "failed" (the optimised one).
    """
    comparison = _Comparison(_graph(original))
    with tempfile.TemporaryDirectory() as folder:
        try:
            before = _Session(original, Path(folder) / "original.onnx", fold=False)
        except Exception as error:  # noqa: BLE001
            return Verification("unavailable", detail=f"ONNX Runtime cannot load the original: {_first_line(error)}")
        try:
            after = _Session(optimized, Path(folder) / "optimized.onnx", fold=True)
        except Exception as error:  # noqa: BLE001
            return Verification("failed", detail=f"ONNX Runtime cannot load the optimised model: {_first_line(error)}")
        try:
            comparison.interfaces(before, after)
            comparison.narrow(optimized)
            for k in range(samples):
                comparison.sample(before, after, k, seed, symbols)
            comparison.conclude(samples)
        except _Unavailable as error:
            return comparison.result("unavailable", str(error))
        except _Failed as error:
            return comparison.result("failed", str(error))
    return comparison.result("passed", "")


def _graph(model: Model) -> Graph:
    return model if isinstance(model, Graph) else load(model)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


class _Session:
    """A model in ONNX Runtime, without optimisation and on one thread: results do not depend on the machine's load."""

    def __init__(self, model: Model, path: Path, fold: bool) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4
        self.session = ort.InferenceSession(_runnable(model, path, fold), options, providers=["CPUExecutionProvider"])
        self.inputs = [i.name for i in self.session.get_inputs()]
        self.outputs = [o.name for o in self.session.get_outputs()]

    def run(self, inputs: Mapping[str, np.ndarray]) -> list[Any]:
        known = {*self.inputs, *(i.name for i in self.session.get_overridable_initializers())}
        return list(self.session.run(self.outputs, {k: v for k, v in inputs.items() if k in known}))


def _runnable(model: Model, path: Path, fold: bool) -> str | bytes:
    if isinstance(model, Graph):
        if model.weight_bytes > EXTERNAL_LIMIT:
            save(model, path)
            return str(path)
        return to_onnx(model, fold).SerializeToString()
    if isinstance(model, ModelProto):
        return model.SerializeToString()
    return bytes(model) if isinstance(model, (bytes, bytearray)) else str(Path(model))


@dataclass
class _Own:
    """The original's own error on one input: another computation of its outputs, and whether that is more exact."""

    outputs: Sequence[np.ndarray] | None
    exact: bool

    def output(self, j: int) -> tuple[np.ndarray | None, bool]:
        """Output j as one row of float64, and whether it is exact."""
        return None if self.outputs is None else np.asarray(self.outputs[j], np.float64).reshape(-1), self.exact


class _Comparison:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.max_abs, self.max_rel, self.cosine, self.samples = 0.0, 0.0, 1.0, 0
        self.worst, self.skipped = "", ""
        self.compared = 0
        self.opaque = OpaqueRunner(graph)
        self.optimized: Graph | None = None
        self.previous: list[Any] | None = None
        self.constant: set[str] = set(graph.output_names)
        self.random = any("unique" in graph.nodes[i].attrs for i in graph.operators)
        kinds = [n.type for n in graph.nodes if n.op == "Input" and isinstance(n.type, TensorType)]
        dims = [d for kind in kinds for d in kind.shape or ()]
        self.symbols = list(dict.fromkeys(d for d in dims if isinstance(d, str)))

    def result(self, verdict: str, detail: str) -> Verification:
        notes = []
        if verdict == "passed" and self.samples > 1 and self.constant:
            names = ", ".join(sorted(self.constant)[:3])
            notes.append(f"output {names} did not depend on the inputs")
        return Verification(
            verdict, self.max_abs, self.max_rel, self.cosine, self.samples, detail, self.worst, tuple(notes)
        )

    def interfaces(self, before: _Session, after: _Session) -> None:
        if before.outputs != after.outputs:
            raise _Failed(f"outputs {after.outputs} instead of {before.outputs}")
        extra = [name for name in after.inputs if name not in before.inputs]
        if extra:
            raise _Failed(f"needs the input {extra[0]!r}, which the original has not")

    def narrow(self, optimized: Model) -> None:
        """Look for overflow in float16, too: ONNX Runtime's CPU kernels compute it in float32 and hide it."""
        kinds = [self.graph.nodes[i].type for i in self.graph.live]
        if any(isinstance(t, TensorType) and t.dtype == "float16" for t in kinds):
            try:
                self.optimized = fold_constants(_graph(optimized))
            except UserError as error:
                raise _Failed(f"the optimised model cannot be read: {error}") from error

    def _overflow(self, inputs: dict[str, np.ndarray]) -> None:
        if self.optimized is None:
            return
        try:
            pairs = zip(
                evaluate(self.graph, inputs, "float16"), evaluate(self.optimized, inputs, "float16"), strict=True
            )
        except (NotEvaluable, KeyError):
            self.optimized = None
            return
        for name, (a, b) in zip(self.graph.output_names, pairs, strict=True):
            if a.shape == b.shape and b.dtype == np.float16:
                strange = int((~np.isfinite(b) & np.isfinite(a)).sum())
                if strange:
                    self._fail(name, f"in float16, {strange} NaN or infinite elements that the original has not")

    def _bindings(self, k: int, symbols: Mapping[str, int] | None) -> dict[str, int]:
        if k % 3 == 2:
            extents = {name: 3 + 2 * j for j, name in enumerate(self.symbols)}
        else:
            extents = dict.fromkeys(self.symbols, 2 - k % 3)
        return {**extents, **(symbols or {})}

    def sample(self, before: _Session, after: _Session, k: int, seed: int, symbols: Mapping[str, int] | None) -> None:
        distribution = DISTRIBUTIONS[k % len(DISTRIBUTIONS)]
        try:
            inputs = random_inputs(self.graph, seed * 1000 + k, self._bindings(k, symbols), distribution)
            expected = before.run(inputs)
        except Exception as error:  # noqa: BLE001 (extents that do not fit together, an operator without a kernel)
            self.skipped = _first_line(error)
            return
        if self.random and any(not _same(a, b) for a, b in zip(expected, before.run(inputs), strict=True)):
            raise _Unavailable("the original is random: it gives other results each time")
        try:
            found = after.run(inputs)
        except Exception as error:
            raise _Failed(f"the optimised model cannot run: {_first_line(error)}") from error
        own = cache(partial(self._own, before, inputs, seed * 1000 + k))
        self.samples += 1
        for j, name in enumerate(before.outputs):
            self._output(name, expected[j], found[j], lambda j=j: own().output(j))  # type: ignore[misc]
            if self.previous is not None and not _same(self.previous[j], expected[j]):
                self.constant.discard(name)
        self._overflow(inputs)
        self.previous = expected

    def conclude(self, wanted: int) -> None:
        if wanted and not self.samples:
            raise _Unavailable(f"the original cannot be run: {self.skipped}")
        if wanted and not self.compared:
            raise _Unavailable("the original's outputs are NaN or empty")

    def _own(self, before: _Session, inputs: dict[str, np.ndarray], seed: int) -> _Own:
        try:
            return _Own(evaluate(self.graph, inputs, opaque=self.opaque), True)
        except (NotEvaluable, KeyError, MemoryError):
            pass
        rng = np.random.default_rng(seed)
        noisy = {name: _noisy(array, rng) for name, array in inputs.items()}
        try:
            return _Own(before.run(noisy), False)
        except Exception:  # noqa: BLE001
            return _Own(None, False)

    def _output(self, name: str, a: Any, b: Any, own: Callable[[], tuple[np.ndarray | None, bool]]) -> None:
        if not isinstance(a, np.ndarray) or not isinstance(b, np.ndarray):
            if not _same(a, b):
                self._fail(name, "other values")
            self.compared += 1
            return
        if a.shape != b.shape or a.dtype != b.dtype:
            self._fail(name, f"{b.dtype}{list(b.shape)} instead of {a.dtype}{list(a.shape)}")
        dtype = str(a.dtype)
        if dtype not in TOLERANCES:
            if not _same(a, b):
                self._fail(name, f"{int(np.sum(a != b))} of {a.size} elements differ")
            self.compared += 1
            return
        a, b = a.astype(np.float64).reshape(-1), b.astype(np.float64).reshape(-1)
        strange = int((~np.isfinite(b) & np.isfinite(a)).sum())
        if strange:
            self._fail(name, f"{strange} NaN or infinite elements that the original has not")
        infinite = np.isinf(a) & (a != b)
        if infinite.any():
            # The original overflowed where the other did not: right if the exact value is finite.
            third, exact = own()
            third, exact = _at((third, exact), infinite)
            if third is None or not exact or not np.isfinite(third).all():
                self._fail(name, f"{int(infinite.sum())} elements are not infinite, those of the original are")
        finite = np.isfinite(a)
        if finite.any():
            self.compared += 1
            self._close(name, dtype, a[finite], b[finite], lambda: _at(own(), finite))

    def _close(
        self, name: str, dtype: str, a: np.ndarray, b: np.ndarray, own: Callable[[], tuple[np.ndarray | None, bool]]
    ) -> None:
        """Compare finite elements; the original's own error is asked for only where they are not close at once."""
        relative, absolute = TOLERANCES[dtype]
        scale = float(np.abs(a).max())
        self._record(name, a, b, scale)
        near = (np.abs(a - b) <= relative * np.abs(a) + absolute * scale).all()
        if near and _cosine(a, b) >= COSINE:
            return
        third, exact = own()
        third = a if third is None else np.where(np.isfinite(third), third, a)
        reference, own_error = third if exact else a, float(np.abs(a - third).max())
        if not exact:
            own_error = min(own_error, OWN_ERROR_LIMIT * scale)
        tolerance = relative * np.abs(reference) + absolute * float(np.abs(reference).max())
        error, allowed = np.abs(b - reference), np.maximum(tolerance, OWN_ERROR_FACTOR * own_error)
        if (error > allowed).any():
            k = int(np.argmax(error - allowed))
            self._fail(name, f"element {k} is {b[k]:.7g}, not {reference[k]:.7g} (allowed difference {allowed[k]:.2g})")
        if _cosine(a, b) < COSINE <= _cosine(a, third):
            self._fail(name, f"cosine similarity {_cosine(a, b):.6f}")

    def _record(self, name: str, a: np.ndarray, b: np.ndarray, scale: float) -> None:
        difference = float(np.abs(a - b).max())
        share = difference / scale if scale > 0 else (np.inf if difference else 0.0)
        self.max_abs = max(self.max_abs, difference)
        if share > self.max_rel:
            self.max_rel, self.worst = share, name
        self.cosine = min(self.cosine, _cosine(a, b))

    def _fail(self, name: str, what: str) -> None:
        self.worst = name
        raise _Failed(what)


def _at(own: tuple[np.ndarray | None, bool], where: np.ndarray) -> tuple[np.ndarray | None, bool]:
    """The same for some elements; nothing if there are others than expected."""
    third, exact = own
    return (third[where], exact) if third is not None and third.size == where.size else (None, False)


def _noisy(array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The array with an error of about one rounding on each element; integers and booleans as they are."""
    if array.dtype.kind != "f":
        return array
    noise = rng.uniform(-1, 1, array.shape) * np.finfo(array.dtype).eps
    return np.asarray(array * (1 + noise)).astype(array.dtype)


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return a.shape == b.shape and a.dtype == b.dtype and bool(np.array_equal(a, b, equal_nan=a.dtype.kind in "fc"))
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[k], b[k]) for k in a)
    return bool(a == b)


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Cosine similarity; 1 if both are zero or there is but one element of the same sign."""
    # Scaled first: the squares of large numbers overflow.
    top = max(float(np.abs(a).max()), float(np.abs(b).max()))
    if top == 0:
        return 1.0
    a, b = a / top, b / top
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    return min(1.0, float(a @ b) / norms) if norms > 0 else 0.0
