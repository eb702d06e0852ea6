"""Writes the tables of the zoo's models into docs/zoo.md. With --check it only says whether they are current.

Usage: python docs/zoo_table.py [--check]
"""

from __future__ import annotations

import sys
from pathlib import Path

from page import write

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


if __name__ == "__main__":
    sys.exit(write(PAGE, BEGIN, END, table(), Path(__file__).name))
