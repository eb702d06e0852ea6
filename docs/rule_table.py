"""Writes the table of rules in `docs/rules.md` from the rules themselves: `python docs/rule_table.py [--check]`."""

from __future__ import annotations

import re
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from page import write

from xrlflow.egraph.fused import CONTRIB
from xrlflow.egraph.operators import core_operators
from xrlflow.egraph.rules import Rule, families
from xrlflow.lowering.onnx_forms import SINCE

PAGE = Path(__file__).with_name("rules.md")
BEGIN, END = "<!-- rules: written by docs/rule_table.py -->\n", "<!-- end of rules -->\n"
LONGEST = 300
"""Characters of one side that the table shows; the rest is in the family's file."""


def code(text: str) -> str:
    """`text` as one line of code in a table's cell."""
    line = "; ".join(" ".join(part.split()) for part in text.strip().splitlines())
    if len(line) > LONGEST:
        line = line[:LONGEST].rsplit(" ", 1)[0] + " …"
    return f"`{line}`".replace("|", "\\|")


def words(op: str) -> str:
    """An operator's name as names of rules write it: LayerNormalization is layer-normalization."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "-", op).lower()


def templates(rule: Rule) -> list[tuple[tuple[str, ...], str]]:
    """The rule with an operator that its name speaks of replaced by F, and that operator: all ways."""
    texts = (rule.lhs, rule.rhs, *(guard.reason for guard in rule.where))
    found = []
    for op in core_operators():
        for name in dict.fromkeys((words(op), op.lower())):
            spoken = re.search(rf"(^|-){name}(s?)(-|$)", rule.name)
            if spoken and re.search(rf"\b{op}\(", rule.lhs):
                general = f"{rule.name[: spoken.start()]}{spoken[1]}F{spoken[2]}{spoken[3]}{rule.name[spoken.end() :]}"
                found.append(((general, *(re.sub(rf"\b{op}\b", "F", t) for t in texts), rule.tag), op))
    return found


def needs(rule: Rule) -> str:
    """What the model's opset or its target must have."""
    found = []
    for op in rule.introduces:
        if op in CONTRIB:
            found.append(f"ONNX Runtime ({op})")
        elif op in SINCE:
            found.append(f"opset {SINCE[op]} ({op})")
    return ", ".join(found)


@dataclass
class Row:
    """One line of the table: a rule, or several that differ in one operator."""

    rule: Rule
    general: tuple[str, ...]
    rules: list[Rule] = field(default_factory=list)
    operators: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        several = len(self.rules) > 1
        name, lhs, rhs = self.general[:3] if several else (self.rule.name, self.rule.lhs, self.rule.rhs)
        reasons = self.general[3:-1] if several else [guard.reason for guard in self.rule.where]
        if several:
            name += f", for F in {', '.join(self.operators)}"
        tests = sum(len(r.examples) + len(r.where) for r in self.rules)
        need = "; ".join(dict.fromkeys(n for r in self.rules if (n := needs(r))))
        cells = [name, code(lhs), code(rhs), "; ".join(reasons).replace("|", "\\|"), self.rule.tag, need, str(tests)]
        return f"| {' | '.join(cells)} |"


def rows(rules: tuple[Rule, ...]) -> list[Row]:
    """The lines of one family, rules that differ in one operator together."""
    alike = Counter(general for rule in rules for general, _ in templates(rule))
    found: dict[tuple[str, ...], Row] = {}
    for rule in rules:
        general, op = max(templates(rule), key=lambda t: alike[t[0]], default=((rule.name,), ""))
        row = found.setdefault(general, Row(rule, general))
        row.rules.append(rule)
        row.operators.append(op)
    return list(found.values())


def table() -> str:
    """One section for each family, one row for each rule, or for several that differ in one operator only."""
    known = families()
    lines = [f"{sum(map(len, known.values()))} rules in {len(known)} families.", ""]
    for family, rules in known.items():
        count = "1 rule" if len(rules) == 1 else f"{len(rules)} rules"
        lines += [f"### {family}", "", f"{count}, `egraph/rules/{family}.py`", ""]
        lines += ["| rule | from | to | only where | tag | needs | tests |", "|---|---|---|---|---|---|---|"]
        lines += [*map(str, rows(rules)), ""]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(write(PAGE, BEGIN, END, table(), Path(__file__).name))
