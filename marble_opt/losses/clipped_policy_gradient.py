"""The clipped policy gradient of PPO and GRPO, one loss per reward."""

import torch
from torch import Tensor

from ..separable import SeparableLoss
from .checks import check_batch, normalisers


def clipped_policy_gradient(
    prediction: Tensor,
    log_prob: Tensor,
    old_log_prob: Tensor,
    advantages: Tensor,
    *,
    clip_range: float,
    adv_clip: float = 5.0,
    counts: Tensor | None = None,
) -> SeparableLoss:
    """PPO's clipped objective (arXiv 1707.06347, section 3) with group-relative advantages, as Flow-GRPO (arXiv
    2505.05470, section 4) applies it to one denoising step, sampled as an SDE:

        ρ_i = exp(log π(x_{t−1} | x_t)_i − log π_old(x_{t−1} | x_t)_i)
        loss_k = −Σ_i min(ρ_i A_ki, clip(ρ_i, 1 − ε, 1 + ε) A_ki) / n_k   over the samples to which k applies

    The minimum takes its clipped, constant branch where A_ki > 0 and ρ_i > 1 + ε, or A_ki < 0 and ρ_i < 1 − ε. So the
    term is ρ_i (M = 1) with the weight −A_ki / n_k, or 0 where the clip is active. Gradients are exactly those of
    ``loss_k``; values differ by what is constant in the clipped branch.

    Args:
        prediction: the model's output [B, ...], with graph, that ``log_prob`` was computed from.
        log_prob: log π of each sample's step [B], with graph.
        old_log_prob: the same under the policy that made the rollouts [B].
        advantages: A [K, B]; NaN: reward k does not apply to sample i.
        clip_range: ε in (0, 1).
        adv_clip: advantages are clipped to ±A_max.
        counts: n_k [K] of the whole optimizer step; default: the valid samples of this batch.

    Raises:
        ValueError: shapes that disagree, a log-probability per element instead of per sample, settings out of range.
    """
    check_batch(prediction, advantages)
    for name, tensor in (("log_prob", log_prob), ("old_log_prob", old_log_prob)):
        if tensor.shape != prediction.shape[:1]:
            raise ValueError(
                f"{name} must be [{len(prediction)}], one number per sample, got {list(tensor.shape)}: reduce it over "
                "the other dimensions"
            )
    if not 0 < clip_range < 1 or not adv_clip > 0:
        raise ValueError(f"clip_range must be within (0, 1) and adv_clip positive, got {clip_range} and {adv_clip}")
    ratio = (log_prob - old_log_prob.detach()).exp()
    valid = ~torch.isnan(advantages)
    clipped = torch.where(valid, advantages, 0).clamp(-adv_clip, adv_clip)
    with torch.no_grad():
        stopped = ((clipped > 0) & (ratio > 1 + clip_range)) | ((clipped < 0) & (ratio < 1 - clip_range))
    weights = torch.where(stopped, 0, -clipped) / normalisers(valid, counts)
    return SeparableLoss(prediction, ratio.unsqueeze(0), weights.unsqueeze(0))
