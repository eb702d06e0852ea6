"""Pages with a part that a script writes: `write` renews it, or with --check says whether it is current."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def write(page: Path, begin: str, end: str, table: str, script: str) -> int:
    """Put `table` between the marks `begin` and `end` of a page; the exit code, 1 if --check finds it out of date."""
    old = page.read_text(encoding="utf-8")
    head, _, rest = old.partition(begin)
    new = head + begin + "\n" + table + end + rest.partition(end)[2]
    if "--check" in sys.argv[1:]:
        if old != new:
            print(f"docs/{page.name} is out of date: run python docs/{script}", file=sys.stderr)
        return int(old != new)
    partial = page.with_suffix(f".{os.getpid()}")
    partial.write_text(new, encoding="utf-8")
    os.replace(partial, page)
    return 0
