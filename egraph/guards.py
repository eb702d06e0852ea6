"""Questions that guards ask of several terms at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .terms import Term, TermGraph

RUN = 8
"""So many operators that share a weight are merged into one: longer runs (steps of a recurrence) merge in pieces."""
ORIGINAL = -1
"""Maker of the model's own terms, as in `egraph.terms`."""
_PRODUCTS = ("MatMul", "Conv")


def later_first(x: Term, y: Term, z: Term) -> bool:
    """Whether x·(y·z) takes fewer multiplications than (x·y)·z."""
    found = _multiplications(x, y, z)
    return found is not None and bool(found[1] < found[0])


def earlier_first(x: Term, y: Term, z: Term) -> bool:
    """Whether (x·y)·z takes fewer multiplications than x·(y·z)."""
    found = _multiplications(x, y, z)
    return found is not None and bool(found[0] < found[1])


def _multiplications(x: Term, y: Term, z: Term) -> tuple[Any, Any] | None:
    """Those of (x·y)·z and of x·(y·z), in each batch; None where the factors have different batches."""
    (k, m), n = y.shape[-2:], z.shape[-1]
    if y.rank == 2 and z.rank == 2:
        rows = x.elements // k
    elif x.shape[:-2] == y.shape[:-2] == z.shape[:-2]:
        rows = x.shape[-2]
    else:
        return None
    return rows * m * (k + n), k * n * (m + rows)


def next_user(w: Term, x: Term, y: Term) -> bool:
    """Whether merging the terms x and y, which the same operator multiplies by w, extends a run by one.

    The users of a weight are ordered by age and cut into runs of `RUN`; a run grows from its first, one by one. So n
    users have n merged forms. Only those count that have as many products on their longest path from the inputs:
    among them, none can need the product of another.
    """
    terms = w.terms
    users = _users(terms, w, x, y)
    own, other = _span(terms, x.key), _span(terms, y.key)
    if other[0] != other[1] or own[0] not in users or other[0] not in users:
        return False
    first, last, place = users.index(own[0]), own[1], users.index(other[0])
    return first % RUN == 0 and place % RUN != 0 and place > first and users[place - 1] == last


def _users(terms: TermGraph, w: Term, x: Term, y: Term) -> list[int]:
    """Classes of what the same operator multiplies by w, no runs among them, of the level of x and the shape of y."""
    me, found = terms.find(w.key), set()
    for key in terms.users[me]:
        kids = terms.operands[key]
        if terms.ops[key] not in _PRODUCTS or terms.find(kids[1]) != me:
            continue
        other = terms.find(kids[0])
        if terms.const[other] or level(terms, other) != level(terms, terms.find(x.key)):
            continue
        span = _span(terms, other)
        # what rules made are other forms (reshaped, say) of terms that are there
        if span == (other, other) and terms.makers[other] == ORIGINAL and _fits(terms, other, y):
            found.add(other)
    return sorted(found)


def _fits(terms: TermGraph, key: int, y: Term) -> bool:
    shape, own = getattr(terms.types[key], "shape", None), getattr(y.type, "shape", None)
    return shape is not None and own is not None and len(shape) == len(own) and shape[1:] == own[1:]


def _span(terms: TermGraph, key: int) -> tuple[int, int]:
    """The first and the last class of a run, which is a concatenation along axis 0 that a rule made."""
    key = terms.find(key)
    if terms.ops[key] != "Concat" or terms.makers[key] == ORIGINAL or terms.attrs(key)["axis"] != 0:
        return key, key
    return _span(terms, terms.operands[key][0])[0], _span(terms, terms.operands[key][-1])[1]


def level(terms: TermGraph, key: int) -> int:
    """How many products lie on the longest path from the inputs to a term."""
    return terms.levels[terms.find(key)]
