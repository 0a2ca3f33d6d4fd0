"""Centered Reward Distillation (arXiv 2603.14128), one loss per reward."""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional

from ..separable import SeparableLoss
from .checks import check_batch, difference, mean_dims, normalisers
from .within_prompt import centre_within_prompts

WEIGHTINGS = ("uniform", "temperature")
FORMS = ("mse", "bce")
_SMALLEST_WEIGHT = 1e-5


def crd(
    prediction: Tensor,
    old_prediction: Tensor,
    velocity: Tensor,
    advantages: Tensor,
    prompt_ids: Tensor,
    *,
    beta: float = 1.0,
    adv_clip: float = 5.0,
    counts: Tensor | None = None,
    self_normalize: bool = True,
    weighting: str = "uniform",
    temperature: float = 1.0,
    form: str = "mse",
    process_group: dist.ProcessGroup | None = None,
    across_ranks: bool = True,
) -> SeparableLoss:
    """Regression of the model's implicit reward on the external one, both centred within prompts (Centered Reward
    Distillation, arXiv 2603.14128, section 3). The KL-regularised optimum has R(x, c) = β log(π*/π_old) + β log Z(c);
    subtracting the mean over a prompt's images cancels log Z.

        D_m(i) = mean_dims (v_m − v)² / sg max(mean_dims |v_m − v|, 1e-5)         m ∈ {θ, old}, the weight in fp64
        r_i    = −(D_θ(i) − D_old(i))                                             the implicit reward
        ρ_ki   = clip(A_ki, ±A_max) / (2 A_max) + 1/2
        ρ^c_ki = ρ_ki − Σ_j w_kj ρ_kj        r^c_ki = r_i − sg Σ_j w_kj r_j        over the images j of i's prompt
        mse:     loss_k = (A_max/β) Σ_i (β r^c_ki − ρ^c_ki)² / n_k
        bce:     loss_k = (A_max/β) Σ_i H(σ(ρ^c_ki), σ(β r^c_ki)) / n_k,   H(q, p) = −q log p − (1 − q) log(1 − p)

    both over the samples to which k applies. ``bce`` is the logistic form: σ(ρ^c) is the probability with which image i
    beats its prompt's mean under a Bradley-Terry model of the rewards, σ(β r^c) that of the policies' ratio. Both
    have their minimum where β r^c = ρ^c. Near it the gradient of ``bce`` is an eighth of that of ``mse``; far from it
    an image of ``bce`` pulls with A_max / n_k at most.

    All K losses depend on the parameters through r alone, so at the current point their gradients are those of one term
    (M = 1) with the weights 2 A_max (β r^c − ρ^c) / n_k, or A_max (σ(β r^c) − σ(ρ^c)) / n_k. ``losses()`` has the
    losses' values as well.

    Adding a number per prompt to the advantages (or to r) changes no gradient, as long as no advantage is clipped. The
    same holds for raw rewards where the spread that divides them stays: with ``group_advantages(std="group")``.

    Args:
        prediction: v_θ [B, ...], with graph.
        old_prediction: v_old [B, ...], without graph: the denominator of the policies' ratio, at the same x_t and t.
        velocity: v = ε − x_0 [B, ...].
        advantages: A [K, B]; NaN: reward k does not apply to sample i, which then is in no mean of k either.
        prompt_ids: integers [B], equal for the images of one prompt and with one meaning on all ranks. Images are
            centred with those of their prompt in this call, on all ranks: let a micro-step hold whole prompts, at one t
            per prompt. An image that is alone has no gradient.
        beta: β > 0. Larger values ask for a smaller implicit reward, so the policy stays closer to the old one.
        adv_clip: A_max.
        counts: n_k [K], the samples to which k applies in the whole optimizer step (all micro-batches, all ranks
            with ``Marble(reduction="sum")``); default: in this batch.
        self_normalize: off, D is the plain mean square: images and times of a large error then count for more.
        weighting: ``"uniform"``, or ``"temperature"``: w = ½ softmax(ρ_k / τ) + ½ softmax(−ρ_k / τ), which centres
            between the best and the worst images. (One loss per sign and their average has the same ``mse`` gradients.)
        temperature: τ in units of ρ, whose range is 1; large values give uniform weights.
        form: ``"mse"`` or ``"bce"``.
        process_group: the ranks over which the images of a prompt may be spread; default: all. Every rank then calls
            this equally often, with any prompts and any number of them: two small collectives, K + 2 numbers per image.
        across_ranks: off where each rank holds whole prompts: nothing is sent.

    Raises:
        ValueError: shapes that disagree, ids that are not integers, settings out of range or unknown.
    """
    check_batch(prediction, advantages, old_prediction=old_prediction, velocity=velocity)
    check_crd(prediction, prompt_ids, beta, adv_clip, weighting, temperature, form)
    valid = ~torch.isnan(advantages)
    ratings = advantages.double().clamp(-adv_clip, adv_clip) / (2 * adv_clip) + 0.5
    old = _mismatch(old_prediction.detach(), velocity, self_normalize)
    implicit = old - _mismatch(prediction, velocity, self_normalize)
    used = temperature if weighting == "temperature" else None
    with torch.no_grad():
        target, centred = centre_within_prompts(ratings, implicit, prompt_ids, used, process_group, across_ranks)
        logits, scale = beta * centred, valid / normalisers(valid, counts).double()
        if form == "mse":
            slope, value = 2 * (logits - target), (logits - target).square() / beta
        else:
            slope = torch.sigmoid(logits) - torch.sigmoid(target)
            value = (functional.softplus(logits) - torch.sigmoid(target) * logits) / beta
        # A sample that is not finite shows in its own term; the weights of its prompt stay numbers.
        weights = adv_clip * scale * torch.where(slope.isfinite(), slope, 1.0)
        values = adv_clip * (torch.where(valid, value, 0.0) * scale).sum(1)
    dtype = implicit.dtype
    return SeparableLoss(prediction, implicit.unsqueeze(0), weights.to(dtype).unsqueeze(0), values=values.to(dtype))


def check_crd(
    prediction: Tensor,
    prompt_ids: Tensor,
    beta: float,
    adv_clip: float,
    weighting: str,
    temperature: float,
    form: str,
) -> None:
    """Raise ``ValueError`` for ids or settings that :func:`crd` cannot take."""
    if prompt_ids.shape != prediction.shape[:1] or prompt_ids.is_floating_point() or prompt_ids.is_complex():
        raise ValueError(
            f"prompt_ids must be [{len(prediction)}] integers, one per sample, got {prompt_ids.dtype} "
            f"{list(prompt_ids.shape)}"
        )
    if not beta > 0 or not adv_clip > 0 or not temperature > 0:
        raise ValueError(f"beta, adv_clip and temperature must be positive, got {beta}, {adv_clip} and {temperature}")
    if weighting not in WEIGHTINGS or form not in FORMS:
        raise ValueError(f"weighting must be one of {WEIGHTINGS} and form of {FORMS}, got {weighting!r} and {form!r}")


def _mismatch(prediction: Tensor, velocity: Tensor, self_normalize: bool) -> Tensor:
    """D [B], at least fp32."""
    error = difference(prediction, velocity)
    square = mean_dims(error.square())
    if not self_normalize:
        return square
    with torch.no_grad():
        size = mean_dims(error.double().abs()).clamp_min(_SMALLEST_WEIGHT)
    return square / size.to(square.dtype)
