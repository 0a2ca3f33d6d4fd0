"""Launches of the Gram kernels: which of them, how many programs, and with what tables."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .dispatch import interpreting
from .gram_passes_triton import gram_dot, gram_reduce, gram_registers
from .launches import column, launches, on, processors
from .segments import Rows
from .signature import signature
from .tables import LANES, Launch, Segment
from .tiles_triton import COMPILE, TYPES

MOST_ROWS = 32
REGISTER_ROWS = 12  # 78 sums per thread and 4 warps; more would spill for 8-wide vectors
DOT_COLUMNS = 32  # of fp32, where tl.dot keeps its operands in registers; four times as many on tensor cores


def gram_segments(rows: Rows, metric: Sequence[Tensor] | None, groups: Sequence[int] | None) -> list[Segment]:
    """The rows, and the metric as one more column."""
    absent = next(dtype for index in range(len(rows.columns)) if (dtype := rows.row_dtype(index)) is not None)
    found = []
    for index, shape in enumerate(rows.shapes):
        if shape is None:
            continue
        row = rows.row_dtype(index) or absent
        last = None if rows.shared is None else rows.shared[index]
        weights = [] if metric is None else [metric[index].dtype]
        dtypes = (row, row if last is None else last.dtype, *weights)
        size = torch.Size(shape).numel()
        found.append(Segment(size, dtypes, group=groups[index] if groups else 0, parameter=index))
    return found


def gram_triton(rows: Rows, metric: Sequence[Tensor] | None, groups: Sequence[int] | None, group_count: int) -> Tensor:
    """Launch both passes: [G, K, K]. Everything has been checked by :func:`marble_kernels.gram.gram`."""
    size, device = rows.size, rows.device
    # As many programs as fit side by side, by registers (compiled for sm_80 and sm_90).
    per_processor = next(
        fit for most, fit in ((2, 12), (5, 5), (8, 4), (10, 3), (12, 2), (MOST_ROWS, 6)) if size <= most
    )
    weights = signature(metric or ())

    def table() -> Tensor:
        return rows.table() if metric is None else torch.cat([rows.table(), column(weights)], 1)

    plan = launches(
        [rows.signature(), weights],
        lambda: gram_segments(rows, metric, groups),
        table,
        device,
        unrolled(size),
        per_processor * processors(device),
        group_count,
        ("gram", rows.form, None if groups is None else tuple(groups)),
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
