"""Combination kernel: d = scale · (Σ_k c_k g_k + shared), every used element read once and written once.

One program per chunk. Coefficients are read on the device; a row with c_k = 0 is not even loaded, so NaN in it does no
harm.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launches import column, launches, on
from .segments import Rows
from .signature import signature
from .tables import LANES, Segment
from .tiles_triton import COMPILE, TYPES, at, kept, locate, read, tile

PADDING = 64  # elements: parameters begin at multiples of it in a flat output made here, so that stores vectorise


@triton.jit
def combined(  # type: ignore[no-untyped-def]
    row,
    start,
    here,
    left,
    coefficients,
    scale,
    K: tl.constexpr,
    SHARED: tl.constexpr,
    SCALED: tl.constexpr,
    ROW: tl.constexpr,
    VECTOR: tl.constexpr,
    ALIGNMENT: tl.constexpr,
):
    """Tile of d in fp32. ``row``: addresses of the K rows, then of the shared one; SHARED: its dtype or None."""
    total = tl.zeros(here.shape, tl.float32)
    for k in tl.static_range(K):
        coefficient = tl.load(coefficients + k)
        used = kept(left, coefficient != 0, VECTOR)
        total += coefficient * read(tl.load(row + k), start, here, used, ROW, VECTOR, ALIGNMENT)
    if SHARED is not None:
        total += read(tl.load(row + K), start, here, left, SHARED, VECTOR, ALIGNMENT)
    if SCALED:
        total *= tl.load(scale)
    return total


@triton.jit
def combine_kernel(  # type: ignore[no-untyped-def]
    addresses,
    sizes,
    offsets,
    chunks,
    coefficients,
    scale,
    flat,
    K: tl.constexpr,
    SHARED: tl.constexpr,
    SCALED: tl.constexpr,
    FLAT: tl.constexpr,
    ROW: tl.constexpr,
    OUT: tl.constexpr,
    LANES: tl.constexpr,
    VECTOR: tl.constexpr,
    UNROLL: tl.constexpr,
    ALIGNMENT: tl.constexpr,
):
    """Write one chunk. FLAT: into ``flat`` at the segment's offset; else to the address in the last column."""
    COLUMNS: tl.constexpr = K + (SHARED is not None) + (not FLAT)
    segment, start, left = locate(chunks, sizes, tl.program_id(0), LANES * VECTOR * UNROLL, VECTOR)
    row = addresses + segment * COLUMNS
    if FLAT:
        target = flat + tl.multiple_of(tl.load(offsets + segment), VECTOR) + start
    else:
        target = at(tl.load(row + COLUMNS - 1), start, OUT, ALIGNMENT)
    # All turns are computed before the first store, past which the compiler may not move a load.
    found = ()
    for turn in tl.static_range(UNROLL):
        here = tile(LANES, VECTOR) + turn * LANES * VECTOR
        total = combined(row, start, here, left, coefficients, scale, K, SHARED, SCALED, ROW, VECTOR, ALIGNMENT)
        found = found + (total.to(OUT),)  # type: ignore[assignment]  # noqa: RUF005
    for turn in tl.static_range(UNROLL):
        here = tile(LANES, VECTOR) + turn * LANES * VECTOR
        tl.store(target + here, found[turn], mask=here < left)


def combine_triton(
    rows: Rows, coefficients: Tensor, scale: Tensor | None, outputs: Sequence[Tensor | None] | None
) -> list[Tensor | None]:
    """Launch over the outputs, or over views of a new buffer. Checked by :func:`marble_kernels.combine.combine`."""
    device = rows.device
    sizes = [0 if shape is None else torch.Size(shape).numel() for shape in rows.shapes]
    starts = [0]
    for size in sizes:
        starts.append(starts[-1] + -(-size // PADDING) * PADDING)
    dtype = torch.float32
    flat = torch.empty(starts[-1], dtype=dtype, device=device) if outputs is None else None

    def segments() -> list[Segment]:
        found = []
        absent = next(d for index in range(len(sizes)) if (d := rows.row_dtype(index)) is not None)
        for index, size in enumerate(sizes):
            target = None if outputs is None else outputs[index]
            if rows.shapes[index] is None or (outputs is not None and target is None):
                continue
            row, last = rows.row_dtype(index) or absent, None if rows.shared is None else rows.shared[index]
            dtypes = (row, row if last is None else last.dtype, dtype if target is None else target.dtype)
            found.append(Segment(size, dtypes, offset=starts[index], parameter=index))
        return found

    targets = signature(outputs or ())

    def table() -> Tensor:
        return rows.table() if outputs is None else torch.cat([rows.table(), column(targets)], 1)

    options = ("combine", rows.form, outputs is None)
    plan = launches([rows.signature(), targets], segments, table, device, combine_unroll(rows.count), options=options)
    with on(device):
        for launch in plan:
            constants = combine_options(launch.dtypes, launch.vector, launch.unroll, rows.count)
            combine_kernel[(launch.work,)](
                launch.addresses,
                launch.sizes,
                launch.offsets,
                launch.chunks,
                coefficients,
                coefficients if scale is None else scale,
                coefficients if flat is None else flat,
                SHARED=None if rows.shared is None else TYPES[launch.dtypes[1]],
                SCALED=scale is not None,
                FLAT=flat is not None,
                **constants,
            )
    if outputs is not None:
        return list(outputs)
    assert flat is not None
    return [
        None if shape is None else flat[start : start + size].view(shape)
        for start, size, shape in zip(starts, sizes, rows.shapes, strict=False)
    ]


def combine_unroll(count: int) -> int:
    """Vectors per row and thread: enough bytes in flight without running out of registers."""
    return 4 if count <= 2 else 2 if count <= 8 else 1


def combine_options(dtypes: Sequence[torch.dtype], vector: int, unroll: int, count: int) -> dict[str, Any]:
    """Compile-time options; the compile-only tests compile the same."""
    return {
        "K": count,
        "ROW": TYPES[dtypes[0]],
        "OUT": TYPES[dtypes[2]],
        "LANES": LANES,
        "VECTOR": vector,
        "UNROLL": unroll,
        "ALIGNMENT": 16 if vector > 1 else 1,
        **COMPILE,
    }
