"""Whether two models compute the same: both are run on the same inputs, without optimisation.

Three tiers, each output on each input:

1. no NaN and no infinity that the original has not;
2. cosine similarity of at least `COSINE`;
3. every element within the dtype's tolerance, relative to itself and to the output's scale, or within four times the
   original's own error. That error is measured against a float64 reference (opaque operators in their own type by ONNX
   Runtime); where there is none, it is estimated as the change that rounding-sized noise on the inputs makes.

Integers, booleans and strings have to be equal, but for ties that rounding decides: an ArgMax over equal scores, a
quantised value at the edge of two steps. A tie counts only where the float64 reference shows it, or the original itself
differs so under rounding-sized noise.

Models in narrow floating-point types are compared in float64 as well, where rounding hides nothing. What ONNX Runtime
cannot run, or what is random, is compared by the reference alone, the random values of the original given to both.
See docs/verification.md.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..egraph.graph import UNKNOWN, Graph, TensorType
from ..errors import UserError
from .cases import BINDINGS, Cases, Unrunnable
from .comparison import Comparison, Failed, same
from .evaluation import NotEvaluable, evaluate
from .feeds import read_inputs
from .folding import fold_constants
from .inputs import VALUES
from .onnx_reader import load
from .own_program import OwnProgram
from .plain_session import Model, PlainSession, first_line, why
from .reference import HEAVY, Reference, Tape
from .witness import OwnWitness

NARROW = ("float16", "bfloat16")


@dataclass(frozen=True)
class Verification:
    """Result of `verify`.

    verdict: "passed", "failed", or "unverified" (the models could not be compared; `detail` says why).
    max_abs: largest absolute difference of any output. max_rel: largest difference relative to its output's largest
    magnitude. cosine: lowest cosine similarity. samples: inputs compared. detail: what failed, or why it is unverified.
    worst: output with the largest `max_rel`, or the one that failed. notes: what else a reader should know.
    bindings: the bindings of the model's symbols that were run and left something to compare, each once; empty where
    it has no symbols.
    judge: what computed the outputs.
    """

    verdict: str
    max_abs: float = 0.0
    max_rel: float = 0.0
    cosine: float = 1.0
    samples: int = 0
    detail: str = ""
    worst: str = ""
    notes: tuple[str, ...] = field(default=())
    bindings: tuple[dict[str, int], ...] = field(default=())
    judge: str = "ONNX Runtime"

    @property
    def passed(self) -> bool:
        """Whether the models were run and found equal."""
        return self.verdict == "passed"

    def __str__(self) -> str:
        if self.verdict == "unverified":
            return f"unverified: {self.detail}"
        if self.verdict == "failed" and not self.samples:
            worst = f"output {self.worst!r}: " if self.worst else ""
            return f"failed: {worst}{self.detail}"
        numbers = (
            f"largest difference {self.max_abs:.2g} ({self.max_rel:.2g} of the output's scale), "
            f"cosine {self.cosine:.7f}, {self.samples} samples"
        )
        numbers += f", {len(self.bindings)} bindings" if self.bindings else ""
        numbers += f", by {self.judge}" if self.judge != "ONNX Runtime" else ""
        text = f"{self.verdict}: {numbers}" + (f", worst output {self.worst!r}" if self.worst else "")
        return text + (f": {self.detail}" if self.detail else "") + "".join(f"; {note}" for note in self.notes)


def verify(
    original: Model,
    optimized: Model,
    samples: int = 3,
    seed: int = 0,
    symbols: Mapping[str, int] | Sequence[Mapping[str, int]] | None = None,
    *,
    inputs: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    custom_ops: Sequence[str] = (),
    seconds: float | None = None,
) -> Verification:
    """Run both models in ONNX Runtime (CPU, unoptimised, one thread) on the same inputs and compare.

    Models are graphs, protos, bytes or paths, or programs with a graph and a session of their own (`RelaxModel`), which
    TVM runs instead. Made-up inputs take several distributions in turn; a model with symbolic
    dimensions runs at three bindings or more, 1 among them, as far as it can.

    samples: made-up inputs to compare at least. symbols: bindings (of some symbols or all) that are compared in
    addition. inputs: an .npz file or arrays, compared first. custom_ops: shared libraries of operators. seconds: no
    input is tried that would take longer than these, once one was compared.

    Never raises for a model that cannot run: the verdict is then "unverified" (the original) or "failed" (the optimised
    one). Raises `UserError` for inputs or libraries that are wrong.
    """
    for model in (original, optimized):
        if isinstance(model, (str, os.PathLike)) and not os.path.exists(model):
            raise UserError(f"{os.fspath(model)}: no such file")
    points = [] if symbols is None else [symbols] if isinstance(symbols, Mapping) else list(symbols)
    return _Verifier(original, optimized, samples, seed, points, inputs, tuple(custom_ops), seconds).result()


class _Verifier:
    """One comparison of two models."""

    def __init__(
        self, original: Model, optimized: Model, samples: int, seed: int, points: Sequence[Mapping[str, int]],
        inputs: Any, custom_ops: tuple[str, ...], seconds: float | None,
    ) -> None:  # fmt: skip
        self.original, self.optimized = original, optimized
        self.seed, self.custom_ops = seed, custom_ops
        start = time.monotonic()
        self.graph = _graph(original)
        given = None if inputs is None else read_inputs(inputs, self.graph)
        self.reference = Reference(self.graph, custom_ops)
        self.cases = Cases(self.reference, samples, seed, points, given, start, seconds)
        self.comparison = Comparison()
        self.previous: list[Any] | None = None
        self.constant: set[str] = set(self.graph.output_names)
        self.judge = "TVM" if isinstance(original, OwnProgram) else "ONNX Runtime"
        self.narrow = self._narrow()

    def result(self) -> Verification:
        try:
            try:
                self._by_runtime()
            except Unrunnable as error:
                # the reference knows graphs only: how a program of another kind was written it cannot tell
                if self.cases.samples or isinstance(self.original, OwnProgram):
                    raise
                self._by_reference(str(error))
        except Failed as error:
            return self._verdict("failed", str(error))
        except Unrunnable as error:
            return self._verdict("unverified", str(error))
        return self._verdict("passed", "")

    def _verdict(self, verdict: str, detail: str) -> Verification:
        notes = list(self.comparison.notes)
        c, cases = self.comparison, self.cases
        if verdict == "passed":
            count = len(cases.ran)
            if cases.symbols and count < min(BINDINGS, cases.wanted):
                notes.append(
                    f"only {count} {'binding' if count == 1 else 'bindings'} of symbolic dimensions could be run"
                )
            if cases.simple:
                notes.append(f"made-up inputs had to be simple ({VALUES[cases.simple]})")
            if cases.samples and not c.compared:
                notes.append("every output was NaN or empty, which shows little")
            elif c.undefined:
                notes.append(f"the original gives NaN in {', '.join(list(c.undefined)[:3])}")
            if c.undefined and (weight := self._undefined_weight()):
                notes.append(f"weight {weight!r} holds NaN")
            elif cases.samples > 1 and self.constant:
                notes.append(f"output {', '.join(sorted(self.constant)[:3])} did not depend on the inputs")
        return Verification(
            verdict, c.max_abs, c.max_rel, c.cosine, cases.samples, detail, c.worst, tuple(notes), cases.ran, self.judge
        )

    def _undefined_weight(self) -> str:
        """Name of a weight that holds NaN, or ""; large models are not searched."""
        if self.graph.weight_bytes > HEAVY:
            return ""
        live = dict.fromkeys(n.attrs["digest"] for i in self.graph.live if (n := self.graph.nodes[i]).op == "Weight")
        for weight in (self.graph.weights[str(digest)] for digest in live):
            if "float" in weight.type.dtype and np.isnan(np.asarray(weight.load(), np.float32)).any():
                return weight.name or "without a name"
        return ""

    # By ONNX Runtime

    def _by_runtime(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            try:
                before = self._session(self.original, Path(folder) / "original.onnx", False)
            except UserError:
                raise
            except Exception as error:  # noqa: BLE001
                raise Unrunnable(why(error, self.judge)) from None
            try:
                after = self._session(self.optimized, Path(folder) / "optimized.onnx", True)
            except Exception as error:
                what = f"{self.judge} cannot load the optimised model: {first_line(error)}"
                raise Failed(what) from error
            self._interfaces(before.inputs, before.outputs, after.inputs, after.outputs)
            first, told = None, False
            for binding, inputs, expected in self.cases.of(before):
                if not self.cases.samples and self._random(before, inputs, expected):
                    raise Unrunnable("the original is random: it gives other results each time")
                try:
                    found = after.run(inputs)
                except Exception as error:
                    raise Failed(f"the optimised model cannot run: {first_line(error)}") from error
                witness = OwnWitness(self.reference, before, inputs, self.seed * 1000 + self.cases.samples)
                self._compare(before.outputs, expected, found, witness)
                self._overflow(inputs)
                self._ran(binding, before.outputs, expected)
                first = inputs if first is None or (self.cases.telling and not told) else first
                told = told or self.cases.telling
            if self.cases.wanted and not self.cases.samples:
                raise Unrunnable(f"the original cannot be run: {self.cases.tried}")
            if first is not None and self.narrow is not None and not self.cases.late():
                self._in_float64(first)

    def _session(self, model: Any, path: Path, fold: bool) -> PlainSession:
        own: PlainSession = (
            model.session() if isinstance(model, OwnProgram) else PlainSession(model, path, fold, self.custom_ops)
        )
        return own

    def _random(self, before: PlainSession, inputs: Mapping[str, Any], expected: list[Any]) -> bool:
        if not any("unique" in self.graph.nodes[i].attrs for i in self.graph.operators):
            return False
        return any(not same(a, b) for a, b in zip(expected, before.run(inputs), strict=True))

    def _compare(self, names: Sequence[str], expected: list[Any], found: list[Any], witness: OwnWitness) -> None:
        for j, name in enumerate(names):
            a = expected[j]
            dtype = str(a.dtype) if isinstance(a, np.ndarray) else UNKNOWN
            self.comparison.output(name, j, dtype, a, found[j], witness)

    def _ran(self, binding: dict[str, int], names: Sequence[str], expected: list[Any]) -> None:
        self.cases.compared(binding)
        for j, name in enumerate(names):
            if self.previous is not None and not same(self.previous[j], expected[j]):
                self.constant.discard(name)
        self.previous = expected

    def _narrow(self) -> Graph | None:
        """The optimised graph, if the original computes in a narrow type: overflow and small errors hide there."""
        kinds = [self.graph.nodes[i].type for i in self.graph.live]
        if not any(isinstance(t, TensorType) and t.dtype in NARROW for t in kinds):
            return None
        try:
            return fold_constants(_graph(self.optimized))
        except UserError:
            return None  # running it will tell

    def _overflow(self, inputs: dict[str, Any]) -> None:
        """Look for overflow in float16, too: ONNX Runtime's CPU kernels compute it in float32 and hide it."""
        if self.narrow is None or self.reference.reason or self.cases.late():
            return
        try:
            with np.errstate(all="ignore"):
                before = evaluate(self.graph, inputs, "float16")
                after = evaluate(self.narrow, inputs, "float16")
        except (NotEvaluable, KeyError, TypeError):
            return
        for name, a, b in zip(self.graph.output_names, before, after, strict=True):
            if a.shape == b.shape and b.dtype == np.float16:
                strange = int((~np.isfinite(b) & np.isfinite(a)).sum())
                if strange:
                    self.comparison.fail(
                        name, f"in float16, {strange} NaN or infinite elements that the original has not"
                    )

    def _in_float64(self, inputs: Mapping[str, Any]) -> None:
        """Compare both in float64, where the noise of a narrow type hides nothing."""
        assert self.narrow is not None
        rng = np.random.default_rng(self.seed)
        try:
            before = self.reference.run(inputs)
            other = Reference(self.narrow, self.custom_ops)
            after = other.run(inputs)
            errors = self.reference.rounding(before, other, after, inputs, rng, 3)
        except (NotEvaluable, KeyError, MemoryError):
            return
        self._exact(before, after, errors)

    def _exact(self, before: list[np.ndarray], after: list[np.ndarray], errors: list[list[np.ndarray]]) -> None:
        for j, name in enumerate(self.graph.output_names):
            if before[j].dtype.kind == "f":
                self.comparison.exact(name, before[j], after[j], errors[j])

    # By the reference evaluator

    def _by_reference(self, reason: str) -> None:
        """Compare by the float64 evaluator; random operators give the second graph what they gave the first."""
        self.judge = "the reference evaluator"
        try:
            graph = _graph(self.optimized)
        except UserError as error:
            raise Failed(f"the optimised model cannot be read: {error}") from error
        after = Reference(graph, self.custom_ops)
        before = self.reference
        self._interfaces(before.inputs, before.outputs, after.inputs, after.outputs)
        for name, a, b in zip(before.outputs, before.dtypes, after.dtypes, strict=True):
            if a != b and UNKNOWN not in (a, b):
                self.comparison.fail(name, f"{b} instead of {a}")
        before.record, before.replay = Tape(), None
        self.narrow = None
        for binding, inputs, expected in self.cases.of(before):
            after.replay, before.replay, before.record = before.record, before.record, None
            try:
                found = after.run(inputs)
            except NotEvaluable as error:
                raise Failed(f"the optimised model cannot be computed: {error}") from error
            rng = np.random.default_rng([self.seed, self.cases.samples])
            errors = before.rounding(expected, after, found, inputs, rng, 2)
            before.replay = None
            witness = OwnWitness(before, None, inputs, self.seed * 1000 + self.cases.samples)
            for j, name in enumerate(before.outputs):
                dtype = before.dtypes[j] if "float" in before.dtypes[j] else str(expected[j].dtype)
                self.comparison.output(name, j, dtype, expected[j], found[j], witness)
            self._exact(expected, found, errors)
            self._ran(binding, before.outputs, expected)
            before.record = Tape()
        if self.cases.wanted and not self.cases.samples:
            raise Unrunnable(f"{reason}; the reference evaluator cannot compute it either: {self.cases.tried}")
        self.comparison.notes[f"compared in float64 by the reference evaluator, because {reason}"] = None

    def _interfaces(self, inputs: list[str], outputs: list[str], others: list[str], results: list[str]) -> None:
        if outputs != results:
            raise Failed(f"outputs {results} instead of {outputs}")
        extra = [name for name in others if name not in inputs]
        if extra:
            raise Failed(f"needs the input {extra[0]!r}, which the original has not")


def _graph(model: Any) -> Graph:
    if isinstance(model, Graph):
        return model
    return model.graph if isinstance(model, OwnProgram) else load(model)
