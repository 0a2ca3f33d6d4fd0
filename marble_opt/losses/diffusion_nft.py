"""DiffusionNFT (arXiv 2509.16117), one loss per reward."""

import torch
from torch import Tensor

from ..separable import SeparableLoss
from .checks import check_batch, mean_dims, normalisers

ANCHORS = ("per_reward", "shared")
_SMALLEST_WEIGHT = 1e-5


def diffusion_nft(
    prediction: Tensor,
    old_prediction: Tensor,
    x_t: Tensor,
    x_0: Tensor,
    t: Tensor,
    advantages: Tensor,
    *,
    beta: float,
    adv_clip: float = 5.0,
    counts: Tensor | None = None,
    anchor: str = "per_reward",
    samples: int | None = None,
) -> SeparableLoss:
    """DiffusionNFT's contrast of an implicit positive and negative policy (arXiv 2509.16117, section 3.2), with
    x_t = (1 − t) x_0 + t ε and velocity v = ε − x_0:

        v⁺ = β v + (1 − β) v_old        v⁻ = (1 + β) v_old − β v        x̂± = x_t − t v±
        L±_i = mean_dims (x̂± − x_0)² / w±_i,   w±_i = sg max(mean_dims |x̂± − x_0|, 1e-5), in fp64
        r_ki = clip(A_ki, ±A_max) / (2 A_max) + 1/2
        loss_k = (A_max / β) Σ_i [r_ki L⁺_i + (1 − r_ki) L⁻_i] / n_k   over the samples to which k applies

    Args:
        prediction: v [B, ...], with graph.
        old_prediction: v_old [B, ...] of the policy that made the rollouts, without graph.
        x_t, x_0: noised and clean latents [B, ...].
        t: times [B] in [0, 1] (the scheduler's timestep / 1000).
        advantages: A [K, B]; NaN: reward k does not apply to sample i. Clipped per reward, before any mixing.
        beta: β > 0, the strength of the guidance; smaller values trust the old policy's neighbourhood less.
        adv_clip: A_max.
        counts: n_k [K], the samples to which k applies in the whole optimizer step (all micro-batches, all ranks
            with ``Marble(reduction="sum")``); default: in this batch.
        anchor: r L⁺ + (1 − r) L⁻ = (r − ½)(L⁺ − L⁻) + ½ (L⁺ + L⁻). ``"per_reward"``, the paper's form, has both
            parts in every reward's loss (M = 2); ``"shared"`` leaves the second part, which no reward owns, out of the
            balance and makes it the shared term (M = 1).
        samples: with a shared anchor, the samples of the whole step that it is averaged over; default: this batch.

    Raises:
        ValueError: shapes that disagree, times outside [0, 1], β ≤ 0, an unknown anchor.
    """
    check_batch(prediction, advantages, old_prediction=old_prediction, x_t=x_t, x_0=x_0)
    if t.shape != prediction.shape[:1] or not ((t >= 0) & (t <= 1)).all():
        raise ValueError(f"t must be [{len(prediction)}] within [0, 1] (timestep / 1000), got {t.tolist()}")
    if not beta > 0 or not adv_clip > 0:
        raise ValueError(f"beta and adv_clip must be positive, got {beta} and {adv_clip}")
    if anchor not in ANCHORS:
        raise ValueError(f"anchor must be one of {ANCHORS}, got {anchor!r}")
    old = old_prediction.detach()
    time = t.to(prediction.dtype).view(-1, *[1] * (prediction.dim() - 1))
    # x̂± − x_0 around the old policy's, so that at v = v_old both are the same bit for bit and the anchor's gradient is
    # exactly zero. Rounding noise instead would be a reward's whole gradient where its advantages are all zero, and
    # would be scaled up to the size of the others.
    error, shift = x_t - time * old - x_0, time * beta * (prediction - old)
    positive, negative = _matching(error - shift), _matching(error + shift)
    valid = ~torch.isnan(advantages)
    r = torch.where(valid, advantages, 0).clamp(-adv_clip, adv_clip) / (2 * adv_clip) + 0.5
    scale = valid.to(r.dtype) * (adv_clip / beta) / normalisers(valid, counts)
    if anchor == "per_reward":
        # Contrast and anchor instead of L⁺ and L⁻, whose gradients nearly cancel and never vanish alone.
        terms = torch.stack([positive - negative, positive + negative])
        return SeparableLoss(prediction, terms, torch.stack([(r - 0.5) * scale, 0.5 * scale]))
    used = valid.any(0)
    pull = (adv_clip / beta) * (used * (positive + negative)).sum() / (2 * (samples or max(int(used.sum()), 1)))
    return SeparableLoss(prediction, (positive - negative).unsqueeze(0), ((r - 0.5) * scale).unsqueeze(0), shared=pull)


def _matching(error: Tensor) -> Tensor:
    """mean_dims e² / sg max(mean_dims |e|, 1e-5) of e = x̂ − x_0, [B]."""
    with torch.no_grad():
        size = mean_dims(error.double().abs()).clamp_min(_SMALLEST_WEIGHT)
    return mean_dims(error.square()) / size.to(error.dtype)
