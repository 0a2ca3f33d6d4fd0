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
        new, here = _placed(gram, self.present), torch.tensor(self.present)
        mixed = torch.where(self.gram.isnan(), new, self.rho * self.gram + (1 - self.rho) * new)
        self.gram = torch.where(here.unsqueeze(1) & here, mixed, self.gram)
        own = self.gram[here][:, here]
        norms = own.diagonal().sqrt()
        return balanced(own / norms.outer(norms), norms)


class CrossFit:
    """Cosines from two disjoint halves A, B of the batch, free of the noise within them.

    With the halves' mean gradients h, E[h_k^A · h_l^B] = E[g_k] · E[g_l] also for k = l, while |g_k|² holds the trace
    of g_k's covariance too: plain cosines shrink towards 0, the more so the fewer samples a reward has. Hence

        G_kl = ½ (h_k^A · h_l^B + h_k^B · h_l^A),    s_k² = max(G_kk, |g_k|² / 10),    cos_kl = G_kl / (s_k s_l).

    G can be indefinite: cosines are clipped to [−1, 1], negative eigenvalues are set to 0 and the diagonal is scaled
    back to 1. c_k = n̄ α_k / |g_k| has the plain norms, so that noise is not scaled up, or with ``signal`` s̄ α_k / s_k,
    so that it does not make a reward count for less. A reward of one half only has plain products.

    Args:
        count: the number K of rewards.
        signal: divide by s_k rather than by |g_k|.
    """

    def __init__(self, count: int, signal: bool = False) -> None:
        self.count, self.signal, self.present = count, signal, [True] * (2 * count)
        self.share = torch.full((count,), 0.5)
        """[K]: the share of each reward's samples that lies in A."""

    def __call__(self, gram: Tensor) -> Tensor:
        """c of the present rows of [A; B], from their Gram (of the parts g = g^A + g^B of the gradients)."""
        full, here = _placed(gram, self.present), torch.tensor(self.present).view(2, self.count)
        plain = full.view(2, self.count, 2, self.count).sum((0, 2))
        crossed = full[: self.count, self.count :] / self.share.double().outer(1 - self.share.double())
        both, active = here.all(0), here.any(0)
        crossed = torch.where(both.unsqueeze(1) & both, (crossed + crossed.T) / 2, plain)
        weights = torch.zeros(self.count, dtype=torch.float64)
        weights[active] = self._weights(crossed[active][:, active], plain.diagonal()[active])
        return weights.repeat(2)[here.flatten()]

    def _weights(self, crossed: Tensor, energies: Tensor) -> Tensor:
        signals = torch.maximum(crossed.diagonal(), _SIGNAL_FLOOR * energies).sqrt()
        cosines = (crossed / signals.outer(signals)).clamp(-1, 1)
        return balanced(cosines, signals if self.signal else energies.sqrt())


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


def _placed(gram: Tensor, present: Sequence[bool]) -> Tensor:
    """``gram`` of the present rows among all, 0 elsewhere; in fp64."""
    rows = torch.tensor([row for row, here in enumerate(present) if here])
    if len(rows) != len(gram):
        raise ValueError(
            f"{len(rows)} rows have a loss, {len(gram)} have a usable gradient: one of them is zero or NaN"
        )
    full = gram.new_zeros(len(present), len(present), dtype=torch.float64)
    full[rows.unsqueeze(1), rows] = gram.double()
    return full
