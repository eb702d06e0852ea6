"""Progress of long work: a line with the stage, how far it is and the best so far; silent when not a terminal."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, Self


class Progress:
    """Shows one updating line on standard error. Use as a context manager.

    shown: None shows it only when standard error is a terminal. budget: seconds, to say how many are left.
    """

    def __init__(self, shown: bool | None = None, budget: float | None = None) -> None:
        self.shown = sys.stderr.isatty() if shown is None else shown
        self.budget = budget
        self.started = time.monotonic()
        self.stage = ""
        self._live: Any = None

    def __enter__(self) -> Self:
        if self.shown:
            from rich.console import Console

            self._live = Console(stderr=True).status("")
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def begin(self, stage: str) -> None:
        """A new stage of the work."""
        self.stage = stage
        self.say("")

    def say(self, text: str) -> None:
        """News of the current stage."""
        if self._live is None:
            return
        left = ""
        if self.budget is not None:
            left = f" · {max(0.0, self.budget - (time.monotonic() - self.started)):.0f} s left"
        self._live.update(f"{self.stage}{': ' if text else ''}{text}{left}")

    def bar(self, done: int, total: int, text: str = "") -> None:
        """So many of so many."""
        width = 24
        full = width * done // max(1, total)
        self.say(f"[{'█' * full}{'·' * (width - full)}] {done}/{total} {text}".rstrip())
