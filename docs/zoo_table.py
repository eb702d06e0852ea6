"""Writes the tables of the zoo's models into docs/zoo.md. With --check it only says whether they are current.

Usage: python docs/zoo_table.py [--check]
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from xrlflow.zoo import MODELS
from xrlflow.zoo.__main__ import row
from xrlflow.zoo.catalogue import FAMILIES
from xrlflow.zoo.registry import PREFIX, TINY

PAGE = Path(__file__).parent / "zoo.md"
BEGIN, END = "<!-- begin: docs/zoo_table.py -->", "<!-- end: docs/zoo_table.py -->"


def table() -> str:
    """The models of the papers, the others, and the exports."""
    papers = ["## As in the papers", "", "| name | what | from | inputs | operators | weights | faithful |"]
    papers.append("|---|---|---|---|---:|---:|---|")
    others = ["## Faithful", "", "| name | what | from | inputs | operators | weights | symbols |"]
    others.append("|---|---|---|---|---:|---:|---|")
    for name, entry in MODELS.items():
        if name.endswith(TINY):
            continue
        _, what, inputs, operators, weights = row(name)
        last = f"`{entry.twin}`" if entry.twin else ", ".join(entry.symbolic)
        line = f"| `{name}` | {what} | {entry.source} | {inputs} | {operators} | {weights} | {last} |"
        (papers if entry.twin else others).append(line)
    small = ", ".join(f"`{name}`" for name in MODELS if name.endswith(TINY))
    exports = ["## Exports", "", "| name | what |", "|---|---|"]
    exports += [f"| `{PREFIX}{name}` | {family.kind} |" for name, family in FAMILIES.items()]
    return "\n".join([*papers, "", *others, "", "Small twins, for tests: " + small + ".", "", *exports]) + "\n"


def renewed(page: str) -> str:
    """The page with the present tables in place of the old ones."""
    head, _, rest = page.partition(BEGIN)
    return head + BEGIN + "\n" + table() + END + rest.partition(END)[2]


def main() -> int:
    old = PAGE.read_text(encoding="utf-8")
    new = renewed(old)
    if "--check" in sys.argv[1:]:
        if old != new:
            print("docs/zoo.md is out of date: run python docs/zoo_table.py", file=sys.stderr)
        return int(old != new)
    partial = PAGE.with_suffix(f".{os.getpid()}")
    partial.write_text(new, encoding="utf-8")
    os.replace(partial, PAGE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
