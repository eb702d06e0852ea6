"""Rotary position embeddings as exporters write them, as the one operator that runtimes have."""

from __future__ import annotations

from .language import Guard, Rule, T


def _rotary(name: str, angle: str, dtype: str, **more: object) -> Rule:
    """x·cos + rotated(x)·sin, the halves of x exchanged and one negated; both halves of the angles are the same."""
    example = {"x": T(2, 3, 5, 8, dtype=dtype), "f": T(1, 5, 4), "j": 2, "m": (1, 1, 5, 8),
               "a": (3,), "b": (4,), "e": (8,), "p": (0,), "q": (4,), "r": 3, **more}  # fmt: skip
    return Rule(
        name,
        f"""
g = Concat(f, f, axis=j)
root = Add(
    Mul(x, Reshape({angle.format("Cos(g)")}, shape=m)),
    Mul(Concat(Neg(Slice(x, axes=a, starts=b, ends=e)), Slice(x, axes=a, starts=p, ends=q), axis=r),
        Reshape({angle.format("Sin(g)")}, shape=m)),
)
""",
        f"""
n = [x.shape[0], x.shape[2], x.shape[3] // 2]
root = RotaryEmbedding(
    x, Expand({angle.format("Cos(f)")}, shape=n),
    Expand({angle.format("Sin(f)")}, shape=n), interleaved=0,
)
""",
        where=[
            Guard(
                "x.rank == 4 and f.rank == 3 and j == 2 and r == 3 and f.shape[0] == 1",
                "the operator takes heads in front of positions, and one row of angles for each position",
                counter={**example, "x": T(3, 5, 8, dtype=dtype), "m": (1, 5, 8), "a": (2,), "r": 2},
            ),
            Guard(
                "m[1] == 1 and tuple(m) == (1, 1, f.shape[1], 2 * f.shape[2]) and 2 * f.shape[2] == x.shape[3]",
                "the angles must be those of the positions, alike for all heads",
                counter={**example, "x": T(2, 5, 5, 8, dtype=dtype), "m": (1, 5, 1, 8)},
            ),
            Guard(
                "x.rank == 4 and tuple(a) == (3,) and (b[0], e[0], p[0], q[0]) == (x.shape[3] // 2, x.shape[3], 0, x.shape[3] // 2)",
                "the halves of the last axis must be exchanged, the second one negated",
                counter={**example, "b": (0,), "e": (4,), "p": (4,), "q": (8,)},
            ),
        ],
        examples=[
            example,
            {
                **example,
                "x": T(1, 7, 3, 4, dtype=dtype),
                "f": T(1, 3, 2),
                "m": (1, 1, 3, 4),
                "b": (2,),
                "e": (4,),
                "q": (2,),
            },
        ],
        source="LLaMA, Qwen, Gemma, Mixtral by both of torch's exporters",
    )


RULES = [
    _rotary("rotary-embedding", "{}", "float32"),
    _rotary("rotary-embedding-of-narrow-type", "Cast({}, to=t)", "float16", t="float16"),
]
