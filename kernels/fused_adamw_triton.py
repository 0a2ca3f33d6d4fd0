"""One pass from the bank to the parameters: combine, clip, AdamW.

A first, tiny launch counts the steps and works out what depends on them, in fp64: 1 - 0.999^1 has lost four digits in
fp32. The second reads every row, parameter and moment once and writes parameter and moments once.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .combine_triton import combine_unroll, combined
from .launches import column, launches, on
from .segments import Rows
from .signature import Signature
from .tables import LANES, Segment
from .tiles_triton import COMPILE, TYPES, at, kept, locate, tile

BLOCK = 128


@triton.jit(do_not_specialize=["count"])
def adamw_prepare(  # type: ignore[no-untyped-def]
    addresses,
    numbers,
    usable,
    lr_tensor,
    lr,
    weight_decay,
    log_beta1,
    log_beta2,
    count,
    COLUMNS: tl.constexpr,
    USABLE: tl.constexpr,
    LR_TENSOR: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Per segment: step += 1; numbers = (lr / (1 - β1^step), 1 / sqrt(1 - β2^step), 1 - lr · weight_decay)."""
    segment = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = segment < count
    address = tl.load(addresses + segment.to(tl.int64) * COLUMNS + COLUMNS - 1, mask=inside, other=0)
    pointer = address.to(tl.pointer_type(tl.float32))
    step = tl.load(pointer, mask=inside, other=0.0) + 1
    limit = count
    if USABLE:
        limit = kept(count, tl.load(usable) != 0, 1)
    tl.store(pointer, step, mask=segment < limit)
    rate = tl.zeros([BLOCK], tl.float64) + (tl.load(lr_tensor) if LR_TENSOR else lr)
    bias1 = 1 - tl.exp(step.to(tl.float64) * log_beta1)
    bias2 = 1 - tl.exp(step.to(tl.float64) * log_beta2)
    tl.store(numbers + 3 * segment, (rate / bias1).to(tl.float32), mask=inside)
    tl.store(numbers + 3 * segment + 1, (1 / tl.sqrt(bias2)).to(tl.float32), mask=inside)
    tl.store(numbers + 3 * segment + 2, (1 - rate * weight_decay).to(tl.float32), mask=inside)


@triton.jit
def adamw_update(  # type: ignore[no-untyped-def]
    addresses,
    sizes,
    chunks,
    numbers,
    coefficients,
    scale,
    usable,
    beta1,
    beta2,
    new1,
    new2,
    eps,
    weight_decay,
    K: tl.constexpr,
    SHARED: tl.constexpr,
    SCALED: tl.constexpr,
    USABLE: tl.constexpr,
    DECOUPLED: tl.constexpr,
    MAXIMIZE: tl.constexpr,
    ROW: tl.constexpr,
    PARAM: tl.constexpr,
    STATE: tl.constexpr,
    LANES: tl.constexpr,
    VECTOR: tl.constexpr,
    UNROLL: tl.constexpr,
    ALIGNMENT: tl.constexpr,
):
    """Update one chunk; columns: K rows, shared, parameter, first and second moment, step. new1 = 1 - β1."""
    STATES: tl.constexpr = K + (SHARED is not None)
    segment, start, left = locate(chunks, sizes, tl.program_id(0), LANES * VECTOR * UNROLL, VECTOR)
    if USABLE:
        left = kept(left, tl.load(usable) != 0, VECTOR)
    row = addresses + segment * (STATES + 4)
    params = at(tl.load(row + STATES), start, PARAM, ALIGNMENT)
    firsts = at(tl.load(row + STATES + 1), start, STATE, ALIGNMENT)
    seconds = at(tl.load(row + STATES + 2), start, STATE, ALIGNMENT)
    rate, root = tl.load(numbers + 3 * segment), tl.load(numbers + 3 * segment + 1)
    decay = tl.load(numbers + 3 * segment + 2)
    # All turns are computed before the first store, past which the compiler may not move a load.
    found = ()
    for turn in tl.static_range(UNROLL):
        here = tile(LANES, VECTOR) + turn * LANES * VECTOR
        inside = here < left
        gradient = combined(row, start, here, left, coefficients, scale, K, SHARED, SCALED, ROW, VECTOR, ALIGNMENT)
        param = tl.load(params + here, mask=inside, other=0.0).to(tl.float32)
        first = tl.load(firsts + here, mask=inside, other=0.0).to(tl.float32)
        second = tl.load(seconds + here, mask=inside, other=0.0).to(tl.float32)
        if MAXIMIZE:
            gradient = -gradient
        if DECOUPLED:
            param *= decay
        else:
            gradient += weight_decay * param
        # Interpolated from the nearer end, so that β1 = 0 gives the gradient itself.
        change = gradient - first
        first = tl.where(new1 < 0.5, first + new1 * change, gradient - beta1 * change)
        second = second * beta2 + new2 * gradient * gradient
        param -= rate * (first / (tl.sqrt(second) * root + eps))
        found = found + ((first.to(STATE), second.to(STATE), param.to(PARAM)),)  # type: ignore[assignment]  # noqa: RUF005
    for turn in tl.static_range(UNROLL):
        here = tile(LANES, VECTOR) + turn * LANES * VECTOR
        inside = here < left
        tl.store(firsts + here, found[turn][0], mask=inside)
        tl.store(seconds + here, found[turn][1], mask=inside)
        tl.store(params + here, found[turn][2], mask=inside)


def adamw_triton(
    params: Sequence[Tensor],
    rows: Rows,
    coefficients: Tensor,
    exp_avgs: Sequence[Tensor],
    states: Sequence[Signature],
    *,
    lr: float | Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool,
    maximize: bool,
    scale: Tensor | None,
    usable: Tensor | None,
) -> None:
    """Launch both kernels. Everything has been checked by :func:`marble_kernels.fused_adamw.fused_adamw`.

    ``states``: the signatures of parameters, first and second moments, and steps.
    """
    device = params[0].device

    def segments() -> list[Segment]:
        found = []
        absent = next(d for index in range(len(params)) if (d := rows.row_dtype(index)) is not None)
        for index, (param, first) in enumerate(zip(params, exp_avgs, strict=True)):
            if rows.shapes[index] is None:
                continue
            row, last = rows.row_dtype(index) or absent, None if rows.shared is None else rows.shared[index]
            dtypes = (row, row if last is None else last.dtype, param.dtype, first.dtype)
            found.append(Segment(param.numel(), dtypes, parameter=index))
        return found

    def table() -> Tensor:
        return torch.cat([rows.table(), *(column(each) for each in states)], 1)

    flag = None if usable is None else usable.view(torch.uint8) if usable.dtype == torch.bool else usable
    unroll, options = combine_unroll(rows.count), ("adamw", rows.form)
    plan = launches([rows.signature(), *states], segments, table, device, unroll, options=options, single=1)
    with on(device):
        for launch in plan:
            numbers = torch.empty(len(launch.parameters), 3, device=device)
            adamw_prepare[(-(-len(launch.parameters) // BLOCK),)](
                launch.addresses,
                numbers,
                numbers if flag is None else flag,
                lr if isinstance(lr, Tensor) else numbers,
                0.0 if isinstance(lr, Tensor) else float(lr),
                float(weight_decay),
                _log(beta1),
                _log(beta2),
                len(launch.parameters),
                **prepare_options(rows.size + 4, flag is not None, isinstance(lr, Tensor)),
            )
            adamw_update[(launch.work,)](
                launch.addresses,
                launch.sizes,
                launch.chunks,
                numbers,
                coefficients,
                numbers if scale is None else scale,
                numbers if flag is None else flag,
                float(beta1),
                float(beta2),
                1 - beta1,
                1 - beta2,
                float(eps),
                float(weight_decay),
                SCALED=scale is not None,
                USABLE=flag is not None,
                DECOUPLED=decoupled,
                MAXIMIZE=maximize,
                **update_options(launch.dtypes, launch.vector, launch.unroll, rows),
            )
    # Autograd learns of in-place changes by this counter, which a kernel does not touch.
    torch.autograd.graph.increment_version(params)


def prepare_options(columns: int, usable: bool, lr_tensor: bool) -> dict[str, Any]:
    """Compile-time options of the first launch."""
    return {"COLUMNS": columns, "USABLE": usable, "LR_TENSOR": lr_tensor, "BLOCK": BLOCK, **COMPILE}


def update_options(dtypes: Sequence[torch.dtype], vector: int, unroll: int, rows: Rows) -> dict[str, Any]:
    """Compile-time options of the second launch; the compile-only tests compile the same."""
    return {
        "K": rows.count,
        "SHARED": None if rows.shared is None else TYPES[dtypes[1]],
        "ROW": TYPES[dtypes[0]],
        "PARAM": TYPES[dtypes[2]],
        "STATE": TYPES[dtypes[3]],
        "LANES": LANES,
        "VECTOR": vector,
        "UNROLL": unroll,
        "ALIGNMENT": 16 if vector > 1 else 1,
        **COMPILE,
    }


def _log(beta: float) -> float:
    return math.log(beta) if beta > 0 else -math.inf
