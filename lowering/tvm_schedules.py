"""CPU schedules for convolutions and matrix products: register tiles, as hand-written libraries have them.

Random search needs some dozen trials of 0.3 s to come near these, and leaves differences between equal kernels that are
pure luck. So a tuner tries these few first. The inner loops hold a tile of `rows` × `lanes` results in
registers: per step of the reduction one contiguous vector of weights and a broadcast value for each row.

Goto, van de Geijn: Anatomy of high-performance matrix multiplication (ACM TOMS 2008).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from .tvm_module import tvm

_REDUCE = 2
"""`IterVar.CommReduce`."""


def blocked(module: Any, threads: int = 1) -> Iterator[Any]:
    """Schedules of a kernel whose work is one convolution (NCHW) or matrix product; none for other kernels."""
    tiles = itertools.product((True, False), ((16, 7), (8, 12), (32, 3)))
    seen = set()
    for pack, (lanes, rows) in tiles:
        try:
            schedule, chosen = _blocked(module, lanes, rows, pack, threads)
        except (_NotBlocked, tvm().error.TVMError):
            continue
        if chosen not in seen:
            seen.add(chosen)
            yield schedule


class _NotBlocked(Exception):
    pass


def _divisor(extent: int, limit: int) -> int:
    """The largest divisor of `extent` that is at most `limit`."""
    return max(d for d in range(1, min(extent, limit) + 1) if extent % d == 0)


def _kinds(schedule: Any, block: Any) -> list[int]:
    return [int(v.iter_type) for v in schedule.get(block).iter_vars]


def _extents(schedule: Any, loops: list[Any]) -> list[int]:
    return [int(schedule.get(loop).extent) for loop in loops]


def _blocked(module: Any, lanes: int, rows: int, pack: bool, threads: int) -> tuple[Any, tuple[Any, ...]]:
    schedule = tvm().s_tir.Schedule(module)
    blocks = schedule.get_child_blocks(schedule.get_sblock("root"))
    work = [b for b in blocks if _REDUCE in _kinds(schedule, b)]
    if len(work) != 1 or len(schedule.get(work[0]).reads) != 2:
        raise _NotBlocked
    main = work[0]
    _inline_after(schedule, blocks[blocks.index(main) + 1 :])
    kinds = _kinds(schedule, main)
    spatial, reduced = kinds.count(0), kinds.count(_REDUCE)
    shape = (spatial, reduced)
    if shape == (4, 3):
        vector, row, weight = 1, 3, 1
    elif spatial >= 2 and reduced == 1 and _is_matmul(schedule, main):
        vector, row, weight = spatial - 1, spatial - 2, 1
    else:
        raise _NotBlocked
    extents = _extents(schedule, schedule.get_loops(main))
    lanes, rows = _divisor(extents[vector], lanes), _divisor(extents[row], rows)
    if lanes < 4:
        raise _NotBlocked
    ahead = schedule.get_loops(main)
    batch = [k for k in range(spatial) if k not in (vector, row)]
    if shape == (4, 3):
        # Weights are packed so that output channels are contiguous, results likewise.
        packed = schedule.cache_read(main, weight, "global")
        schedule.transform_layout(main, ("read", weight), lambda o, i, y, x: [o // lanes, i, y, x, o % lanes])
        result = schedule.cache_write(main, 0, "global")
        schedule.transform_layout(main, ("write", 0), lambda n, o, y, x: [n, o // lanes, y, x, o % lanes])
        if not pack:
            raise _NotBlocked
    else:
        packed = schedule.cache_read(main, weight, "global") if pack else None
        if packed is not None and len(schedule.get(main).reads[weight].buffer.shape) == 2:
            schedule.transform_layout(main, ("read", weight), lambda k, j: [j // lanes, k, j % lanes])
        result = schedule.cache_write(main, 0, "global")
    schedule.set_scope(main, 0, "local")
    loops = schedule.get_loops(main)
    assert len(loops) == len(ahead)
    v_outer, v_inner = schedule.split(loops[vector], [None, lanes])
    r_outer, r_inner = schedule.split(loops[row], [None, rows])
    outer = [v_outer, *(loops[k] for k in batch), r_outer]
    if shape != (4, 3):
        outer = [*(loops[k] for k in batch), v_outer, r_outer]
    schedule.reorder(*outer, *loops[spatial:], r_inner, v_inner)
    schedule.reverse_compute_at(result, r_outer)
    if packed is not None:
        schedule.compute_at(packed, v_outer)
        inner = schedule.get_loops(packed)[-1]
        if int(schedule.get(inner).extent) in (4, 8, 16, 32):
            schedule.vectorize(inner)
    if threads > 1:
        schedule.parallel(outer[0])
    first = schedule.decompose_reduction(main, loops[spatial])
    schedule.vectorize(schedule.get_loops(first)[-1])
    schedule.unroll(schedule.get_loops(first)[-2])
    schedule.vectorize(v_inner)
    schedule.unroll(r_inner)
    return schedule, (lanes, rows, pack)


def _inline_after(schedule: Any, blocks: list[Any]) -> None:
    """Inline what follows the main block, so that one block writes the result."""
    for block in blocks[:-1]:
        schedule.compute_inline(block)


def _is_matmul(schedule: Any, block: Any) -> bool:
    """Whether the second operand is read contiguously along the last spatial extent: a product a[…, i, k] · b[…, k, j]."""
    body = schedule.get(block)
    last = [v.var for v in body.iter_vars if int(v.iter_type) == 0][-1]
    read = body.reads[1].region[-1].min
    return bool(read.same_as(last))
