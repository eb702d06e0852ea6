"""CPU schedules for convolutions and matrix products: register tiles, as hand-written libraries have them.

Random search needs some dozen trials of 0.3 s to come near these, and the differences it leaves between like kernels
are pure luck. So a tuner tries these few first. The inner loops hold a tile of `rows` × `lanes` results in
registers: per step of the reduction one contiguous vector of weights and a broadcast value for each row.

Goto, van de Geijn: Anatomy of high-performance matrix multiplication (ACM TOMS 2008).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .tvm_module import tvm

TILES = ((16, 6), (8, 13), (16, 7), (32, 3))
"""Lanes and most rows of the tiles that are tried: 16 vector registers of 8 floats, some kept for operands."""

_REDUCE = 2
"""`IterVar.CommReduce`."""


class NotBlocked(Exception):
    """The kernel is none that these schedules fit."""


def blocked(module: Any, threads: int = 1) -> Iterator[Any]:
    """Schedules of a kernel whose work is one convolution (NCHW) or matrix product; none for other kernels."""
    seen: set[tuple[Any, ...]] = set()
    for lanes, rows in (*TILES, (64, 1), (31, 4)):
        for pack in (True, False):
            try:
                schedule, chosen = tiled(module, lanes, rows, pack, threads)
            except (NotBlocked, RuntimeError, ValueError):  # TVM's schedule errors are RuntimeErrors
                continue
            if chosen not in seen:
                seen.add(chosen)
                yield schedule


def tiled(module: Any, lanes: int, rows: int, pack: bool, threads: int = 1) -> tuple[Any, tuple[Any, ...]]:
    """A schedule with the wanted tile and what tile it is; packing copies weights so that vectors are contiguous.

    Extents that `rows` does not divide get the largest divisor below it. Raises `NotBlocked`.
    """
    schedule = tvm().s_tir.Schedule(module)
    blocks = schedule.get_child_blocks(schedule.get_sblock("root"))
    work = [b for b in blocks if _REDUCE in _kinds(schedule, b)]
    if len(work) != 1 or len(schedule.get(work[0]).reads) != 2:
        raise NotBlocked
    main, after = work[0], blocks[blocks.index(work[0]) + 1 :]
    for block in after[:-1]:
        schedule.compute_inline(block)
    kinds = _kinds(schedule, main)
    spatial, convolution = kinds.count(0), (kinds.count(0), kinds.count(_REDUCE)) == (4, 3)
    if convolution:
        vector, row = 1, 3
    elif spatial >= 2 and kinds.count(_REDUCE) == 1 and _is_matmul(schedule, main):
        vector, row = spatial - 1, spatial - 2
    else:
        raise NotBlocked
    extents = [int(schedule.get(loop).extent) for loop in schedule.get_loops(main)]
    lanes = _lanes(extents[vector], lanes)
    # A tile of a convolution may cover several lines: their parts are taken together.
    lines, rows = _rectangle(extents[2] if convolution else 1, extents[row], rows)
    # Packing pays when the packed weights are read more than once.
    single = extents[row] * (extents[2] if convolution else 1) <= rows
    if (convolution and not pack) or (not convolution and pack and single) or (lanes == 64 and not single):
        raise NotBlocked

    packed = schedule.cache_read(main, 1, "global") if pack else None
    if convolution:
        schedule.transform_layout(main, ("read", 1), lambda o, i, y, x: [o // lanes, i, y, x, o % lanes])
    elif packed is not None and len(schedule.get(main).reads[1].region) == 2:
        schedule.transform_layout(main, ("read", 1), lambda k, j: [j // lanes, k, j % lanes])
    result = schedule.cache_write(main, 0, "global")
    if convolution:
        schedule.transform_layout(main, ("write", 0), lambda n, o, y, x: [n, o // lanes, y, x, o % lanes])
    schedule.set_scope(main, 0, "local")

    loops = schedule.get_loops(main)
    reduction = loops[spatial:]
    v_outer, v_inner = schedule.split(loops[vector], [None, lanes])
    r_outer, r_inner = schedule.split(loops[row], [None, rows])
    inner = [r_inner]
    if convolution:
        l_outer, l_inner = schedule.split(loops[2], [None, lines])
        outer, inner = [v_outer, loops[0], l_outer, r_outer], [l_inner, r_inner]
    else:
        outer = [*loops[: spatial - 2], v_outer, r_outer]
    schedule.reorder(*outer, *reduction, *inner, v_inner)
    if after:
        schedule.compute_inline(result)
        result = after[-1]
    schedule.reverse_compute_at(result, r_outer)
    if packed is not None:
        schedule.compute_at(packed, v_outer)
        if convolution:
            lane, *rest = schedule.get_loops(packed)[1:]
            schedule.reorder(*rest, lane)
    if threads > 1:
        schedule.parallel(outer[0])
    schedule.vectorize(v_inner)
    for loop in inner:
        schedule.unroll(loop)
    schedule.decompose_reduction(main, reduction[0])
    return schedule, (lanes, lines, rows, pack)


def _divisor(extent: int, limit: int) -> int:
    """The largest divisor of `extent` that is at most `limit`."""
    return max(d for d in range(1, min(extent, limit) + 1) if extent % d == 0)


def _rectangle(height: int, width: int, most: int) -> tuple[int, int]:
    """The largest lines × columns of at most `most` that divide an area; the wider one of equals."""
    columns = [d for d in range(1, min(width, most) + 1) if width % d == 0]
    return max(((_divisor(height, most // c), c) for c in columns), key=lambda t: (t[0] * t[1], t[1]))


def _lanes(extent: int, wanted: int) -> int:
    """`wanted` if it divides the extent; the odd width 31 stands for "whatever divides" where no proper width does."""
    if wanted != 31:
        if extent % wanted:
            raise NotBlocked
        return wanted
    if any(extent % lanes == 0 for lanes, _ in TILES):
        raise NotBlocked
    found = _divisor(extent, wanted)
    if found < 4:
        raise NotBlocked
    return found


def _kinds(schedule: Any, block: Any) -> list[int]:
    return [int(v.iter_type) for v in schedule.get(block).iter_vars]


def _is_matmul(schedule: Any, block: Any) -> bool:
    """Whether the second operand is contiguous along the last spatial extent: a product a[…, i, k] · b[…, k, j]."""
    body = schedule.get(block)
    last = [v.var for v in body.iter_vars if int(v.iter_type) == 0][-1]
    return bool(body.reads[1].region[-1].min.same_as(last))
