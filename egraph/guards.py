"""Questions that guards ask of several terms at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .graph import TensorType
from .pointwise import BINARY, FLOATS, UNARY

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
    own, other = _span(terms, x.key), _span(terms, y.key)
    if other[0] != other[1] or own[1] >= other[0] or level(terms, x.key) != level(terms, y.key):
        return False
    users = _users(terms, w, x, y)
    if own[0] not in users or other[0] not in users:
        return False
    first, last, place = users.index(own[0]), own[1], users.index(other[0])
    return first % RUN == 0 and place % RUN != 0 and place > first and users[place - 1] == last


def _users(terms: TermGraph, w: Term, x: Term, y: Term) -> list[int]:
    """Classes of what the same operator multiplies by w, no runs among them, of the level of x and the shape of y.

    What rules multiply by w as well are mostly other forms (reshaped, say) of the same terms.
    """
    me, found, sources = terms.find(w.key), dict[int, bool](), dict[int, int]()
    for key in terms.users[me]:
        kids = terms.operands[key]
        if terms.ops[key] not in _PRODUCTS or terms.find(kids[1]) != me:
            continue
        other = terms.find(kids[0])
        if terms.const[other] or terms.makers[other] != ORIGINAL or level(terms, other) != level(terms, x.key):
            continue
        if _fits(terms, other, y):
            found[other] = found.get(other, False) or terms.makers[key] == ORIGINAL
    for k in sorted(k for k, own in found.items() if own or not any(found.values())):
        sources.setdefault(_source(terms, k), k)
    return sorted(sources.values())


def _source(terms: TermGraph, key: int) -> int:
    """The class whose elements the model only reshapes or transposes to get this one."""
    key = terms.find(key)
    return _source(terms, terms.operands[key][0]) if terms.ops[key] in ("Reshape", "Transpose") else key


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


_POSITIVE = ("Sqrt", "Add", "Mul", "Div", "Exp", "Reshape", "Transpose", "Expand", "Concat", "Slice", "Abs")
"""Operators that give positive numbers if all their operands are positive."""


def invertible(c: Term) -> bool:
    """Whether the reciprocal of every element of a constant is known to be finite in its dtype: the standard deviations
    of a norm, say, are made of positive numbers. The elements of large weights are looked at."""
    return _invertible(c.terms, c.key, positive=False)


def _invertible(terms: TermGraph, key: int, positive: bool) -> bool:
    key = terms.find(key)
    kind, op, uniform = terms.types[key], terms.ops[key], terms.uniform[key]
    if not isinstance(kind, TensorType) or kind.dtype not in FLOATS:
        return False
    if uniform is None and op != "Weight":
        kids = terms.operands[key]
        return op in _POSITIVE and len(kids) > 0 and all(_invertible(terms, k, positive=True) for k in kids)
    digest = terms.attrs(key).get("digest")
    values = np.array(uniform) if uniform is not None else np.asarray(terms.weights[str(digest)].load(), np.float64)
    sizes = values if positive else abs(values)
    return bool(((sizes > 1.0 / _LARGEST[kind.dtype]) & (sizes < _LARGEST[kind.dtype])).all())


_LARGEST = {"float64": 1e300, "float32": 1e38, "bfloat16": 1e38, "float16": 6e4}
"""Numbers somewhat below the largest of each type."""


_PASSING = (
    *UNARY, *BINARY, "MatMul", "Softmax", "LayerNormalization", "RMSNormalization", "Reshape", "Transpose",
)  # fmt: skip
"""Operators of which a part of the result needs a part of the first operand only, often."""
_DEEP = 48
"""How far `share` looks."""


def share(y: Term) -> float:
    """About which share of a result the model reads, where it reads only slices of it or of what it makes of it."""
    return _share(y.terms, y.terms.find(y.key), 0, {})


def _share(terms: TermGraph, key: int, depth: int, known: dict[int, float]) -> float:
    if key in known:
        return known[key]
    users = [u for u in terms.users[key] if terms.makers[u] == ORIGINAL]
    total = 0.0 if users and depth < _DEEP else 1.0
    for user in users:
        if total >= 1.0:
            break
        if terms.ops[user] in ("Slice", "Gather") and terms.find(terms.operands[user][0]) == key:
            total += _elements(terms, user) / max(_elements(terms, key), 1)
        elif (terms.ops[user] in _PASSING and terms.find(terms.operands[user][0]) == key) or _added(terms, user, key):
            total += _share(terms, terms.find(user), depth + 1, known)
        else:
            total = 1.0
    known[key] = min(total, 1.0)
    return known[key]


def _added(terms: TermGraph, user: int, key: int) -> bool:
    """Whether a class is the second operand of an element-wise operator with a result of its own size."""
    return terms.ops[user] in BINARY and _elements(terms, user) == _elements(terms, key)


def _elements(terms: TermGraph, key: int) -> int:
    kind = terms.types[key]
    return kind.elements if isinstance(kind, TensorType) else 1
