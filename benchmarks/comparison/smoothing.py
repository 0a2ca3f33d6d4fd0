"""Where to smooth: balancers with a memory, or with a cleaner estimate, of the Gram matrix G = J Jᵀ.

All return c_k = n̄ α_k / n_k with α the min-norm point of the unit gradients' cosines, as Marble does; what differs is
which Gram matrix the cosines and norms n_k are taken from. They are callables for ``Marble(normalize=False)``, and need
``present`` set before each balance: Marble shows them the rows of active rewards only, and they remember all.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

import marble_opt

_SIGNAL_FLOOR = 0.1


class EMAGram:
    """The moving average Ḡ = ρ Ḡ + (1 − ρ) G goes into the QP, cosines and norms alike.

    An entry starts with its first value; one whose rewards are not both present keeps its own.

    Args:
        count: the number K of rewards.
        rho: ρ in [0, 1).
    """

    def __init__(self, count: int, rho: float) -> None:
        self.rho, self.present = rho, [True] * count
        self.gram = torch.full((count, count), torch.nan, dtype=torch.float64)

    def __call__(self, gram: Tensor) -> Tensor:
        """c of the present rewards from their Gram of this step."""
        rows = _rows(self.present, gram)
        index = torch.tensor(rows)
        old = self.gram[index.unsqueeze(1), index]
        mixed = torch.where(old.isnan(), gram.double(), self.rho * old + (1 - self.rho) * gram.double())
        self.gram[index.unsqueeze(1), index] = mixed
        norms = mixed.diagonal().sqrt()
        return balanced(mixed / norms.outer(norms), norms)


class CrossFit:
    """Cosines from two disjoint halves A, B of the batch, free of the noise within them.

    With the halves' mean gradients h, E[h_k^A · h_l^B] = E[g_k] · E[g_l] also for k = l, while |g_k|² holds the trace
    of g_k's covariance too: plain cosines shrink towards 0, the more so the fewer samples a reward has. Hence

        G_kl = ½ (h_k^A · h_l^B + h_k^B · h_l^A),    cos_kl = G_kl / sqrt(G_kk G_ll).

    G can be indefinite. G_kk is kept above a tenth of |g_k|², cosines are clipped to [−1, 1], negative eigenvalues are
    set to 0 and the diagonal is scaled back to 1. c_k = n̄ α_k / |g_k| has the plain norms, so that a step is as long as
    Marble's and noise is not scaled up. A reward of one half only has plain products.

    ``gram`` is [2K, 2K] of the parts g = g^A + g^B of the gradients: K rows of A, then K rows of B.

    Args:
        count: the number K of rewards.
    """

    def __init__(self, count: int) -> None:
        self.count, self.present = count, [True] * (2 * count)
        self.share = torch.full((count,), 0.5)
        """[K]: the share of each reward's samples that lies in A."""

    def __call__(self, gram: Tensor) -> Tensor:
        """c of the present halves' rows."""
        rows, count = _rows(self.present, gram), self.count
        full = gram.new_zeros(2 * count, 2 * count, dtype=torch.float64)
        index = torch.tensor(rows)
        full[index.unsqueeze(1), index] = gram.double()
        here = torch.tensor(self.present).view(2, count)
        first, second = full[:count], full[count:]
        plain = first[:, :count] + first[:, count:] + second[:, :count] + second[:, count:]
        active = here.any(0)
        weights = torch.zeros(count, dtype=torch.float64)
        cosines = self._cosines(full, plain, here.all(0))[active][:, active]
        weights[active] = balanced(cosines, plain.diagonal()[active].sqrt())
        return weights.repeat(2)[index]

    def _cosines(self, full: Tensor, plain: Tensor, both: Tensor) -> Tensor:
        count, share = self.count, self.share.double()
        crossed = full[:count, count:] / share.outer(1 - share)
        crossed = torch.where(both.unsqueeze(1) & both, (crossed + crossed.T) / 2, plain)
        energy = torch.maximum(crossed.diagonal(), _SIGNAL_FLOOR * plain.diagonal())
        norms = torch.where(energy > 0, energy, 1.0).sqrt()
        return (crossed / norms.outer(norms)).clamp(-1, 1)


def balanced(cosines: Tensor, norms: Tensor) -> Tensor:
    """c = n̄ α / n [K] for the min-norm α of ``cosines`` [K, K], made positive semidefinite first."""
    alpha = marble_opt.solve_min_norm(correlation(cosines)).alpha
    return norms.mean() * alpha / norms


def correlation(cosines: Tensor) -> Tensor:
    """A unit-diagonal positive semidefinite matrix near a symmetric one: negative eigenvalues 0, then D · D."""
    unit = cosines.clone().fill_diagonal_(1)
    values, vectors = torch.linalg.eigh(unit)
    if values[0] >= 0:
        return unit
    # Leaving out negative eigenvalues adds to the diagonal: it is at least 1, so the scaling is safe.
    found = vectors @ torch.diag(values.clamp_min(0)) @ vectors.T
    scale = found.diagonal().rsqrt()
    return scale.unsqueeze(1) * found * scale


def _rows(present: Sequence[bool], gram: Tensor) -> list[int]:
    rows = [row for row, here in enumerate(present) if here]
    if len(rows) != len(gram):
        raise ValueError(
            f"{len(rows)} rows have a loss, {len(gram)} have a usable gradient: one of them is zero or NaN"
        )
    return rows
