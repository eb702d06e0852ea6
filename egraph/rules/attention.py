"""Attention: scales, heads, decomposed and fused."""

from __future__ import annotations

from .language import Rule

RULES: list[Rule] = []
