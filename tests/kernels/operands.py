"""Operands for kernel tests: tensors between guard bands, and fp64 oracles by brute force."""

from collections.abc import Sequence

import torch
from torch import Tensor

BAND = 64  # elements of a band
MARK = -512.0  # what lies around outputs: from NaN inputs a kernel would write NaN over NaN unseen


class Guarded:
    """Makes tensors that lie between bands: a read past an end shows in the result, as NaN, a write in the band."""

    def __init__(self, device: str = "cpu") -> None:
        self.device = device
        self.bands: list[Tensor] = []
        self.marks: list[Tensor] = []

    def __call__(self, value: Tensor, shift: int = 0) -> Tensor:
        """A copy of ``value`` between bands of NaN, ``shift`` elements off the allocator's alignment."""
        return self._copy(value, shift, torch.nan, self.bands)

    def written(self, value: Tensor, shift: int = 0) -> Tensor:
        """A copy between bands of marks, for what a kernel writes to."""
        return self._copy(value, shift, MARK, self.marks)

    def _copy(self, value: Tensor, shift: int, fill: float, bands: list[Tensor]) -> Tensor:
        buffer = torch.full((value.numel() + 2 * BAND + shift,), fill, dtype=value.dtype, device=self.device)
        start = BAND + shift
        bands += [buffer[:start], buffer[start + value.numel() :]]
        return buffer[start : start + value.numel()].view(value.shape).copy_(value)

    def block(self, value: Tensor, shift: int = 0) -> Tensor:
        """A copy of a block [K, *shape] with a band after every row."""
        count, size = value.shape[0], value[0].numel()
        # A whole number of vectors between rows keeps them as aligned as the first one.
        pitch = -(-size // 8) * 8 + BAND
        buffer = torch.full((BAND + shift + count * pitch,), torch.nan, dtype=value.dtype, device=self.device)
        grid = buffer[BAND + shift :].view(count, pitch)
        self.bands += [buffer[: BAND + shift], grid[:, size:]]
        grid[:, :size] = value.flatten(1).to(self.device)
        strides = torch.empty(value.shape[1:]).stride()
        return buffer.as_strided(value.shape, (pitch, *strides), BAND + shift)

    def intact(self) -> bool:
        """Whether every band is as it was."""
        marked = all(bool((band == MARK).all()) for band in self.marks)
        return marked and all(bool(band.isnan().all()) for band in self.bands)


def blocks(count: int, shapes: Sequence[Sequence[int]], random: torch.Generator, dtype: torch.dtype) -> list[Tensor]:
    """Gaussian blocks [K, *shape]."""
    return [torch.randn(count, *shape, generator=random).to(dtype) for shape in shapes]


def flat(rows: Sequence[Tensor]) -> Tensor:
    """Blocks as one fp64 tensor [K, P]."""
    return torch.cat([block.detach().cpu().double().flatten(1) for block in rows], 1)


def gram_error(found: Tensor, rows: Tensor, metric: Tensor | None = None) -> float:
    """Largest error of G in units of sqrt(G_jj G_kk), the bound on an entry; rows in fp64."""
    weighted = rows if metric is None else rows * metric
    exact = weighted @ rows.mT
    norms = exact.diagonal().sqrt()
    unit = norms.unsqueeze(0) * norms.unsqueeze(1)
    unit = torch.where(unit > 0, unit, 1.0)
    return float(((found.cpu().double() - exact) / unit).abs().max())


def combine_error(found: Tensor, rows: Tensor, coefficients: Tensor) -> float:
    """Largest error of Σ c_k g_k in units of Σ |c_k g_k|, which cancellation cannot make small."""
    weights = coefficients.cpu().double()
    unit = weights.abs() @ rows.abs()
    error = (found.cpu().double().flatten() - weights @ rows).abs()
    return float((error / torch.where(unit > 0, unit, 1.0)).max())
