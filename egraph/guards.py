"""Questions that guards ask of several terms at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .terms import Term, TermGraph

RUN = 8
"""So many operators that share a weight are merged into one: longer runs (steps of a recurrence) merge in pieces."""
_PRODUCTS = ("MatMul", "Conv")


def earlier_first(x: Term, y: Term, z: Term) -> Any:
    """Multiplications of (x·y)·z, for one batch where y and z have batches."""
    return _rows(x, y) * y.shape[-1] * (y.shape[-2] + z.shape[-1])


def later_first(x: Term, y: Term, z: Term) -> Any:
    """Multiplications of x·(y·z), for one batch where y and z have batches."""
    return y.shape[-2] * z.shape[-1] * (y.shape[-1] + _rows(x, y))


def _rows(x: Term, y: Term) -> Any:
    return x.elements // x.shape[-1] if y.rank == 2 else x.shape[-2]


def next_user(w: Term, x: Term, y: Term) -> bool:
    """Whether merging the terms x and y, which the same operator multiplies by w, extends a run by one.

    The users of a weight are ordered by age and cut into runs of `RUN`; a run grows from its first, one by one. So n
    users have n merged forms. Only those count that have as many products on their longest path from the inputs:
    among them, none can need the product of another.
    """
    terms = w.terms
    users = _users(terms, w, x, y)
    own, other = _span(terms, x.key), _span(terms, y.key)
    if own is None or other is None or other[0] != other[1] or own[0] not in users or other[0] not in users:
        return False
    first, last, place = users.index(own[0]), own[1], users.index(other[0])
    return first % RUN == 0 and place % RUN != 0 and place > first and users[place - 1] == last


def _users(terms: TermGraph, w: Term, x: Term, y: Term) -> list[int]:
    """Classes of what the same operator multiplies by w, no runs among them, of the level of x and the shape of y."""
    me, found = terms.find(w.key), set()
    for key in terms.users[me]:
        kids = terms.operands[key]
        if terms.ops[key] not in _PRODUCTS or len(kids) != 2 or terms.find(kids[1]) != me:
            continue
        other = terms.find(kids[0])
        if terms.const[other] or level(terms, other) != level(terms, terms.find(x.key)):
            continue
        span = _span(terms, other)
        if span is not None and span[0] == span[1] and _fits(terms, other, y):
            found.add(other)
    return sorted(found)


def _fits(terms: TermGraph, key: int, y: Term) -> bool:
    shape, own = getattr(terms.types[key], "shape", None), getattr(y.type, "shape", None)
    return shape is not None and own is not None and len(shape) == len(own) and shape[1:] == own[1:]


def _span(terms: TermGraph, key: int) -> tuple[int, int] | None:
    """The first and the last class of a run, which is a concatenation along axis 0 that a rule made."""
    key = terms.find(key)
    if terms.ops[key] != "Concat" or terms.makers[key] < 0 or terms.attrs(key)["axis"] != 0:
        return key, key
    spans = [_span(terms, k) for k in terms.operands[key]]
    if any(s is None for s in spans):
        return None
    first, last = spans[0], spans[-1]
    assert first is not None
    assert last is not None
    return first[0], last[1]


def level(terms: TermGraph, key: int) -> int:
    """How many products lie on the longest path from the inputs to a term."""
    return terms.levels[terms.find(key)]
