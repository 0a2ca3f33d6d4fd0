"""Advantage-weighted flow matching (arXiv 2509.25050), one loss per reward."""

import torch
from torch import Tensor

from ..separable import SeparableLoss
from .checks import check_batch, mean_dims, normalisers


def weighted_matching(
    prediction: Tensor,
    target: Tensor,
    advantages: Tensor,
    *,
    adv_clip: float = 5.0,
    counts: Tensor | None = None,
) -> SeparableLoss:
    """Flow matching weighted by advantages (Advantage Weighted Matching, arXiv 2509.25050, section 4):

        loss_k = Σ_i clip(A_ki, ±A_max) · mean_dims (v_i − target_i)² / n_k   over the samples to which k applies

    A negative advantage pushes the prediction away from its sample without bound: combine with a KL term.

    Args:
        prediction: v [B, ...], with graph.
        target: ε − x_0 [B, ...].
        advantages: A [K, B]; NaN: reward k does not apply to sample i.
        adv_clip: A_max.
        counts: n_k [K] of the whole optimizer step; default: the valid samples of this batch.

    Raises:
        ValueError: shapes that disagree, ``adv_clip`` ≤ 0.
    """
    check_batch(prediction, advantages, target=target)
    if not adv_clip > 0:
        raise ValueError(f"adv_clip must be positive, got {adv_clip}")
    valid = ~torch.isnan(advantages)
    weights = torch.where(valid, advantages, 0).clamp(-adv_clip, adv_clip) / normalisers(valid, counts)
    return SeparableLoss(prediction, mean_dims((prediction - target).square()).unsqueeze(0), weights.unsqueeze(0))
