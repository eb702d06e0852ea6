"""The inputs that two models are compared on: bindings of the symbols, and values that the original runs with."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, TypeAlias

from ..egraph.dimension import Polynomial, evaluate
from ..egraph.graph import TensorType, TupleType
from ..errors import UserError
from .bindings import candidates, completed, input_symbols
from .comparison import Failed, same
from .evaluation import NotEvaluable
from .feeds import bound_symbols
from .inputs import DISTRIBUTIONS, GUESSES, VALUES, random_inputs
from .plain_session import PlainSession, first_line
from .reference import Reference, Tape

BINDINGS = 3
"""Distinct bindings of a model's symbols that are wanted."""

PATIENCE = 120.0
"""Seconds for everything, where no limit is given; one comparison at least is made."""

DULL = 6
"""Bindings at which the outputs do not depend on the inputs that are tried before they are taken as they are."""

SLOW = 30
"""Bindings at which the reference evaluator, which is slow, has to run once."""

_OUTSIDE = r"padded input size|smaller than|too small|size of kernel|should be at most"
"""How torch says that a window does not fit into its operand."""

Runner: TypeAlias = PlainSession | Reference

Case: TypeAlias = tuple[dict[str, int], dict[str, Any], list[Any]]
"""A binding, inputs that the original runs on, and its outputs."""


class Unrunnable(Exception):
    """The original cannot be run so; the message says why."""


class Cases:
    """The hunt for cases, and the account of it.

    wanted: cases to compare; for the given inputs and each of the `points` there is one more. start: when the time
    began to run, by `time.monotonic`.
    """

    def __init__(
        self, reference: Reference, wanted: int, seed: int, points: Sequence[Mapping[str, int]],
        given: Mapping[str, Any] | None, start: float, seconds: float | None,
    ) -> None:  # fmt: skip
        self.graph, self.reference = reference.graph, reference
        self.wanted, self.seed, self.points, self.given = wanted, seed, points, given
        self.start, self.seconds = start, seconds
        self.begun, self.took = start, 0.0
        """When the last case began; seconds that the last one that was compared took, as the next one will."""
        self.symbols = input_symbols(self.graph)
        self.samples, self.tried = 0, ""
        """Cases compared, and why the last that did not run did not."""
        self.bindings: dict[tuple[tuple[str, int], ...], dict[str, int]] = {}
        self.dull: dict[tuple[tuple[str, int], ...], dict[str, int]] = {}
        """Bindings compared at; those at which the outputs do not depend on the inputs."""
        self.telling = True
        """Whether the outputs of the last case depend on its inputs."""
        self.simple = 0
        """How simple values had to be (a place in `VALUES`)."""
        self.guess = (0, 2)
        """How inputs of unknown rank were made last."""

    def compared(self, binding: dict[str, int]) -> None:
        """The last case, at this binding, was compared."""
        self.samples += 1
        self.took = time.monotonic() - self.begun
        if self.symbols:
            (self.bindings if self.telling else self.dull).setdefault(tuple(binding.items()), binding)

    @property
    def ran(self) -> tuple[dict[str, int], ...]:
        """The bindings compared at that left something to compare; if there is none, the others."""
        return tuple((self.bindings or self.dull).values())

    def of(self, before: Runner) -> Iterator[Case]:
        """The cases, each to be compared, and reported to `compared`, before the next is asked for."""
        if self.given is not None:
            self.wanted += bool(self.wanted)
            try:
                yield bound_symbols(self.graph, self.given), dict(self.given), before.run(self.given)
            except (Failed, Unrunnable):
                raise
            except Exception as error:
                if isinstance(error, NotEvaluable):
                    raise Unrunnable(str(error)) from error
                raise UserError(f"the original model cannot run on the given inputs: {first_line(error)}") from error
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
            if (k and self.late()) or len(dull) > DULL or (isinstance(before, Reference) and not ran and k > SLOW):
                break
            for case in self._case(before, binding, k):
                (ran if self.telling else dull).append(binding)
                yield case
            k += 1
        chosen = ran or dull
        while chosen and self.samples < self.wanted and not self.late():
            count = self.samples
            yield from self._case(before, chosen[count % len(chosen)], k)
            k += 1
            if self.samples == count:
                return

    def _case(self, before: Runner, binding: dict[str, int], k: int) -> Iterator[Case]:
        """The case of this binding, if the original runs there: made-up values get simpler until it does."""
        self.begun = time.monotonic()
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
                    self.tried = first_line(error)
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
        return any(evaluate(d, binding) <= 0 for d in self.dimensions if known.issuperset(d.symbols))

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
            return not re.search(_OUTSIDE, str(error))
        return True

    def _tells(
        self, before: Runner, binding: dict[str, int], inputs: Mapping[str, Any], k: int, values: str,
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

    def late(self) -> bool:
        """Whether one more case would take too long: only once one was compared, or none for three times as long."""
        limit = PATIENCE if self.seconds is None else self.seconds
        return time.monotonic() + self.took - self.start > limit * (1 if self.samples else 3)


def _mentions_shapes(text: str) -> bool:
    return any(word in text.lower() for word in ("shape", "dimension", "broadcast", "size"))
