"""Gram kernels: G[j, k] = Σ_p m_p g_j[p] g_k[p] in two passes, every element read once.

First pass: each task walks over its chunks and adds products up in fp32: for K <= REGISTER_ROWS one register per pair
and thread, one reduction across threads at the very end; beyond that a [KP, KP] tile through tl.dot. It writes one
number per pair and task. Second pass: one program per entry adds the tasks up in fp64, always in the same order, so
results are bitwise reproducible. No atomics.
"""

import triton
import triton.language as tl

from .tiles_triton import locate, read, tile


@triton.jit
def add_products(sums, values, weight, K: tl.constexpr, METRIC: tl.constexpr):  # type: ignore[no-untyped-def]
    """``sums`` with the products of all pairs added, k <= j, [LANES] each."""
    found = ()
    for j in tl.static_range(K):
        left = values[j] * weight if METRIC else values[j]
        for k in tl.static_range(j + 1):
            found = found + (sums[j * (j + 1) // 2 + k] + tl.sum(left * values[k], axis=1),)  # type: ignore[assignment]  # noqa: RUF005
    return found


@triton.jit(do_not_specialize=["count"])
def gram_registers(  # type: ignore[no-untyped-def]
    addresses,
    sizes,
    chunks,
    tasks,
    partials,
    count,
    K: tl.constexpr,
    ROW: tl.constexpr,
    LAST: tl.constexpr,
    METRIC: tl.constexpr,
    LANES: tl.constexpr,
    VECTOR: tl.constexpr,
    UNROLL: tl.constexpr,
    ALIGNMENT: tl.constexpr,
):
    """First pass for few rows: partials [K(K+1)/2, count]. METRIC: dtype of the metric or None; LAST: of row K-1."""
    COLUMNS: tl.constexpr = K + (METRIC is not None)
    task = tl.program_id(0).to(tl.int64)
    offsets = tile(LANES, VECTOR)
    sums = ()
    for _ in tl.static_range(K * (K + 1) // 2):
        sums = sums + (tl.zeros([LANES], tl.float32),)  # type: ignore[assignment]  # noqa: RUF005
    for chunk in tl.range(tl.load(tasks + 3 * task), tl.load(tasks + 3 * task + 1), tl.load(tasks + 3 * task + 2)):
        segment, start, left = locate(chunks, sizes, chunk, LANES * VECTOR * UNROLL, VECTOR)
        row = addresses + segment * COLUMNS
        for turn in tl.static_range(UNROLL):
            here = offsets + turn * LANES * VECTOR
            values = ()
            for k in tl.static_range(K):
                value = read(tl.load(row + k), start, here, left, LAST if k == K - 1 else ROW, VECTOR, ALIGNMENT)
                values = values + (value,)  # type: ignore[assignment]  # noqa: RUF005
            weight = 1.0
            if METRIC is not None:
                weight = read(tl.load(row + K), start, here, left, METRIC, VECTOR, ALIGNMENT)
            sums = add_products(sums, values, weight, K, METRIC is not None)
    for pair in tl.static_range(K * (K + 1) // 2):
        tl.store(partials + pair * count + task, tl.sum(sums[pair], axis=0))


@triton.jit(do_not_specialize=["count"])
def gram_dot(  # type: ignore[no-untyped-def]
    addresses,
    sizes,
    chunks,
    tasks,
    partials,
    count,
    K: tl.constexpr,
    KP: tl.constexpr,
    ROW: tl.constexpr,
    LAST: tl.constexpr,
    METRIC: tl.constexpr,
    HALVES: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
    VECTOR: tl.constexpr,
    ALIGNMENT: tl.constexpr,
):
    """First pass for many rows. HALVES: rows of half precision go to tl.dot as they are; their products are exact."""
    COLUMNS: tl.constexpr = K + (METRIC is not None)
    task = tl.program_id(0).to(tl.int64)
    rows = tl.arange(0, KP)
    total = tl.zeros([KP, KP], tl.float32)
    for chunk in tl.range(tl.load(tasks + 3 * task), tl.load(tasks + 3 * task + 1), tl.load(tasks + 3 * task + 2)):
        segment, start, left = locate(chunks, sizes, chunk, CHUNK, VECTOR)
        row = addresses + segment * COLUMNS
        SAME: tl.constexpr = LAST == ROW
        found = tl.load(row + rows, mask=rows < (K if SAME else K - 1), other=0)
        pointers = tl.multiple_of(found.to(tl.pointer_type(ROW))[:, None] + start, [1, ALIGNMENT])
        for first in tl.range(0, left, BLOCK):
            here = first + tl.arange(0, BLOCK)
            values = tl.load(pointers + here[None, :], mask=(found != 0)[:, None] & (here < left)[None, :], other=0.0)
            if not HALVES:
                values = values.to(tl.float32)
            if not SAME:
                last = read(tl.load(row + K - 1), start, here, left, LAST, VECTOR, ALIGNMENT)
                values = tl.where((rows == K - 1)[:, None], last[None, :], values)
            other = values
            if METRIC is not None:
                other = values * read(tl.load(row + K), start, here, left, METRIC, VECTOR, ALIGNMENT)[None, :]
            total = tl.dot(other, tl.trans(values), total, input_precision="ieee")
    j, k = rows[:, None], rows[None, :]
    pair = j * (j + 1) // 2 + k
    tl.store(partials + pair * count + task, total, mask=(k <= j) & (j < K))


@triton.jit(do_not_specialize=["count"])
def gram_reduce(partials, ranges, result, count, K: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Second pass: entry (g, j, k) of result [G, K, K]."""
    entry = tl.program_id(0).to(tl.int64)
    group, j, k = entry // (K * K), entry // K % K, entry % K
    low, high = tl.minimum(j, k), tl.maximum(j, k)
    first, end = tl.load(ranges + group), tl.load(ranges + group + 1)
    total = tl.zeros([BLOCK], tl.float64)
    for start in tl.range(first, end, BLOCK):
        here = start + tl.arange(0, BLOCK)
        pointers = partials + (high * (high + 1) // 2 + low) * count + here
        total += tl.load(pointers, mask=here < end, other=0.0).to(tl.float64)
    tl.store(result + entry, tl.sum(total, axis=0).to(tl.float32))
