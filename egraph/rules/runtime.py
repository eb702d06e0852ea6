"""Target forms: operators that one runtime has and another has not."""

from __future__ import annotations

from .language import Rule

RULES: list[Rule] = []
