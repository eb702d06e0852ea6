"""Writes the table of rules in `docs/rules.md` from the rules themselves: `python docs/rule_table.py [--check]`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from xrlflow.egraph.rules import families

PAGE = Path(__file__).with_name("rules.md")
BEGIN, END = "<!-- rules: written by docs/rule_table.py -->\n", "<!-- end of rules -->\n"


def code(text: str) -> str:
    """`text` as one line of code in a table's cell."""
    return f"`{'; '.join(line.strip() for line in text.strip().splitlines())}`".replace("|", "\\|")


def table() -> str:
    """One section for each family, one row for each rule."""
    lines = []
    for family, rules in families().items():
        lines += [f"### {family}", "", "| rule | from | to | only where | tag |", "|---|---|---|---|---|"]
        for rule in rules:
            guards = "; ".join(guard.reason for guard in rule.where)
            lines.append(f"| {rule.name} | {code(rule.lhs)} | {code(rule.rhs)} | {guards} | {rule.tag} |")
        lines.append("")
    return "\n".join(lines) + "\n"


def renewed(page: str) -> str:
    """The page with the present table in place of the old one."""
    head, _, rest = page.partition(BEGIN)
    return head + BEGIN + "\n" + table() + END + rest.partition(END)[2]


def main() -> int:
    old = PAGE.read_text(encoding="utf-8")
    new = renewed(old)
    if "--check" in sys.argv[1:]:
        if old != new:
            print("docs/rules.md is out of date: run python docs/rule_table.py", file=sys.stderr)
        return int(old != new)
    partial = PAGE.with_suffix(f".{os.getpid()}")
    partial.write_text(new, encoding="utf-8")
    os.replace(partial, PAGE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
