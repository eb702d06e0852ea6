"""What is kept of a region of a Relax module beside its graph, so that it can be written back the way it was."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from ..egraph.graph import Attributes, Graph, Type
from .relax_dimensions import Extents
from .relax_forms import WRITTEN


@dataclass(frozen=True)
class Whole:
    """All parts of a node that is tuple-valued."""

    node: int
    parts: int


Value: TypeAlias = "int | Whole | tuple[Value, ...]"
"""What a variable holds: a node of the graph, or a tuple of such."""


Template: TypeAlias = Callable[[Sequence[Any]], Any]
"""An expression with slots: makes it of those in the slots."""


@dataclass
class RelaxSource:
    """What the writer needs of a region beside its graph.

    extents: its symbols. leaves: by an input's name, the expression outside. constants: by a weight's digest, the
    constant. opaques: by digest, opaque expressions. spellings: how the region spells core operators, by operator,
    attributes and operand types, and by these and the value's name. outputs: the variables that are read after it, and
    the numbers of the outputs that each is made of. module: the one that it is of. stacks: by their
    names, concatenations that the region writes as `stack`, with the axis as it is written.
    """

    extents: Extents
    leaves: dict[str, Any] = field(default_factory=dict)
    constants: dict[str, Any] = field(default_factory=dict)
    opaques: dict[str, Template] = field(default_factory=dict)
    spellings: dict[tuple[Any, ...], Template] = field(default_factory=dict)
    outputs: list[tuple[Any, Value]] = field(default_factory=list)
    module: Any = None
    stacks: dict[str, int | None] = field(default_factory=dict)

    def writes(self, op: str) -> bool:
        """Whether a rule may introduce this core operator."""
        return op in WRITTEN

    def program(self, graph: Graph) -> Any:
        """A graph of this region as a program of its own. Raises `NotInRelax` where it cannot be one."""
        from .folding import fold_constants
        from .relax_program import RelaxModel

        found = RelaxModel(fold_constants(graph))
        _ = found.parts
        return found

    def spelled(self, op: str, attrs: Attributes, types: Sequence[Type], name: str) -> Template | None:
        """How the region writes such an operator, if it has one; best the one whose value has this name."""
        key = (op, attrs, tuple(types))
        return self.spellings.get((name, *key)) or self.spellings.get(key)

    def spell(self, op: str, attrs: Attributes, types: Sequence[Type], name: str, template: Template) -> None:
        key = (op, attrs, tuple(types))
        self.spellings[name, *key] = template
        self.spellings.setdefault(key, template)
