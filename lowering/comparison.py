"""Whether the outputs of two programs on one input are the same, up to what rounding explains.

See `verification` for the rules. What rounding explains is asked of a `Witness`, which knows other computations of the
original's outputs, and only where two outputs are not close at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np

COSINE = 0.9999
TOLERANCES = {  # relative to the element, and to the output's scale (its largest magnitude)
    "float64": (1e-7, 1e-8),
    "float32": (1e-4, 1e-5),
    "float16": (1e-3, 1e-3),
    "bfloat16": (1.6e-2, 1.6e-2),
    "complex64": (1e-4, 1e-5),
    "complex128": (1e-7, 1e-8),
    "float8e4m3fn": (0.13, 0.02),
    "float8e4m3fnuz": (0.13, 0.02),
    "float8e5m2": (0.26, 0.04),
    "float8e5m2fnuz": (0.26, 0.04),
}
OWN_ERROR_FACTOR = 4.0
OWN_ERROR_LIMIT = 1e-3
"""An *estimated* own error is believed up to this share of the output's scale; more would hide a real difference."""
STEP_LIMIT = 2.0**-6
"""The same where rounding can flip a quantised value: two steps of an 8-bit type."""
EXACT_FACTOR = 1.5
"""How many times what rounding the computed weights once does two float64 computations may differ."""
FLIPS = 8
"""Elements that may flip beyond four times as many as in any noisy run of the original."""

Own: TypeAlias = Callable[[], tuple[np.ndarray | None, bool]]
"""Another computation of an output, as one row of float64, and whether it is exact."""


class Failed(Exception):
    """The programs differ; the message says how."""


class Witness(Protocol):
    """What else is known of the original's outputs on this input."""

    def own(self, j: int) -> tuple[np.ndarray | None, bool]:
        """Another computation of output j (None if there is none), and whether it is exact."""

    def noisy(self, j: int) -> list[np.ndarray]:
        """Output j as the original gives it when inputs and weights carry an error of about one rounding."""

    def tied(self, j: int, a: np.ndarray, b: np.ndarray) -> np.ndarray | None:
        """Where the indices a and b point to equal values, up to rounding; None if output j holds no such indices."""

    def steps(self) -> bool:
        """Whether the original has operators that turn a small change into a large one (rounding, choosing)."""


class Comparison:
    """Compares outputs and keeps account of the differences."""

    def __init__(self) -> None:
        self.max_abs, self.max_rel, self.cosine = 0.0, 0.0, 1.0
        self.worst = ""
        self.compared = 0
        self.notes: dict[str, None] = {}
        self.undefined: dict[str, None] = {}
        """Outputs in which the original has NaN."""

    def output(self, name: str, j: int, dtype: str, a: Any, b: Any, witness: Witness | None) -> None:
        """Compare output j, of this declared element type: `a` of the original, `b` of the other. Raises `Failed`."""
        if isinstance(a, list) and isinstance(b, list):
            if len(a) != len(b):
                self.fail(name, f"{len(b)} elements instead of {len(a)}")
            for x, y in zip(a, b, strict=True):
                self.output(name, j, str(getattr(x, "dtype", dtype)), x, y, None)
            return
        if not isinstance(a, np.ndarray) or not isinstance(b, np.ndarray):
            if not same(a, b):
                self.fail(name, "other values")
            self.compared += 1
            return
        if a.shape != b.shape or a.dtype != b.dtype:
            self.fail(name, f"{b.dtype}{list(b.shape)} instead of {a.dtype}{list(a.shape)}")
        if not a.size:
            return
        if dtype not in TOLERANCES:
            self.compared += 1
            if not same(a, b):
                self._discrete(name, j, a, b, witness)
            return
        if a.dtype.kind == "c":
            for part in ("real", "imag"):
                self._floats(name, dtype, _row(getattr(a, part)), _row(getattr(b, part)), lambda: (None, False), None)
            return
        own: Own = (lambda: (None, False)) if witness is None else lambda: witness.own(j)
        noisy = None if witness is None or not witness.steps() else lambda: witness.noisy(j)
        self._floats(name, dtype, _row(a), _row(b), own, noisy)

    def fail(self, name: str, what: str) -> None:
        self.worst = name
        raise Failed(what)

    # Integers, booleans, strings

    def _discrete(self, name: str, j: int, a: np.ndarray, b: np.ndarray, witness: Witness | None) -> None:
        """Values that differ are right only where rounding alone makes the original differ from itself."""
        differing = np.asarray(a != b)
        if witness is not None and a.dtype != object:
            if a.dtype.kind in "iu" and a.dtype.itemsize > 1:
                tied = witness.tied(j, a, b)
                if tied is not None:
                    differing &= ~tied
            if differing.any() and witness.steps():
                runs = [n for n in witness.noisy(j) if n.shape == a.shape and n.dtype == a.dtype]
                if runs and _explained(a, b, differing, runs):
                    differing = np.zeros_like(differing)
            if not differing.any():
                self.notes[f"some elements of {name} are ties, or at the edge of two steps, that rounding decides"] = (
                    None
                )
                return
        self.fail(name, f"{int(differing.sum())} of {a.size} elements differ")

    # Floats

    def _floats(
        self, name: str, dtype: str, a: np.ndarray, b: np.ndarray, own: Own,
        noisy: Callable[[], list[np.ndarray]] | None,
    ) -> None:  # fmt: skip
        strange = int((~np.isfinite(b) & np.isfinite(a)).sum())
        if strange:
            self.fail(name, f"{strange} NaN or infinite elements that the original has not")
        if np.isnan(a).any():
            self.undefined.setdefault(name)
        infinite = np.isinf(a) & (a != b)
        if infinite.any():
            # The original overflowed where the other did not: right if the exact value is finite.
            third, exact = _at(own(), infinite)
            if third is None or not exact or not np.isfinite(third).all():
                self.fail(name, f"{int(infinite.sum())} elements are not infinite, those of the original are")
        lost = np.isnan(a) & ~np.isnan(b)
        if lost.any():
            third, exact = _at(own(), lost)
            if third is not None and exact and np.isnan(third).any():
                self.fail(name, f"{int(np.isnan(third).sum())} elements are numbers where the original has NaN")
        finite = np.isfinite(a)
        if finite.any():
            self.compared += 1
            runs = None if noisy is None else lambda: [_row(n)[finite] for n in noisy() if n.size == a.size]
            self._close(name, dtype, a[finite], b[finite], lambda: _at(own(), finite), runs)

    def _close(
        self, name: str, dtype: str, a: np.ndarray, b: np.ndarray, own: Own,
        noisy: Callable[[], list[np.ndarray]] | None,
    ) -> None:  # fmt: skip
        """Compare finite elements; the original's own error is asked for only where they are not close at once."""
        relative, absolute = TOLERANCES[dtype]
        scale = float(np.abs(a).max())
        self._record(name, a, b, scale)
        near = (np.abs(a - b) <= relative * np.abs(a) + absolute * scale).all()
        if near and cosine(a, b) >= COSINE:
            return
        third, exact = own()
        third = a if third is None else np.where(np.isfinite(third), third, a)
        reference, own_error = third if exact else a, float(np.abs(a - third).max())
        if not exact:
            own_error = min(own_error, OWN_ERROR_LIMIT * scale)
        tolerance = relative * np.abs(reference) + absolute * float(np.abs(reference).max())
        error, allowed = np.abs(b - reference), np.maximum(tolerance, OWN_ERROR_FACTOR * own_error)
        wrong = (error > allowed).any() or cosine(a, b) < COSINE <= cosine(a, third)
        if wrong and noisy is not None and _within_noise(a, b, noisy(), relative * np.abs(a) + absolute * scale):
            self.notes[f"{name} differs as the original does from itself under rounding"] = None
            return
        if (error > allowed).any():
            k = int(np.argmax(error - allowed))
            self.fail(name, f"element {k} is {b[k]:.7g}, not {reference[k]:.7g} (allowed difference {allowed[k]:.2g})")
        if wrong:
            self.fail(name, f"cosine similarity {cosine(a, b):.6f}")

    def exact(self, name: str, a: np.ndarray, b: np.ndarray, errors: Sequence[np.ndarray]) -> None:
        """Compare two float64 computations: they may differ by what one rounding does, hardly more.

        errors: samples of what one rounding of the constants in which the two programs differ does to `b - a`.
        """
        if a.shape != b.shape:
            self.fail(name, f"shape {list(b.shape)} instead of {list(a.shape)}")
        a, b = _row(a), _row(b)
        finite = np.isfinite(a) & np.isfinite(b)
        if not finite.any():
            return
        runs = [_row(e)[finite] for e in errors if e.size == finite.size]
        runs = [e for e in runs if np.isfinite(e).all()]
        a, b = a[finite], b[finite]
        own = EXACT_FACTOR * max((float(np.abs(e).max()) for e in runs), default=0.0)
        mean = EXACT_FACTOR * max((_mean(e) for e in runs), default=0.0)
        scale = float(np.abs(a).max())
        relative, absolute = TOLERANCES["float32"]
        tolerance = relative * np.abs(a) + absolute * scale
        error, allowed = np.abs(a - b), np.maximum(tolerance, own)
        k = int(np.argmax(error - allowed))
        if error[k] > allowed[k]:
            what = f"element {k} is {b[k]:.7g}, not {a[k]:.7g} (allowed difference {allowed[k]:.2g})"
            self.fail(name, f"computed in float64, {what}")
        if _mean(error) > max(_mean(tolerance), mean):
            what = f"the mean difference is {_mean(error):.2g} (allowed {max(_mean(tolerance), mean):.2g})"
            self.fail(name, f"computed in float64, {what}")

    def _record(self, name: str, a: np.ndarray, b: np.ndarray, scale: float) -> None:
        difference = float(np.abs(a - b).max())
        share = difference / scale if scale > 0 else (np.inf if difference else 0.0)
        self.max_abs = max(self.max_abs, difference)
        if share > self.max_rel:
            self.max_rel, self.worst = share, name
        self.cosine = min(self.cosine, cosine(a, b))


def _row(array: np.ndarray) -> np.ndarray:
    return np.asarray(array).astype(np.float64).reshape(-1)


def _mean(array: np.ndarray) -> float:
    """Root mean square."""
    return float(np.sqrt(np.mean(array**2)))


def _at(own: tuple[np.ndarray | None, bool], where: np.ndarray) -> tuple[np.ndarray | None, bool]:
    """The same for some elements; nothing if there are others than expected."""
    third, exact = own
    return (third[where], exact) if third is not None and third.size == where.size else (None, False)


def _explained(a: np.ndarray, b: np.ndarray, differing: np.ndarray, runs: Sequence[np.ndarray]) -> bool:
    """Whether noisy runs of the original differ from it as b does."""
    if a.dtype.kind in "iu" and a.dtype.itemsize == 1:  # quantised: a step here or there
        wide = a.astype(np.int64)
        step = max(int(np.abs(n.astype(np.int64) - wide).max()) for n in runs)
        flips = max(int((n != a).sum()) for n in runs)
        largest = int(np.abs(b.astype(np.int64) - wide)[differing].max())
        return largest <= step and int(differing.sum()) <= 4 * flips + FLIPS
    seen = np.zeros(a.shape, bool)
    for n in runs:
        seen |= n == b
    return bool(seen[differing].all())


def _within_noise(a: np.ndarray, b: np.ndarray, runs: Sequence[np.ndarray], tolerance: np.ndarray) -> bool:
    """Whether b differs from a no more than noisy runs do, in the largest element, on average and in number."""
    runs = [n for n in runs if n.size == a.size and np.isfinite(n).all()]
    if not runs:
        return False
    scale = float(np.abs(a).max())
    worst = min(max(float(np.abs(n - a).max()) for n in runs), STEP_LIMIT * scale)
    mean = max(_mean(n - a) for n in runs)
    count = max(int((np.abs(n - a) > tolerance).sum()) for n in runs)
    error = np.abs(b - a)
    return bool(
        worst > 0
        and error.max() <= OWN_ERROR_FACTOR * worst
        and _mean(error) <= OWN_ERROR_FACTOR * mean
        and int((error > tolerance).sum()) <= 4 * count + FLIPS
    )


def same(a: Any, b: Any) -> bool:
    """Whether two values (arrays, or lists and dictionaries of them) are equal; NaN equals NaN."""
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        if a.shape != b.shape or a.dtype != b.dtype:
            return False
        if a.dtype.kind == "V":  # numpy cannot compare bfloat16 NaN
            return bool(np.array_equal(_row(a), _row(b), equal_nan=True))
        return bool(np.array_equal(a, b, equal_nan=a.dtype.kind in "fc"))
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, float) and isinstance(b, float):
        return a == b or (np.isnan(a) and np.isnan(b))
    return type(a) is type(b) and bool(a == b)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Cosine similarity; 1 if both are zero or there is but one element of the same sign."""
    # Scaled first: the squares of large numbers overflow.
    top = max(float(np.abs(a).max()), float(np.abs(b).max()))
    if top == 0:
        return 1.0
    a, b = a / top, b / top
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    return min(1.0, float(a @ b) / norms) if norms > 0 else 0.0
