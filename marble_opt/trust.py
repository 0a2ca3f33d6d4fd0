"""Comparing contractions with ordinary gradients, until a parameter is known to be contracted rightly."""

from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .passes import ordinary
from .separable import SeparableLoss

# Relative to the norm of the parameter's gradient, by the lowest precision in the model: what is booked on a wrong
# sample is off by much more, while the two sides round differently wherever gradients pass through that precision
# (models in fp64 may have norms in fp32).
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 5e-2}
# A gradient that is zero but for rounding (the bias of attention's keys) is noise in both: compared with the usual
# size.
_NOISE = 4.0
_ATTEMPTS = 3

RIGHT, WRONG, UNCLEAR = "right", "wrong", "unclear"


def compare(
    found: Mapping[Tensor, Tensor], expected: Mapping[Tensor, Tensor | None], precisions: Iterable[torch.dtype]
) -> dict[Tensor, str]:
    """Whether ``found`` equals ``expected``, for each parameter of ``expected``.

    ``"right"``: within ``TOLERANCE``; ``"unclear"``: both zero, not finite, or apart by no more than the rounding of
    a gradient of the usual size; else ``"wrong"``. A parameter that is in one of the two only has a zero in the other.

    Args:
        precisions: the dtypes that gradients pass through; the coarsest sets the tolerance.
    """
    present = set(precisions)
    coarsest = max(TOLERANCE, key=lambda kind: torch.finfo(kind).eps if kind in present else 0.0)
    norms = []
    for parameter, gradient in expected.items():
        left = found.get(parameter, torch.zeros_like(parameter)).double()
        right = torch.zeros_like(left) if gradient is None else _dense(gradient).double()
        norms.append(torch.stack([(left - right).norm(), right.norm()]).cpu())
    if not norms:
        return {}
    difference, size = torch.stack(norms).unbind(1)
    sizes = [*size.unbind(), *(each.double().norm().cpu() for each in found.values())]
    usual = torch.stack(sizes).square().mean().sqrt()
    right = (difference <= TOLERANCE[coarsest] * size) & (size > 0)
    unclear = (difference <= _NOISE * torch.finfo(coarsest).eps * usual) | ~torch.isfinite(difference)
    verdicts = torch.where(right, 0, torch.where(unclear, 1, 2)).tolist()
    return {parameter: (RIGHT, UNCLEAR, WRONG)[each] for parameter, each in zip(expected, verdicts, strict=True)}


def check_row(loss: SeparableLoss) -> Tensor:
    """Weights [M, 1, B] of one more reward, that differ by sample, so that a gradient that was booked on the wrong
    sample shows, and by term, so that terms which pull in opposite directions do not cancel.
    """
    terms, batch = loss.terms.shape
    row = torch.linspace(0.5, 1.5, batch) + torch.arange(terms).unsqueeze(1)
    return row.to(loss.weights).unsqueeze(1)


def ordinary_gradients(
    loss: SeparableLoss, parameters: Sequence[Tensor], scale: Tensor | float, leaves: Collection[Tensor] | None
) -> dict[Tensor, Tensor | None]:
    """Of the loss that :func:`check_row` weighs, over the samples that have a weight. The graph is kept."""
    terms = torch.where((loss.weights != 0).any(1), loss.terms, 0)
    value = (check_row(loss).squeeze(1) * terms).sum() * scale
    return dict(zip(parameters, ordinary(value, parameters, True, leaves), strict=True))


@dataclass
class Trust:
    """What comparisons have shown so far, by a key that names a parameter and the layout of its calls.

    A gradient that is zero says nothing, so that parameter is compared again, up to three times.
    """

    right: set[Hashable] = field(default_factory=set)
    wrong: set[Hashable] = field(default_factory=set)
    attempts: dict[Hashable, int] = field(default_factory=dict)

    def pending(self, keys: Iterable[Hashable]) -> set[Hashable]:
        """The keys that are still to be compared."""
        return {key for key in keys if key not in self.right and key not in self.wrong}

    def learn(self, key: Hashable, verdict: str) -> None:
        """Note the outcome of one comparison."""
        if verdict == WRONG:
            self.wrong.add(key)
        attempts = self.attempts.pop(key, 0) + 1
        if verdict == RIGHT or attempts >= _ATTEMPTS:
            self.right.add(key)
        else:
            self.attempts[key] = attempts


def _dense(gradient: Tensor) -> Tensor:
    return gradient.to_dense() if gradient.is_sparse else gradient
