"""What a comparison says, and the statistics behind it.

The interval is a *confidence sequence* for the median of the ratios: whatever their distribution, it holds
the median at all times with 99 %, so that one may look after each block and stop when the answer is clear, or go on
while it is not. It inverts a bet against "half of the ratios lie above m": the wealth of a gambler whose stakes are
those of Krichevsky and Trofimov (1981) ever passes 100 with a probability of at most 1 % if that is true (Ville 1939;
Howard and Ramdas, Sequential estimation of quantiles, Bernoulli 2022). Rounds share their process, whose memory layout
is luck that lasts: hence several blocks, and control blocks of the original against itself (A/A). From how much blocks
differ among themselves, and controls from 1, it is told how far off the mean of so many blocks may be by luck. A
difference counts if the interval clears `MARGIN`, and the mean that luck as well.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

MARGIN = 0.01
"""Least gain that counts: differences below 1 % are a tie however sure they are."""

LUCK = 2.58
"""So many standard errors the mean of the blocks must lie from 1, if luck were known exactly; Student's quantile of the
same probability takes into account from how few blocks it is told."""

LEVEL = 0.99
"""Level of the interval."""


@dataclass(frozen=True)
class Verdict:
    """What a fresh measurement says.

    original_ms, optimized_ms: medians; None when nothing was measured (identical programs, or a failure).
    speedup: median of original/optimised per round; ci_low, ci_high: its interval at level `LEVEL`.
    verdict: "faster" and "slower" only if the interval clears the least margin, and the mean what luck may do.
    judge: False where the figures are no judge of the models, because kernels are not tuned; `reason` then says so.
    settings: pipeline, tuning, threads, rounds, controls.
    """

    original_ms: float | None
    optimized_ms: float | None
    speedup: float
    ci_low: float
    ci_high: float
    verdict: Literal["faster", "tie", "slower"]
    judge: bool = True
    reason: str = ""
    settings: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in asdict(self).items()}

    def __str__(self) -> str:
        if self.original_ms is None or self.optimized_ms is None:
            return f"{self.verdict} ({self.reason})"
        text = (
            f"{self.original_ms:.3f} ms → {self.optimized_ms:.3f} ms, "
            f"{self.speedup:.3f}x [{self.ci_low:.3f}, {self.ci_high:.3f}]: {self.verdict}"
        )
        return text + (f" ({self.reason})" if self.reason else "")


def wealth(above: int, n: int) -> float:
    """Logarithm of what a gambler has who bet against even odds n times, `above` of which came out on one side.

    A fair game makes it larger than log(1/α) ever with a probability of at most α.
    """
    below = n - above
    return (
        n * math.log(2.0)
        + math.lgamma(above + 0.5)
        + math.lgamma(below + 0.5)
        - math.lgamma(n + 1.0)
        - math.log(math.pi)
    )


def median_interval(values: Sequence[float] | np.ndarray, level: float = LEVEL) -> tuple[float, float]:
    """Interval that holds the median at every time with this probability, whatever the distribution; (0, inf) if there
    are too few values to say anything."""
    ordered = np.sort(np.asarray(values, float))
    n, needed = len(ordered), -math.log(1.0 - level)
    rank = 0
    while rank < n // 2 and wealth(rank, n) >= needed:
        rank += 1
    return (0.0, math.inf) if rank == 0 else (float(ordered[rank - 1]), float(ordered[n - rank]))


def decide(
    blocks: Sequence[Sequence[float]], controls: Sequence[Sequence[float]] = (), margin: float = MARGIN
) -> tuple[float, float, float, Literal["faster", "tie", "slower"], float]:
    """(speed-up, low, high, verdict, margin used) from the ratios original/candidate of each block.

    controls: ratios of blocks in which both sides were the original. One or none says little about luck: twice what it
    deviates is the margin then. Of more, luck is told from by how much they are off 1, and blocks off their mean.
    """
    ratios = np.concatenate([np.asarray(b, float) for b in blocks])
    low, high = median_interval(ratios)
    logs = [math.log(statistics.median(b)) for b in blocks]
    mean = statistics.fmean(logs)
    off = [math.log(statistics.median(c)) for c in controls if len(c)]
    if len(off) < 2:
        used = 2 * max([math.log1p(margin), *map(abs, off)])
    else:
        squares = sum(d * d for d in off) + sum((x - mean) ** 2 for x in logs)
        freedom = len(off) + len(logs) - 1
        luck = student(freedom) * math.sqrt(squares / freedom / len(logs))
        used = max(math.log1p(margin), luck)
    least = used if len(off) < 2 else math.log1p(margin)
    middle = math.log(float(np.median(ratios)))
    verdict: Literal["faster", "tie", "slower"] = "tie"
    if len(off) < 2 and len({x > 0.0 for x in logs}) > 1:
        pass  # too little is known of luck to overrule a block
    elif math.log(max(low, 1e-12)) > least and min(middle, mean) > used:
        verdict = "faster"
    elif math.log(high) < -least and max(middle, mean) < -used:
        verdict = "slower"
    return float(np.median(ratios)), low, high, verdict, math.expm1(used)


def student(freedom: int) -> float:
    """Student's quantile of the probability that `LUCK` has in a normal distribution (Fisher and Cornish 1960)."""
    z, v = LUCK, freedom
    return (
        z
        + (z**3 + z) / (4 * v)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
    )


def settled(blocks: Sequence[Sequence[float]], controls: Sequence[Sequence[float]], margin: float = MARGIN) -> bool:
    """Whether more rounds would hardly change the verdict: it is out, or the interval lies within twice the margin."""
    if not blocks:
        return False
    _, low, high, verdict, _ = decide(blocks, controls, margin)
    return verdict != "tie" or (low > 1.0 / (1.0 + 2 * margin) and high < 1.0 + 2 * margin)


def rounds_of(
    first: Callable[[], float], second: Callable[[], float], rounds: int, rng: np.random.Generator
) -> tuple[list[float], list[float]]:
    """Milliseconds of both sides, each timed once in each round, in random order."""
    one, two = [], []
    for _ in range(rounds):
        if rng.random() < 0.5:
            one.append(first())
            two.append(second())
        else:
            two.append(second())
            one.append(first())
    return one, two
