"""The anchor of Centered Reward Distillation: a pull towards the guided pretrained model (arXiv 2603.14128)."""

import torch
from torch import Tensor

from .checks import difference, mean_dims


def guided_velocity(conditional: Tensor, unconditional: Tensor, scale: float = 4.5) -> Tensor:
    """v^cfg = v(∅) + s (v(c) − v(∅)), without graph (classifier-free guidance, arXiv 2207.12598, section 3.2).

    Args:
        conditional: v(c) [B, ...] of the pretrained model under the prompt.
        unconditional: v(∅) [B, ...] under the empty prompt.
        scale: s; 1 is the conditional velocity, 4.5 what SD3.5-M is sampled with.

    Raises:
        ValueError: shapes that disagree.
    """
    if conditional.shape != unconditional.shape:
        raise ValueError(f"conditional has shape {list(conditional.shape)}, unconditional {list(unconditional.shape)}")
    conditional, unconditional = conditional.detach(), unconditional.detach()
    return unconditional + scale * (conditional - unconditional)


def kl_anchor(
    prediction: Tensor, guided_reference: Tensor, *, strength: float | Tensor = 0.1, samples: int | None = None
) -> Tensor:
    """The anchor to the CFG-guided pretrained model (arXiv 2603.14128, section 3), a loss that no reward owns:

        Σ_i strength_i · KL_i / n,      KL_i = mean_dims (v_θ,i − v^cfg_ref,i)²

    For ``shared=`` of :meth:`marble_opt.Marble.backward` or of :class:`marble_opt.SeparableLoss`.

    Args:
        prediction: v_θ [B, ...], with graph.
        guided_reference: v^cfg_ref [B, ...] of :func:`guided_velocity`; used without graph.
        strength: one number, or one per sample [B] (:func:`adaptive_strength`); used without graph.
        samples: n, the samples of the whole optimizer step that it is averaged over; default: B.

    Returns:
        A scalar with graph, at least fp32.

    Raises:
        ValueError: shapes that disagree, ``samples`` below B; on a CPU also a negative or non-finite strength.
    """
    if prediction.dim() < 2 or guided_reference.shape != prediction.shape:
        raise ValueError(
            f"need prediction and guided_reference [B, ...] of one shape, got {list(prediction.shape)} and "
            f"{list(guided_reference.shape)}"
        )
    batch = len(prediction)
    if samples is not None and samples < batch:
        raise ValueError(f"samples counts the whole optimizer step, at least the {batch} of this batch, got {samples}")
    weight = strength.detach() if isinstance(strength, Tensor) else torch.tensor(strength, dtype=torch.float64)
    if weight.shape not in ((), (batch,)):
        raise ValueError(f"strength must be one number or [{batch}], one per sample, got {list(weight.shape)}")
    if weight.device.type == "cpu" and not ((weight >= 0) & (weight < torch.inf)).all():
        raise ValueError(f"strength must be finite and not negative, got {weight.tolist()}")
    square = mean_dims(difference(prediction, guided_reference.detach()).square())
    return (weight.to(square.device, square.dtype) * square).sum() / (samples or batch)


def adaptive_strength(u: Tensor, low: float = 1e-4, high: float = 0.1) -> Tensor:
    """strength_i = (1 − u_i) · low + u_i · high (arXiv 2603.14128, section 3): weak early, while rewards are low,
    and strong late.

    Args:
        u: [B] within [0, 1]: the raw reward, where it lies there, or the normalised advantage
            ρ = clip(A, ±A_max) / (2 A_max) + 1/2, which has no trend and anchors good images more than bad ones. With
            several rewards take one number per sample, such as the mean over those that apply (``nanmean(0)``).
        low, high: the strengths at 0 and 1.

    Raises:
        ValueError: 0 ≤ low ≤ high < inf does not hold; on a CPU also values outside [0, 1] or NaN.
    """
    if not 0 <= low <= high < float("inf"):
        raise ValueError(f"need 0 <= low <= high, both finite, got low={low} and high={high}")
    if u.device.type == "cpu" and not ((u >= 0) & (u <= 1)).all():
        raise ValueError(
            f"u must be within [0, 1], got values from {u.min().item():g} to {u.max().item():g}: use the raw reward "
            "only if it lies there, else the normalised advantage"
        )
    return torch.lerp(torch.full_like(u, low), torch.full_like(u, high), u)
