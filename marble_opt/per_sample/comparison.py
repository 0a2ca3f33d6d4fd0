"""Comparing rows with ordinary gradients."""

from collections.abc import Callable, Collection, Mapping, Sequence
from enum import IntEnum

import torch
from torch import Tensor

from ..ranks import local_part
from ..separable import SeparableLoss

# Relative to the norm of the parameter's gradient, by the lowest precision that it passes through: what is booked on a
# wrong sample is off by much more, while the two sides round differently wherever gradients pass through that
# precision (models in fp64 may have norms in fp32).
TOLERANCE = {torch.float64: 1e-6, torch.float32: 5e-4, torch.float16: 2e-2, torch.bfloat16: 5e-2}
# A gradient that is zero but for rounding (the bias of attention's keys) is noise on both sides: compared with the
# usual size.
_NOISE = 16.0
# What a deep network may round in a gradient far below the usual size, if that is like the other side all the same.
_ROUNDED, _ALIKE = 64.0, 1e-2
_GOLDEN = 0.6180339887498949
# Small terms and samples are weighed up by no more, so that half precision does not lose what it computes with them.
_AMPLIFIED = 1e3


class Verdict(IntEnum):
    """What one comparison shows of the rows of a parameter.

    ``ZERO``: the ordinary gradient is exactly zero, or there is none; ``NOISE``: no more than the rounding of a
    gradient of the usual size; ``BLURRED``: the same in half precision, whose rounding hides much; ``NOT_FINITE``:
    nothing to compare. These prove nothing for later steps.
    """

    ZERO = 0
    NOISE = 1
    RIGHT = 2
    BLURRED = 3
    NOT_FINITE = 4
    WRONG = 5


def compare(
    rows: Mapping[Tensor, Tensor],
    expected: Mapping[Tensor, Tensor | None],
    judged: Collection[Tensor],
    precision: torch.dtype,
    total: Callable[[Tensor], Tensor] = lambda squares: squares,
) -> dict[Tensor, Verdict]:
    """Verdicts for the parameters ``judged``; the device is waited for once.

    Args:
        rows: rows of the check weights [*shape]; under FSDP2 of this rank's shards. None is zero.
        expected: ordinary gradients likewise, of all parameters, which tell what size is usual.
        precision: the coarsest dtype that gradients pass through.
        total: adds squares [3, N] up over ranks.
    """
    squares = []
    for parameter, gradient in expected.items():
        right = torch.zeros_like(local_part(parameter)) if gradient is None else _dense(local_part(gradient))
        left = rows.get(parameter) if parameter in judged else right
        left, right = (torch.zeros_like(right) if left is None else left).double(), right.double()
        squares.append(torch.stack([(left - right).square().sum(), right.square().sum(), left.square().sum()]).cpu())
    if not squares:
        return {}
    difference, size, found = total(torch.stack(squares, 1)).sqrt()
    present = torch.cat([each[torch.isfinite(each) & (each > 0)] for each in (size, found)])
    usual = present.square().mean().sqrt() if len(present) else torch.zeros(()).double()
    noise = _NOISE * torch.finfo(precision).eps * usual
    # In half precision only what is small on both sides.
    half = torch.finfo(precision).bits <= 16
    small = torch.maximum(size, found) <= noise / 4
    hidden = torch.where(small, Verdict.BLURRED, Verdict.WRONG) if half else Verdict.NOISE
    alike = (difference <= _ALIKE * size) & (difference <= _ROUNDED / _NOISE * noise)
    verdicts = torch.where(
        alike | (difference <= TOLERANCE[precision] * size),
        Verdict.RIGHT,
        torch.where(difference <= noise, hidden, Verdict.WRONG),
    )
    verdicts = torch.where((size == 0) & (found == 0), Verdict.ZERO, verdicts)
    verdicts = torch.where(torch.isfinite(size) & torch.isfinite(difference), verdicts, Verdict.NOT_FINITE)
    pairs = zip(expected, verdicts.tolist(), strict=True)
    return {parameter: Verdict(verdict) for parameter, verdict in pairs if parameter in judged}


def check_weights(loss: SeparableLoss, sizes: Tensor, silent: Sequence[bool]) -> Tensor:
    """Weights [M, 1, B] of one more reward, for comparisons.

    They differ by sample, in sign too, so that a gradient that was booked on the wrong sample shows, and bring all
    terms and samples to one size, so that none is lost in the rounding of the others. Terms that are skipped keep the
    size that they have in the rewards: what they do past ``prediction`` shows. Samples without a weight in any reward
    have none here.

    Args:
        sizes: |u_mi| [M, B], the norms of the cotangents.
        silent: the terms that are skipped.
    """
    terms, batch = loss.terms.shape
    place = torch.arange(terms * batch, device=sizes.device).view(terms, batch)
    generic = 0.5 + (place * _GOLDEN + 0.3) % 1.0
    generic = torch.where(torch.arange(batch, device=sizes.device) % 2 == 0, generic, -generic)
    if not sizes.numel():
        return torch.zeros_like(loss.weights[:, :1])
    importance = loss.weights.abs().amax(1).to(sizes.device)
    relative = importance / importance.amax(0).clamp_min(torch.finfo(importance.dtype).tiny)
    quiet = torch.tensor(silent, device=sizes.device).unsqueeze(1)
    used = (importance > 0) & torch.isfinite(sizes)
    largest = torch.where(used & ~quiet, sizes, 0.0).amax()
    factor = torch.where(quiet, relative, largest / torch.maximum(sizes, largest / _AMPLIFIED))
    return torch.where(used, generic * factor, 0.0).to(loss.weights).unsqueeze(1)


def _dense(gradient: Tensor) -> Tensor:
    return gradient.to_dense() if gradient.is_sparse else gradient
