"""Preference vectors ω on the simplex: ω_m ≥ 0, Σ_m ω_m = 1."""

from collections.abc import Iterator

import torch
from torch import Tensor

_TOLERANCE = 1e-4


def check_preferences(preferences: Tensor, size: int, what: str = "preferences") -> None:
    """Raise ``ValueError`` unless they are [..., M] numbers and, checked on a CPU, on the simplex up to 1e-4."""
    if preferences.dim() < 1 or preferences.shape[-1] != size or not preferences.is_floating_point():
        raise ValueError(
            f"{what} must be floating-point [..., {size}], one number per reward, got {preferences.dtype} "
            f"{list(preferences.shape)}"
        )
    if preferences.device.type != "cpu":
        return
    exact = preferences.detach().double()
    wrong = ~((exact >= -_TOLERANCE).all(-1) & ((exact.sum(-1) - 1).abs() <= _TOLERANCE))
    if wrong.any():
        first = exact.reshape(-1, size)[wrong.flatten()][0]
        raise ValueError(
            f"{what} must be on the simplex, not negative and of sum 1; one is {first.tolist()} with sum "
            f"{first.sum().item():g}: divide by the sum"
        )


def simplex_grid(size: int, divisions: int) -> Tensor:
    """All ω [N, M] whose entries are multiples of 1 / divisions, from (0, …, 0, 1) to (1, 0, …, 0), in fp64.

    N = C(divisions + M − 1, M − 1). For M = 2 a line of divisions + 1 points with both ends; the points at which a
    conditioned model is evaluated (ParetoSlider, arXiv 2604.20816).

    Raises:
        ValueError: a number below 1.
    """
    if size < 1 or divisions < 1:
        raise ValueError(f"size and divisions must be at least 1, got {size} and {divisions}")
    return torch.tensor(list(_compositions(divisions, size)), dtype=torch.float64) / divisions


def nearest(preferences: Tensor, centres: Tensor) -> Tensor:
    """The index [...] of the centre [S, M] that is closest to each preference [..., M]; of equal ones the first.

    Raises:
        ValueError: shapes that disagree.
    """
    if centres.dim() != 2 or preferences.dim() < 1 or preferences.shape[-1] != centres.shape[1]:
        raise ValueError(
            f"need preferences [..., M] and centres [S, M], got {list(preferences.shape)} and {list(centres.shape)}"
        )
    return (preferences.unsqueeze(-2) - centres.to(preferences)).square().sum(-1).argmin(-1)


def _compositions(total: int, parts: int) -> Iterator[tuple[int, ...]]:
    if parts == 1:
        yield (total,)
        return
    for first in range(total + 1):
        for rest in _compositions(total - first, parts - 1):
            yield (first, *rest)
