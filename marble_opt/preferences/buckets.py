"""One min-norm problem per preference: ω as prior weights on the unit gradients of the samples drawn under it."""

from collections.abc import Sequence

import torch
from torch import Tensor

from marble_kernels.min_norm import min_norm
from marble_kernels.simplex import has_length

from ..balance import check_rewards
from ..row_balancer import RowBalancer
from .simplex import check_preferences


def balance_buckets(gram: Tensor, preferences: Tensor, active: Tensor | None = None) -> Tensor:
    """Coefficients [S, M] that balance the M rewards within each of S buckets and average the buckets.

    A bucket holds the samples drawn under one ω_s (or similar ones), and g_sm is the gradient of reward m on them. With
    ĝ = g / |g| and n̄_s the mean of |g_sm| over the bucket's active rewards,

        d_s = n̄_s Σ_m α_sm ĝ_sm,   α_s: the shortest point of the hull of ĝ_sm / ω_sm, scaled to Σ_m α_sm = 1
        d   = Σ_s d_s / S_on = Σ_sm c_sm g_sm,      c_sm = n̄_s α_sm / (|g_sm| S_on)

    Within the support d_sᵀĝ_sm is proportional to ω_sm, and no active reward of a bucket is opposed by d_s: MARBLE
    (arXiv 2605.06507) with prior weights, in place of ParetoSlider's Σ_m ω_m loss_m (arXiv 2604.20816). Buckets are
    solved in one batch and may oppose each other in d. ω_sm = 0, and rewards that are absent, leave the bucket's
    simplex: for a one-hot ω_s the bucket's d_s is that reward's own gradient.

    Args:
        gram: [S, M, M], Gram matrices of the raw gradients of each bucket.
        preferences: ω [S, M] on the simplex.
        active: bool [S, M], the rewards that were computed in each bucket; default: all whose gradient has a length.

    Returns:
        c [S, M] in the dtype of ``gram``; zero in a bucket without an active reward, which S_on does not count.

    Raises:
        ValueError: shapes that disagree, preferences off the simplex.
    """
    if gram.dim() != 3 or gram.shape[1] != gram.shape[2] or preferences.shape != gram.shape[:2]:
        raise ValueError(
            f"need gram [S, M, M] and preferences [S, M], got {list(gram.shape)} and {list(preferences.shape)}"
        )
    check_preferences(preferences, gram.shape[2])
    if active is None:
        active = has_length(gram)
    elif active.shape != preferences.shape or active.dtype != torch.bool:
        raise ValueError(
            f"active must be bool {list(preferences.shape)}, got {active.dtype} {list(active.shape)}: one flag per row"
        )
    prior = preferences.to(gram)
    active = active & has_length(gram) & (prior > 0)
    alpha = min_norm(gram, active, normalize=True, prior=prior).alpha
    return _lengths(alpha, gram.diagonal(dim1=1, dim2=2).sqrt(), active)


class BucketBalancer(RowBalancer):
    """:func:`balance_buckets` for :class:`marble_opt.Marble`, whose rewards are then "bucket/reward", S · M of them:

        names = preferences.bucket_rewards(["photo", "sketch"], buckets=3)
        balancer = preferences.BucketBalancer(omega)                                # [3, 2]
        opt = marble_opt.Marble(base, names, balancer=balancer, model=[transformer, conditioning])
        ...
        balancer.preferences = omega                                                # before each step
        rows = preferences.bucket_advantages(advantages, bucket_of_sample, 3)       # [6, B]
        opt.backward(marble_opt.losses.diffusion_nft(..., rows, ...))

    The report's ``alpha`` is α_sm / S_on, of sum 1; its ``gap`` the largest of the buckets'. With ``ema`` α is smoothed
    per row, and with ``refresh_every`` coefficients are kept: let a bucket mean the same region of preferences in every
    step then. All ranks must set the same ω. It takes the place of ``weights`` and ``floor``.

    Args:
        preferences: ω [S, M] of the first step. On a GPU keep it there: nothing is read.

    Raises:
        ValueError: a shape other than [S, M], preferences off the simplex; later also another shape than the first.
    """

    def __init__(self, preferences: Tensor) -> None:
        self._preferences = _checked(preferences)

    @property
    def preferences(self) -> Tensor:
        """ω [S, M] of this step."""
        return self._preferences

    @preferences.setter
    def preferences(self, preferences: Tensor) -> None:
        checked = _checked(preferences)
        if checked.shape != self._preferences.shape:
            raise ValueError(
                f"preferences are {list(self._preferences.shape)} since the optimizer was made, got "
                f"{list(checked.shape)}: the rows of its bank are fixed"
            )
        self._preferences = checked

    @property
    def prior(self) -> Tensor:
        return self._preferences.flatten()

    def weights(self, gram: Tensor, active: Tensor) -> tuple[Tensor, Tensor]:
        buckets, size = self._preferences.shape
        blocks = gram.view(buckets, size, buckets, size).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
        point = min_norm(blocks, active.view(buckets, size), normalize=True, prior=self._preferences.to(gram))
        return point.alpha.flatten() / _running(active.view(buckets, size)), point.gap.max()

    def coefficients(self, alpha: Tensor, norms: Tensor, active: Tensor) -> Tensor:
        shape = self._preferences.shape
        return _lengths(alpha.view(shape), norms.view(shape), active.view(shape)).flatten()


def bucket_rewards(rewards: Sequence[str], buckets: int) -> list[str]:
    """Names of the S · M rows, bucket by bucket: ``["0/ocr", "0/geneval", "1/ocr", ...]``.

    Raises:
        ValueError: no bucket, or names that Marble would refuse.
    """
    if buckets < 1:
        raise ValueError(f"buckets must be at least 1, got {buckets}")
    return [f"{bucket}/{name}" for bucket in range(buckets) for name in check_rewards(rewards)]


def bucket_advantages(advantages: Tensor, buckets: Tensor, count: int) -> Tensor:
    """Advantages [S · M, B] in the order of :func:`bucket_rewards`: those of a sample in the rows of its bucket, NaN
    (does not apply) in all others. The counts n_k of a loss then are the bucket's own.

    Args:
        advantages: A [M, B].
        buckets: integers [B] within [0, S), the bucket of each sample (:func:`nearest`, or the slot).
        count: S.

    Raises:
        ValueError: shapes that disagree; on a CPU also a bucket out of range.
    """
    if advantages.dim() != 2 or buckets.shape != advantages.shape[1:] or buckets.is_floating_point():
        raise ValueError(
            f"need advantages [M, B] and integer buckets [B], got {list(advantages.shape)} and {buckets.dtype} "
            f"{list(buckets.shape)}"
        )
    if buckets.device.type == "cpu" and ((buckets < 0) | (buckets >= count)).any():
        raise ValueError(f"buckets must be within [0, {count}), got {sorted(set(buckets.tolist()))}")
    own = buckets == torch.arange(count, device=buckets.device).unsqueeze(1)
    return torch.where(own.unsqueeze(1), advantages, torch.nan).flatten(0, 1)


def _checked(preferences: Tensor) -> Tensor:
    if preferences.dim() != 2 or not preferences.numel():
        raise ValueError(f"preferences must be [S, M], one row per bucket, got {list(preferences.shape)}")
    check_preferences(preferences, preferences.shape[1])
    return preferences.detach().clone().clamp_min(0)


def _running(active: Tensor) -> Tensor:
    """S_on, at least 1."""
    return active.any(1).sum().clamp_min(1)


def _lengths(alpha: Tensor, norms: Tensor, active: Tensor) -> Tensor:
    """n̄_s α_sm / (|g_sm| S_on), α scaled to sum 1 within each bucket."""
    on = active.to(alpha.dtype)
    total = (alpha * on).sum(1, keepdim=True)
    share = alpha * on / torch.where(total > 0, total, 1.0)
    mean = torch.where(active, norms, 0.0).sum(1, keepdim=True) / on.sum(1, keepdim=True).clamp_min(1)
    return torch.where(active, mean * share / norms, 0.0) / _running(active)
