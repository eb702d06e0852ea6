"""Concatenation, split, slice and the other operators that only move elements."""

from __future__ import annotations

from .language import C, Guard, Rule, T, W


def _concat_of_split(count: int) -> Rule:
    sizes = (2, 3, 1, 4, 1, 2, 3, 1)[:count]
    return Rule(
        "concat-of-split" if count == 2 else f"concat-of-split-{count}",
        f"s = Split(x, axis=k, sizes=n); root = Concat({', '.join(f's[{i}]' for i in range(count))}, axis=k)",
        "root = x",
        where=[
            Guard(
                f"len(n) == {count}",
                "all parts of the split must come back",
                counter={"x": T(2, sum(sizes) + 1), "k": 1, "n": (*sizes, 1)},
            )
        ],
        examples=[{"x": T(2, sum(sizes)), "k": 1, "n": sizes}, {"x": T(sum(sizes), 3), "k": 0, "n": sizes[::-1]}],
        folds=True,
    )


def _concat_of_slices(count: int) -> Rule:
    number = {2: "", 3: "three-", 4: "four-"}[count]
    each, ends = range(count), (2, 3, 7, 11)[:count]
    beside = {f"{n}{i}": (v,) for i in each for n, v in (("a", 1), ("b", (0, *ends)[i]), ("e", ends[i]))}
    alike = {f"{n}{i}": (v,) for i in each for n, v in (("a", 1), ("b", 4), ("e", 7))}
    return Rule(
        f"concat-of-{number}slices",
        f"Concat({', '.join(f'Slice(x, axes=a{i}, starts=b{i}, ends=e{i})' for i in each)}, axis=k)",
        f"Slice(x, axes=a0, starts=b0, ends=e{count - 1})",
        where=[
            Guard(
                " and ".join(f"a{i} == (k,)" for i in each),
                "the slices must be along the axis of the concatenation",
                counter={"x": T(3, 13), **alike, "k": 0},
            ),
            Guard(
                " and ".join(f"e{i} == b{i + 1}" for i in range(count - 1)),
                "each slice must begin where the one before ends",
                counter={"x": T(3, 13), **beside, "b0": (1,), "e0": (3,), "k": 1},
            ),
        ],
        examples=[{"x": T(3, 13), **beside, "k": 1}],
        folds=True,
    )


_NUMBERS = Guard(
    "xs[0].dtype != 'bool'",
    "ONNX has reductions of booleans, but no Max and Min of them",
    kind="growth",
    counter={"xs": [T(1, 3, dtype="bool"), T(1, 3, dtype="bool")], "k": 0, "a": (0,), "h": 0},
)


def _reduction_of_stack(reduction: str, op: str) -> Rule:
    return Rule(
        f"{op.lower()}-of-stacked",
        f"{reduction}(Concat(*xs, axis=k), axes=a, keepdims=h)",
        f"""
ps = [Reshape(x, shape=[*x.shape[:k], *([1] if h else []), *x.shape[k + 1:]]) for x in xs]
root = ps[0]
for p in ps[1:]: root = {op}(root, p)
""",
        where=[
            Guard(
                "a == (k,)",
                "the reduction must be along the axis of the concatenation",
                counter={"xs": [T(1, 3), T(1, 3)], "k": 0, "a": (1,), "h": 0},
            ),
            Guard(
                "all(one(x.shape[k]) for x in xs)",
                "each tensor must have one element along that axis",
                counter={"xs": [T(2, 3), T(1, 3)], "k": 0, "a": (0,), "h": 0},
            ),
            *([] if op == "Add" else [_NUMBERS]),
            Guard(
                "len(xs) <= 8",
                "long chains are no gain",
                kind="growth",
                counter={"xs": [T(1, 3)] * 9, "k": 0, "a": (0,), "h": 0},
            ),
        ],
        examples=[
            {"xs": [T(1, 2, 3), T(1, 2, 3)], "k": 0, "a": (0,), "h": 0},
            {"xs": [T(5, 1, 3), T(5, 1, 3), T(5, 1, 3)], "k": 1, "a": (1,), "h": 1},
        ],
        source="sums of several operands as TVM's ONNX importer writes them",
    )


RULES = [
    Rule(
        "concat-of-concat",
        "Concat(Concat(*xs, axis=k), y, axis=k)",
        "Concat(*xs, y, axis=k)",
        innermost="xs",
        examples=[{"xs": [T(2, 3), T(2, 1)], "y": T(2, 5), "k": 1}],
        folds=True,
    ),
    Rule(
        "concat-with-concat",
        "Concat(x, Concat(*ys, axis=k), axis=k)",
        "Concat(x, *ys, axis=k)",
        innermost="ys",
        examples=[{"x": T(2, 3), "ys": [T(2, 5), T(2, 2)], "k": 1}],
        folds=True,
    ),
    *map(_concat_of_split, range(2, 9)),
    Rule(
        "split-of-concat",
        "s = Split(Concat(*xs, axis=k), axis=k, sizes=n); root = s[i]",
        """
o = offsets(n)
ps = [xs[p] for p, b, e in cut([x.shape[k] for x in xs], o[i], o[i + 1])]
root = ps[0] if len(ps) == 1 else Concat(*ps, axis=k)
""",
        where=[
            Guard(
                "seams([x.shape[k] for x in xs], n) and n[i] > 0",
                "the split must cut only where two operands meet",
                counter={"xs": [T(2, 3), T(2, 5)], "k": 1, "n": (4, 4), "i": 0},
            ),
        ],
        examples=[
            {"xs": [T(2, 3), T(2, 5)], "k": 1, "n": (3, 5), "i": 1},
            {"xs": [T(2, 3), T(4, 3), T(1, 3)], "k": 0, "n": (6, 1), "i": 0},
        ],
        folds=True,
    ),
    Rule(
        "split-of-part",
        "s = Split(x, axis=k, sizes=n); y = Split(s[i], axis=k, sizes=m); root = y[j]",
        "root = Split(x, axis=k, sizes=[*n[:i], *m, *n[i + 1:]])[i + j]",
        supersedes="s",
        examples=[{"x": T(2, 9), "k": 1, "n": (2, 7), "i": 1, "m": (3, 4), "j": 0}],
    ),
    Rule(
        "part-beside-split-part",
        "s = Split(x, axis=k, sizes=n); y = Split(s[i], axis=k, sizes=m); root = s[j]",
        "root = Split(x, axis=k, sizes=[*n[:i], *m, *n[i + 1:]])[j if j < i else j + len(m) - 1]",
        supersedes="s",
        where=[
            Guard(
                "i != j",
                "the part that is split again is several parts now",
                counter={"x": T(2, 8), "k": 1, "n": (4, 4), "i": 0, "m": (2, 2), "j": 0},
            )
        ],
        examples=[
            {"x": T(2, 9), "k": 1, "n": (2, 7), "i": 1, "m": (3, 4), "j": 0},
            {"x": T(2, 9), "k": 1, "n": (7, 2), "i": 0, "m": (3, 4), "j": 1},
        ],
    ),
    Rule(
        "slice-identity",
        "Slice(x, axes=a, starts=b, ends=e)",
        "x",
        where=[
            Guard(
                "all(s == 0 and t == x.shape[i] for i, s, t in zip(a, b, e))",
                "the slice must leave nothing out",
                counter={"x": T(2, 3), "a": (1,), "b": (1,), "e": (3,)},
            )
        ],
        examples=[{"x": T(2, 3), "a": (0, 1), "b": (0, 0), "e": (2, 3)}],
        folds=True,
    ),
    Rule(
        "slice-of-slice",
        "Slice(Slice(x, axes=a, starts=b, ends=e), axes=c, starts=f, ends=g)",
        "Slice(x, **nested(a, b, e, c, f, g))",
        examples=[
            {"x": T(3, 11), "a": (1,), "b": (2,), "e": (9,), "c": (1,), "f": (1,), "g": (4,)},
            {"x": T(5, 7), "a": (1,), "b": (2,), "e": (5,), "c": (0, 1), "f": (1, 0), "g": (4, 2)},
        ],
        folds=True,
    ),
    Rule(
        "slice-of-part",
        "s = Split(x, axis=k, sizes=n); root = Slice(s[i], axes=a, starts=b, ends=e)",
        "root = Slice(x, **nested((k,), (offsets(n)[i],), (offsets(n)[i + 1],), a, b, e))",
        examples=[{"x": T(3, 11), "k": 1, "n": (2, 6, 3), "i": 1, "a": (0, 1), "b": (1, 2), "e": (3, 5)}],
        folds=True,
    ),
    Rule(
        "slice-of-concat",
        "Slice(Concat(*xs, axis=k), axes=a, starts=b, ends=e)",
        """
ps = [Slice(xs[p], axes=[k], starts=[s], ends=[t]) if t - s < xs[p].shape[k] else xs[p]
      for p, s, t in cut([x.shape[k] for x in xs], b[0], e[0])]
root = ps[0] if len(ps) == 1 else Concat(*ps, axis=k)
""",
        where=[
            Guard(
                "a == (k,) and b[0] < e[0]",
                "the slice must be along the axis of the concatenation",
                counter={"xs": [T(3, 3), T(3, 2)], "k": 1, "a": (0,), "b": (1,), "e": (3,)},
            ),
        ],
        examples=[
            {"xs": [T(2, 3), T(2, 5), T(2, 1)], "k": 1, "a": (1,), "b": (4,), "e": (6,)},
            {"xs": [T(3, 2), T(5, 2)], "k": 0, "a": (0,), "b": (0,), "e": (3,)},
            {"xs": [T(3, 2), W(5, 2), T(4, 2)], "k": 0, "a": (0,), "b": (1,), "e": (9,)},
        ],
        folds=True,
    ),
    *map(_concat_of_slices, (2, 3, 4)),
    Rule(
        "slices-as-split",
        "y1 = Slice(x, axes=a, starts=b, ends=e); y2 = Slice(x, axes=c, starts=f, ends=g)",
        """
whole = x if g[0] == x.shape[a[0]] else Slice(x, axes=a, starts=b, ends=g)
s = Split(whole, axis=a[0], sizes=[e[0], g[0] - e[0]])
y1 = s[0]; y2 = s[1]
""",
        where=[
            Guard(
                "len(a) == 1 and c == a",
                "the slices must be along one axis",
                counter={"x": T(5, 5), "a": (0,), "b": (0,), "e": (2,), "c": (1,), "f": (2,), "g": (5,)},
            ),
            Guard(
                "b == (0,) and f == e",
                "slices come together from the first on, each beginning where the one before ends",
                counter={"x": T(3, 7), "a": (1,), "b": (0,), "e": (2,), "c": (1,), "f": (1,), "g": (7,)},
            ),
            Guard(
                "0 < e[0] and g[0] - e[0] >= max(1, x.shape[a[0]] // 8)",
                "a split into more than eight parts is not looked for",
                kind="growth",
                counter={"x": T(3, 19), "a": (1,), "b": (0,), "e": (18,), "c": (1,), "f": (18,), "g": (19,)},
            ),
        ],
        examples=[
            {"x": T(3, 7), "a": (1,), "b": (0,), "e": (2,), "c": (1,), "f": (2,), "g": (7,)},
            {"x": T(7, 3), "a": (0,), "b": (0,), "e": (2,), "c": (0,), "f": (2,), "g": (5,)},
        ],
        source="halves of a rotary embedding, gates cut out of one product",
    ),
    Rule(
        "gather-as-slice",
        "Gather(x, c, axis=k)",
        """
i = consecutive(c.value, x.shape[k])
root = Reshape(Slice(x, axes=[k], starts=[i], ends=[i + c.elements]), shape=[*x.shape[:k], *c.shape, *x.shape[k + 1:]])
""",
        where=[
            Guard(
                "c.const and not x.const and consecutive(c.value, x.shape[k]) is not None",
                "the indices must be known and follow each other",
                counter={"x": T(5, 3), "c": C([0, 2], dtype="int64"), "k": 0},
            )
        ],
        examples=[
            {"x": T(2, 5, 3), "c": C(0, dtype="int64"), "k": 1},
            {"x": T(2, 5, 3), "c": C([-3, -2], dtype="int64"), "k": 1},
            {"x": T(7, 3), "c": C([[1, 2], [3, 4]], dtype="int64"), "k": 0},
        ],
        source="the class token of a vision transformer, the first token of a pooler",
    ),
    *map(_reduction_of_stack, ("ReduceSum", "ReduceMax", "ReduceMin"), ("Add", "Max", "Min")),
    Rule(
        "expand-identity",
        "Expand(x, shape=n)",
        "x",
        where=[Guard("alike(n, x.shape)", "the shape must stay the same", counter={"x": T(1, 3), "n": (2, 3)})],
        examples=[{"x": T(2, 3), "n": (2, 3)}],
        folds=True,
    ),
    Rule(
        "expand-of-expand",
        "Expand(Expand(x, shape=m), shape=n)",
        "Expand(x, shape=n)",
        examples=[{"x": T(1, 3), "m": (2, 3), "n": (5, 2, 3)}],
        folds=True,
    ),
]
