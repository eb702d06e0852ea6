"""What saturation tells of itself: why it stopped, what each rule did, which rules it did without."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .nearness import Miss


@dataclass(frozen=True)
class RuleStatistics:
    """What one rule did. `matches` = `firings` + `known` + `unfit` + the sum of `refused`."""

    matches: int = 0
    """Places where the left side's operators were found."""
    firings: int = 0
    """Matches that taught the e-graph something."""
    known: int = 0
    """Matches whose two sides were equal already."""
    unfit: int = 0
    """Matches whose attributes are not the pattern's, or of constants only, which are folded anyway."""
    refused: Mapping[str, int] = field(default_factory=dict)
    """Matches that a guard refused, by the reason."""
    enodes: int = 0
    """Terms that it made, whether or not the outputs can reach them."""
    seconds: float = 0.0
    """Time for finding its matches, for its guards and right sides."""


@dataclass(frozen=True)
class SaturationReport:
    """What saturation did: rounds run, seconds taken, why it stopped, and what each rule did."""

    iterations: int = 0
    seconds: float = 0.0
    stop_reason: str = "not saturated"
    rules: Mapping[str, RuleStatistics] = field(default_factory=dict)
    """Every rule that had a match, in the order in which rules are tried."""
    excluded: Mapping[str, str] = field(default_factory=dict)
    """Rules that led to a contradiction and were left out of the e-graph, with what contradicts what."""
    misses: tuple[Miss, ...] = ()
    """Where rules almost fired, if saturation was asked to look for that."""
    terms: int = 0
    """Terms in the end, those of the input graph and those that no output can reach included."""

    @property
    def fired(self) -> dict[str, int]:
        """How often each rule fired; those that did."""
        return {name: s.firings for name, s in self.rules.items() if s.firings}

    @property
    def refused(self) -> dict[str, dict[str, int]]:
        """How often each rule refused, by reason; those that did."""
        return {name: dict(s.refused) for name, s in self.rules.items() if s.refused}
