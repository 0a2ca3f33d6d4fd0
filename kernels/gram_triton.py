"""Gram kernels: G[j, k] = Σ_p m_p g_j[p] g_k[p] in two passes, every element read once.

First pass: each task walks over its chunks and adds products up in fp32: for K <= REGISTER_ROWS one register per pair
and thread, one reduction across threads at the very end; beyond that a [KP, KP] tile through tl.dot. It writes one
number per pair and task. Second pass: one program per entry adds the tasks up in fp64, always in the same order, so
results are bitwise reproducible. No atomics.
"""

from collections.abc import Hashable, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .dispatch import interpreting
from .segments import Rows
from .tables import LANES, Launch, Segment, launches, on, processors, signature
from .tiles_triton import COMPILE, TYPES, locate, read, tile

MOST_ROWS = 32
REGISTER_ROWS = 12  # 78 sums per thread and 4 warps; more would spill for 8-wide vectors
DOT_COLUMNS = 32  # of fp32, where tl.dot keeps its operands in registers; four times as many on tensor cores


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


def gram_segments(rows: Rows, metric: Sequence[Tensor] | None, groups: Sequence[int] | None) -> list[Segment]:
    """The rows, and the metric as one more column."""
    absent = next(dtype for index in range(len(rows.columns)) if (dtype := rows.row_dtype(index)) is not None)
    found = []
    for index, shape in enumerate(rows.shapes):
        if shape is None:
            continue
        row = rows.row_dtype(index) or absent
        last = None if rows.shared is None else rows.shared[index]
        weights = [] if metric is None else [metric[index]]
        dtypes = (row, row if last is None else last.dtype, *(weight.dtype for weight in weights))
        addresses = (*rows.addresses(index), *(weight.data_ptr() for weight in weights))
        size = torch.Size(shape).numel()
        found.append(Segment(addresses, size, dtypes, group=groups[index] if groups else 0, parameter=index))
    return found


def gram_triton(rows: Rows, metric: Sequence[Tensor] | None, groups: Sequence[int] | None, group_count: int) -> Tensor:
    """Launch both passes: [G, K, K]. Everything has been checked by :func:`marble_kernels.gram.gram`."""
    size, device = rows.size, rows.device
    # As many programs as fit side by side, by registers (compiled for sm_80 and sm_90).
    per_processor = next(
        fit for most, fit in ((2, 12), (5, 5), (8, 4), (10, 3), (12, 2), (MOST_ROWS, 6)) if size <= most
    )
    key: Hashable = (
        "gram",
        rows.signature(),
        None if metric is None else signature(metric),
        None if groups is None else tuple(groups),
    )
    plan = launches(
        key,
        lambda: gram_segments(rows, metric, groups),
        device,
        unrolled(size),
        per_processor * processors(device),
        group_count,
    )
    parts = []
    with on(device):
        for launch in plan:
            partials = torch.empty(size * (size + 1) // 2, launch.programs, device=device)
            first_pass(launch, partials, size, metric is not None)
            part = torch.empty(group_count, size, size, device=device)
            gram_reduce[(part.numel(),)](partials, launch.ranges, part, launch.programs, size, BLOCK=1024, **COMPILE)
            parts.append(part)
    return torch.stack(parts).sum(0) if len(parts) > 1 else parts[0] if parts else _zeros(group_count, size, device)


def unrolled(size: int) -> int:
    """Vectors per row that a thread reads in one chunk: enough bytes in flight without running out of registers."""
    return 4 if size <= 2 or size > REGISTER_ROWS else 2 if size <= 6 else 1


def first_pass(launch: Launch, partials: Tensor, size: int, weighted: bool) -> None:
    """Launch the first pass over one table."""
    kernel, options = first_pass_options(launch.dtypes, launch.vector, launch.unroll, size, weighted)
    tables = (launch.addresses, launch.sizes, launch.chunks, launch.tasks)
    kernel[(launch.programs,)](*tables, partials, launch.programs, **options)


def first_pass_options(
    dtypes: Sequence[torch.dtype], vector: int, unroll: int, size: int, weighted: bool
) -> tuple[Any, dict[str, Any]]:
    """Kernel and compile-time options; the compile-only tests compile the same."""
    options: dict[str, Any] = {
        "K": size,
        "ROW": TYPES[dtypes[0]],
        "LAST": TYPES[dtypes[1]],
        "METRIC": TYPES[dtypes[2]] if weighted else None,
        "VECTOR": vector,
        "ALIGNMENT": 16 if vector > 1 else 1,
        **COMPILE,
    }
    if size <= REGISTER_ROWS:
        return gram_registers, options | {"LANES": LANES, "UNROLL": unroll}
    padded = 16 if size <= 16 else 32
    # The interpreter cannot compute in bf16.
    halves = dtypes[0].itemsize == 2 and dtypes[0] == dtypes[1] and not weighted and not interpreting()
    return gram_dot, options | {
        "KP": padded,
        "HALVES": halves,
        "CHUNK": LANES * vector * unroll,
        "BLOCK": 4 * DOT_COLUMNS if halves else DOT_COLUMNS,
    }


def _zeros(groups: int, size: int, device: torch.device) -> Tensor:
    return torch.zeros(groups, size, size, device=device)
