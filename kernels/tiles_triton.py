"""What all streaming kernels share: from a chunk's number to a tile of each row.

A program has LANES threads; a tile is [LANES, VECTOR], VECTOR neighbouring elements per thread: 16 bytes of a row if
everything is aligned, else one element. Sums over axis 1 stay within a thread.
"""

from typing import Any

import torch
import triton
import triton.language as tl

TYPES: dict[torch.dtype, Any] = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
# Fused multiply-adds are asked for: newer versions of Triton no longer form them by default.
COMPILE: dict[str, Any] = {"num_warps": 4, "enable_fp_fusion": True}


@triton.jit
def tile(LANES: tl.constexpr, VECTOR: tl.constexpr):  # type: ignore[no-untyped-def]
    """Element numbers [LANES, VECTOR] of a tile; small, so 32 bits do."""
    return tl.arange(0, LANES)[:, None] * VECTOR + tl.arange(0, VECTOR)[None, :]


@triton.jit
def locate(chunks, sizes, chunk, CHUNK: tl.constexpr, VECTOR: tl.constexpr):  # type: ignore[no-untyped-def]
    """Segment of a chunk, where in it the chunk starts (int64), and how many elements the chunk has."""
    work = tl.load(chunks + chunk)
    segment = work >> 32
    start = (work - (segment << 32)) * CHUNK
    left = tl.minimum(tl.load(sizes + segment) - start, CHUNK).to(tl.int32)
    # With VECTOR > 1 every size is a multiple of it: the mask is then constant over a vector, and the load stays one.
    return segment, start, tl.multiple_of(left, VECTOR)


@triton.jit
def at(address, start, DTYPE: tl.constexpr, ALIGNMENT: tl.constexpr):  # type: ignore[no-untyped-def]
    """Pointer to element ``start`` of the row at ``address``."""
    return tl.multiple_of(address.to(tl.pointer_type(DTYPE)) + start, ALIGNMENT)


@triton.jit
def kept(left, used, VECTOR: tl.constexpr):  # type: ignore[no-untyped-def]
    """``left`` where ``used``, else 0: leaves a row out. (The interpreter cannot combine masks with ``&``.)"""
    return tl.multiple_of(tl.where(used, left, 0), VECTOR)


@triton.jit
def read(address, start, here, left, DTYPE: tl.constexpr, VECTOR: tl.constexpr, ALIGNMENT: tl.constexpr):  # type: ignore[no-untyped-def]
    """Tile of a row in fp32; zero from element ``left`` on, and everywhere if the row is absent."""
    inside = here < kept(left, address != 0, VECTOR)
    return tl.load(at(address, start, DTYPE, ALIGNMENT) + here, mask=inside, other=0.0).to(tl.float32)
