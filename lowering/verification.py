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
import re
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from onnx import ModelProto

from ..egraph.dimension import Polynomial
from ..egraph.dimension import evaluate as evaluate_dimension
from ..egraph.graph import UNKNOWN, Graph, TensorType, TupleType
from ..errors import UserError
from .bindings import candidates, completed, input_symbols
from .comparison import Comparison, Failed, same
from .evaluation import NotEvaluable, evaluate
from .feeds import bound_symbols, read_inputs
from .folding import fold_constants
from .inputs import DISTRIBUTIONS, GUESSES, VALUES, random_inputs
from .onnx_files import RESIDENT, save, stored_bytes
from .onnx_reader import load
from .onnx_writer import to_onnx
from .reference import HEAVY, RUNS, Reference, Tape, disturbed

Model: TypeAlias = Graph | ModelProto | bytes | str | os.PathLike[str]

BINDINGS = 3
"""Distinct bindings of a model's symbols that are wanted."""

PATIENCE = 120.0
"""Seconds for everything, where no limit is given; one comparison at least is made."""

DULL = 6
"""Bindings at which the outputs do not depend on the inputs that are tried before they are taken as they are."""

SLOW = 30
"""Bindings at which the reference evaluator, which is slow, has to run once."""

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

    Models are graphs, protos, bytes or paths. Made-up inputs take several distributions in turn; a model with symbolic
    dimensions runs at three bindings or more, 1 among them, as far as it can.

    samples: made-up inputs to compare at least. symbols: bindings (of some symbols or all) that are compared in
    addition. inputs: an .npz file or arrays, compared first. custom_ops: shared libraries of operators. seconds: after
    them no further input is tried, once one was compared.

    Never raises for a model that cannot run: the verdict is then "unverified" (the original) or "failed" (the optimised
    one). Raises `UserError` for inputs or libraries that are wrong.
    """
    points = [] if symbols is None else [symbols] if isinstance(symbols, Mapping) else list(symbols)
    return _Verifier(original, optimized, samples, seed, points, inputs, tuple(custom_ops), seconds).result()


class _Unrunnable(Exception):
    """The original cannot be run so; the message says why."""


class _Session:
    """A model in ONNX Runtime, without optimisation and on one thread: results do not depend on the machine's load."""

    def __init__(self, model: Model, path: Path, fold: bool, custom_ops: Sequence[str] = ()) -> None:
        from .ort_session import runtime, session_options

        source = _runnable(model, path, fold)
        large = isinstance(source, str) and stored_bytes(Path(source)) > RESIDENT
        options = session_options(custom_ops=custom_ops, mapped=large)
        self.session = runtime().InferenceSession(source, options, providers=["CPUExecutionProvider"])
        self.inputs = [i.name for i in self.session.get_inputs()]
        self.outputs = [o.name for o in self.session.get_outputs()]

    def run(self, inputs: Mapping[str, Any]) -> list[Any]:
        known = {*self.inputs, *(i.name for i in self.session.get_overridable_initializers())}
        return list(self.session.run(self.outputs, {k: v for k, v in inputs.items() if k in known}))


def _runnable(model: Model, path: Path, fold: bool) -> str | bytes:
    if isinstance(model, Graph):
        if model.weight_bytes > RESIDENT:
            save(model, path, fold, external=True)
            return str(path)
        return to_onnx(model, fold).SerializeToString()
    if isinstance(model, ModelProto):
        return model.SerializeToString()
    return bytes(model) if isinstance(model, (bytes, bytearray)) else str(Path(model))


class _Witness:
    """What else is known of the original's outputs on one input."""

    def __init__(self, reference: Reference, session: _Session | None, inputs: Mapping[str, Any], seed: int) -> None:
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


class _Verifier:
    """One comparison of two models."""

    def __init__(
        self, original: Model, optimized: Model, samples: int, seed: int, points: Sequence[Mapping[str, int]],
        inputs: Any, custom_ops: tuple[str, ...], seconds: float | None,
    ) -> None:  # fmt: skip
        self.original, self.optimized = original, optimized
        self.wanted, self.seed, self.points, self.custom_ops = samples, seed, points, custom_ops
        self.start, self.seconds = time.monotonic(), seconds
        self.graph = _graph(original)
        self.given = None if inputs is None else read_inputs(inputs, self.graph)
        self.symbols = input_symbols(self.graph)
        self.reference = Reference(self.graph, custom_ops)
        self.comparison = Comparison()
        self.samples, self.tried = 0, ""
        self.bindings: dict[tuple[tuple[str, int], ...], dict[str, int]] = {}
        self.dull: dict[tuple[tuple[str, int], ...], dict[str, int]] = {}
        self.previous: list[Any] | None = None
        self.constant: set[str] = set(self.graph.output_names)
        self.simple = 0
        self.guess = (0, 2)
        self.telling = True
        self.judge = "ONNX Runtime"
        self.narrow = self._narrow()

    def result(self) -> Verification:
        try:
            try:
                self._by_runtime()
            except _Unrunnable as error:
                if self.samples:
                    raise
                self._by_reference(str(error))
        except Failed as error:
            return self._verdict("failed", str(error))
        except _Unrunnable as error:
            return self._verdict("unverified", str(error))
        return self._verdict("passed", "")

    def _verdict(self, verdict: str, detail: str) -> Verification:
        notes = list(self.comparison.notes)
        c = self.comparison
        if verdict == "passed":
            count = len(self.bindings or self.dull)
            if self.symbols and count < min(BINDINGS, self.wanted):
                notes.append(
                    f"only {count} {'binding' if count == 1 else 'bindings'} of symbolic dimensions could be run"
                )
            if self.simple:
                notes.append(f"made-up inputs had to be simple ({VALUES[self.simple]})")
            if self.samples and not c.compared:
                notes.append("every output was NaN or empty, which shows little")
            elif c.undefined:
                notes.append(f"the original gives NaN in {', '.join(list(c.undefined)[:3])}")
            if c.undefined and (weight := self._undefined_weight()):
                notes.append(f"weight {weight!r} holds NaN")
            elif self.samples > 1 and self.constant:
                notes.append(f"output {', '.join(sorted(self.constant)[:3])} did not depend on the inputs")
        bindings = tuple((self.bindings or self.dull).values())
        return Verification(
            verdict, c.max_abs, c.max_rel, c.cosine, self.samples, detail, c.worst, tuple(notes), bindings, self.judge
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
                before = _Session(self.original, Path(folder) / "original.onnx", False, self.custom_ops)
            except UserError:
                raise
            except Exception as error:  # noqa: BLE001
                raise _Unrunnable(_why(error)) from None
            try:
                after = _Session(self.optimized, Path(folder) / "optimized.onnx", True, self.custom_ops)
            except Exception as error:
                what = f"ONNX Runtime cannot load the optimised model: {_first_line(error)}"
                raise Failed(what) from error
            self._interfaces(before.inputs, before.outputs, after.inputs, after.outputs)
            first, told = None, False
            for binding, inputs, expected in self._cases(before):
                if not self.samples and self._random(before, inputs, expected):
                    raise _Unrunnable("the original is random: it gives other results each time")
                try:
                    found = after.run(inputs)
                except Exception as error:
                    raise Failed(f"the optimised model cannot run: {_first_line(error)}") from error
                witness = _Witness(self.reference, before, inputs, self.seed * 1000 + self.samples)
                self._compare(before.outputs, expected, found, witness)
                self._overflow(inputs)
                self._ran(binding, before.outputs, expected)
                first = inputs if first is None or (self.telling and not told) else first
                told = told or self.telling
            if self.wanted and not self.samples:
                raise _Unrunnable(f"the original cannot be run: {self.tried}")
            if first is not None and self.narrow is not None and not self._late():
                self._in_float64(first)

    def _random(self, before: _Session, inputs: Mapping[str, Any], expected: list[Any]) -> bool:
        if not any("unique" in self.graph.nodes[i].attrs for i in self.graph.operators):
            return False
        return any(not same(a, b) for a, b in zip(expected, before.run(inputs), strict=True))

    def _compare(self, names: Sequence[str], expected: list[Any], found: list[Any], witness: _Witness) -> None:
        for j, name in enumerate(names):
            a = expected[j]
            dtype = str(a.dtype) if isinstance(a, np.ndarray) else UNKNOWN
            self.comparison.output(name, j, dtype, a, found[j], witness)

    def _ran(self, binding: dict[str, int], names: Sequence[str], expected: list[Any]) -> None:
        self.samples += 1
        if self.symbols:
            (self.bindings if self.telling else self.dull).setdefault(tuple(binding.items()), binding)
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
        if self.narrow is None or self.reference.reason or self._late():
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
            noisy = [other.noisy(inputs, rng, of=self.graph) for _ in range(3)]
        except (NotEvaluable, KeyError, MemoryError):
            return
        self._exact(before, after, noisy)

    def _exact(self, before: list[np.ndarray], after: list[np.ndarray], noisy: list[list[np.ndarray]]) -> None:
        for j, name in enumerate(self.graph.output_names):
            if before[j].dtype.kind == "f":
                self.comparison.exact(name, before[j], after[j], [n[j] for n in noisy])

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
        for binding, inputs, expected in self._cases(before):
            after.replay, before.replay, before.record = before.record, before.record, None
            try:
                found = after.run(inputs)
            except NotEvaluable as error:
                raise Failed(f"the optimised model cannot be computed: {error}") from error
            rng = np.random.default_rng([self.seed, self.samples])
            noisy = [after.noisy(inputs, rng, of=self.graph) for _ in range(2)]
            before.replay = None
            witness = _Witness(before, None, inputs, self.seed * 1000 + self.samples)
            for j, name in enumerate(before.outputs):
                dtype = before.dtypes[j] if "float" in before.dtypes[j] else str(expected[j].dtype)
                self.comparison.output(name, j, dtype, expected[j], found[j], witness)
            self._exact(expected, found, noisy)
            self._ran(binding, before.outputs, expected)
            before.record = Tape()
        if self.wanted and not self.samples:
            raise _Unrunnable(f"{reason}; the reference evaluator cannot compute it either: {self.tried}")
        self.comparison.notes[f"compared in float64 by the reference evaluator, because {reason}"] = None

    # Inputs

    def _cases(self, before: _Session | Reference) -> Iterator[tuple[dict[str, int], dict[str, Any], list[Any]]]:
        """Bindings, inputs that the original runs on, and its outputs."""
        if self.given is not None:
            self.wanted += bool(self.wanted)
            try:
                yield bound_symbols(self.graph, self.given), dict(self.given), before.run(self.given)
            except (Failed, _Unrunnable):
                raise
            except Exception as error:
                if isinstance(error, NotEvaluable):
                    raise _Unrunnable(str(error)) from error
                raise UserError(f"the original model cannot run on the given inputs: {_first_line(error)}") from error
        k = 0
        for point in self.points if self.wanted else ():
            self.wanted += 1
            yield from self._case(before, completed(self.graph, point), k)
            k += 1
        ran: list[dict[str, int]] = []
        dull: list[dict[str, int]] = []
        for binding in candidates(self.graph, self.seed) if self.symbols else ({},):
            if self.samples >= self.wanted and (len(ran) >= min(BINDINGS, self.wanted) or not self.symbols):
                break
            if self._degenerate(binding):
                continue
            if self._late() or len(dull) > DULL or (isinstance(before, Reference) and not ran and k > SLOW):
                break
            for case in self._case(before, binding, k):
                (ran if self.telling else dull).append(binding)
                yield case
            k += 1
        chosen = ran or dull
        while chosen and self.samples < self.wanted and not self._late():
            count = self.samples
            yield from self._case(before, chosen[count % len(chosen)], k)
            k += 1
            if self.samples == count:
                return

    def _case(
        self, before: _Session | Reference, binding: dict[str, int], k: int
    ) -> Iterator[tuple[dict[str, int], dict[str, Any], list[Any]]]:
        """The case of this binding, if the original runs there: made-up values get simpler until it does."""
        unranked = [
            str(n.attrs["name"])
            for n in self.graph.nodes
            if n.op == "Input" and isinstance(n.type, TensorType) and n.type.shape is None
        ]
        guesses = [(g, e) for e in (2, 1) for g in range(GUESSES)] if unranked else [(0, 2)]
        distribution = DISTRIBUTIONS[k % len(DISTRIBUTIONS)]
        for guess, extent in sorted(guesses, key=lambda found: found != self.guess):
            before_this = ""
            extents = {**{f"?{name}.{axis}": extent for name in unranked for axis in range(8)}, **binding}
            for v, values in enumerate(VALUES):
                try:
                    inputs = random_inputs(self.graph, self.seed * 1000 + k, extents, distribution, values, guess)
                    expected = before.run(inputs)
                except Exception as error:  # noqa: BLE001 (extents that do not fit together, values out of range)
                    self.tried = _first_line(error)
                    if isinstance(error, NotEvaluable) and "has no reference implementation" in self.tried:
                        return
                    if self.tried == before_this and _mentions_shapes(self.tried):
                        break  # other values of the same shapes will not help
                    before_this = self.tried
                    continue
                self.simple, self.guess = max(self.simple, v), (guess, extent)
                self.telling = not self.symbols or self._tells(before, binding, inputs, k, values, expected)
                yield binding, inputs, expected
                return

    def _degenerate(self, binding: Mapping[str, int]) -> bool:
        """Whether some value has no elements at this binding, or less: the model is not meant for it."""
        known = set(binding)
        return any(evaluate_dimension(d, binding) <= 0 for d in self.dimensions if known.issuperset(d.symbols))

    @cached_property
    def dimensions(self) -> tuple[Polynomial, ...]:
        """The symbolic dimensions of the values inside the graph."""
        found: dict[Polynomial, None] = {}
        for i in self.graph.operators:
            kind = self.graph.nodes[i].type
            for t in kind.items if isinstance(kind, TupleType) else (kind,):
                found.update(dict.fromkeys(d for d in t.shape or () if not isinstance(d, int)))
        return tuple(found)

    def _covered(self, inputs: Mapping[str, Any]) -> bool:
        """Whether every window of a convolution or pooling lies in its operand: ONNX Runtime reckons on without."""
        if not any(part in self.graph.nodes[i].op for i in self.graph.operators for part in ("Conv", "Pool")):
            return True
        try:
            self.reference.run(inputs)
        except (NotEvaluable, KeyError, MemoryError) as error:
            return not re.search(
                r"padded input size|smaller than|too small|size of kernel|should be at most", str(error)
            )
        return True

    def _tells(
        self, before: _Session | Reference, binding: dict[str, int], inputs: Mapping[str, Any], k: int, values: str,
        expected: list[Any],
    ) -> bool:  # fmt: skip
        """Whether the outputs at this binding depend on the inputs: of an image that is too small nothing is left."""
        tape = before.record if isinstance(before, Reference) else None
        if isinstance(before, Reference):
            before.record = Tape()
        try:
            if not self._covered(inputs):
                return False
            other = random_inputs(self.graph, self.seed * 1000 + k + 500, binding, "uniform", values, self.guess[0])
            return any(not same(a, b) for a, b in zip(expected, before.run(other), strict=True))
        except Exception:  # noqa: BLE001
            return True
        finally:
            if isinstance(before, Reference):
                before.record = tape

    def _late(self) -> bool:
        """Whether the time is up: only once something was compared, or nothing was for three times as long."""
        limit = PATIENCE if self.seconds is None else self.seconds
        return time.monotonic() - self.start > limit * (1 if self.samples else 3)

    def _interfaces(self, inputs: list[str], outputs: list[str], others: list[str], results: list[str]) -> None:
        if outputs != results:
            raise Failed(f"outputs {results} instead of {outputs}")
        extra = [name for name in others if name not in inputs]
        if extra:
            raise Failed(f"needs the input {extra[0]!r}, which the original has not")


def _graph(model: Model) -> Graph:
    return model if isinstance(model, Graph) else load(model)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


_LACKING = (
    r"Could not find an implementation for (\w+)\(\d+\) node with name '(.*?)'",
    r"Fatal error: ([\w.:]+?)\(-?\d+\) is not a registered function/op",
    r"No Op registered for (\w+) with domain_version",
    r"No opset import for domain '?([\w.]+)'?",
)


def _why(error: BaseException) -> str:
    """Why ONNX Runtime cannot load the original; the operator that it lacks, if that is why."""
    text = str(error)
    for pattern in _LACKING:
        if match := re.search(pattern, text):
            node = match.group(2) if match.lastindex == 2 and match.group(2) else ""
            where = f" (node {node!r})" if node else ""
            hint = "; --custom-ops gives it the library of one" if ":" in match.group(1) else ""
            return f"ONNX Runtime lacks the operator {match.group(1)}{where}{hint}"
    return f"ONNX Runtime cannot load the original: {_first_line(error)}"


_OUTSIDE = r"padded input size|smaller than|too small|size of kernel|should be at most"
"""How torch says that a window does not fit into its operand."""


def _mentions_shapes(text: str) -> bool:
    return any(word in text.lower() for word in ("shape", "dimension", "broadcast", "size"))
