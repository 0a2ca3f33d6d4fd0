"""From several values and a preference to one number. Values f are to be *minimised*: pass minus the rewards."""

import torch
from torch import Tensor

from .simplex import check_preferences


def linear(values: Tensor, preferences: Tensor) -> Tensor:
    """Σ_m ω_m f_m, [...].

    Args:
        values: f [..., M]. (It is linear: rewards to be maximised give the preferred mean reward.)
        preferences: ω [..., M] on the simplex.

    Raises:
        ValueError: shapes that disagree, preferences off the simplex.
    """
    _check(values, preferences, None, 1.0)
    return (preferences.to(values) * values).sum(-1)


def smooth_tchebycheff(values: Tensor, preferences: Tensor, ideal: Tensor, mu: float) -> Tensor:
    """μ log Σ_m exp(ω_m (f_m − z*_m) / μ), [...] (smooth Tchebycheff scalarisation, arXiv 2402.19078, section 3).

    It lies within μ log M above max_m ω_m (f_m − z*_m). For μ small enough its minimisers reach every Pareto optimal
    point, also where the front is not convex; those of the linear form do not.

    Args:
        values: f [..., M] to be minimised: for rewards, −r.
        preferences: ω [..., M] on the simplex.
        ideal: z* [..., M], at most the smallest f that is within reach (:class:`IdealPoint`): for rewards, −(the best).
        mu: μ > 0 in units of ω f. Small values approach the largest entry, whose gradient jumps; large ones the mean
            over the rewards, plus a constant.

    Raises:
        ValueError: shapes that disagree, preferences off the simplex, μ ≤ 0.
    """
    _check(values, preferences, ideal, mu)
    return mu * torch.logsumexp(preferences.to(values) * (values - ideal.to(values)) / mu, -1)


def tchebycheff_weights(values: Tensor, preferences: Tensor, ideal: Tensor, mu: float) -> Tensor:
    """ω̃_m ∝ ω_m softmax_m(ω (f − z*) / μ), of sum 1: the gradient of :func:`smooth_tchebycheff` by f, normalised.

    Used in place of ω in r̄ = Σ_m ω̃_m r_m (:func:`scalarise_advantages`), with f the smoothed mean values of a group
    of similar preferences (:class:`BucketMeans`). Rewards of ω_m = 0 keep 0, so a corner stays itself; large μ gives ω.
    A reward without a value (f_m or z*_m is NaN) has 0; where none has one, the result is NaN.

    Arguments and errors are those of :func:`smooth_tchebycheff`.
    """
    _check(values, preferences, ideal, mu)
    with torch.no_grad():
        omega = preferences.to(values).clamp_min(0)
        logits = omega * (values - ideal.to(values)) / mu
        # Rewards without a preference may lie far above and must not underflow the others.
        share = torch.where((omega > 0) & ~logits.isnan(), logits, -torch.inf).softmax(-1) * omega
        return share / share.sum(-1, keepdim=True)


def scalarise_advantages(advantages: Tensor, preferences: Tensor, adv_clip: float = 5.0) -> Tensor:
    """Ā_i = Σ_m ω_mi clip(A_mi, ±A_max), [1, B], for a loss of one reward (ParetoSlider, arXiv 2604.20816).

    A loss that is affine in r_m = clip(A_m, ±A_max) / (2 A_max) + 1/2, as DiffusionNFT's is, gives Σ_m ω_m loss_m this
    way, in one pass. Clipped before mixing: a reward that is clipped alone would weigh more. Rewards that do not apply
    to a sample (NaN) leave its ω, which is scaled to sum 1 again; where none is left, the result is NaN.

    Args:
        advantages: A [M, B].
        preferences: ω [B, M], one per sample, or ω̃ of :func:`tchebycheff_weights`.
        adv_clip: A_max of the loss.

    Raises:
        ValueError: shapes that disagree, preferences off the simplex, ``adv_clip`` ≤ 0.
    """
    if advantages.dim() != 2 or preferences.shape != advantages.mT.shape:
        raise ValueError(
            f"need advantages [M, B] and preferences [B, M], got {list(advantages.shape)} and {list(preferences.shape)}"
        )
    if not adv_clip > 0:
        raise ValueError(f"adv_clip must be positive, got {adv_clip}")
    check_preferences(preferences, len(advantages))
    valid = ~torch.isnan(advantages)
    omega = preferences.mT.to(advantages) * valid
    total = omega.sum(0)
    mixed = (omega * torch.where(valid, advantages, 0).clamp(-adv_clip, adv_clip)).sum(0)
    return torch.where(total > 0, mixed / total, torch.nan).unsqueeze(0)


def _check(values: Tensor, preferences: Tensor, ideal: Tensor | None, mu: float) -> None:
    size = values.shape[-1] if values.dim() else 0
    check_preferences(preferences, size)
    if ideal is not None and (ideal.dim() < 1 or ideal.shape[-1] != size):
        raise ValueError(f"ideal must be [..., {size}] as the values, got {list(ideal.shape)}")
    if not mu > 0:
        raise ValueError(f"mu must be positive, got {mu}")
