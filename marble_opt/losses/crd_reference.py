"""The slow twin of :func:`marble_opt.losses.crd`: the paper's formulas, one reward and one image at a time."""

import torch
from torch import Tensor

from .checks import check_batch, normalisers
from .crd import check_crd


def crd_reference(
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
) -> Tensor:
    """The K losses [K] of Centered Reward Distillation (arXiv 2603.14128, section 3) as an ordinary graph.

    Arguments and formulas are those of :func:`marble_opt.losses.crd`, on one process: gradients and values agree to
    rounding. Takes O(K B²) host operations; for tests and for reading.
    """
    check_batch(prediction, advantages, old_prediction=old_prediction, velocity=velocity)
    check_crd(prediction, prompt_ids, beta, adv_clip, weighting, temperature, form)
    valid = ~torch.isnan(advantages)
    n = normalisers(valid, counts)
    v, v_old = velocity, old_prediction.detach()

    def D(v_m: Tensor, i: int) -> Tensor:
        square = (v_m[i] - v[i]).square().mean()
        size = (v_m[i] - v[i]).detach().double().abs().mean().clamp_min(1e-5)
        return square / size if self_normalize else square

    r = [-(D(prediction, i) - D(v_old, i)) for i in range(len(prediction))]
    losses = []
    for k, A in enumerate(advantages):
        loss = prediction.new_zeros(())
        rho = (A.clamp(-adv_clip, adv_clip) / (2 * adv_clip) + 0.5).clamp(0, 1)
        for i in valid[k].nonzero().flatten().tolist():
            group = [j for j in valid[k].nonzero().flatten().tolist() if prompt_ids[j] == prompt_ids[i]]
            w = torch.full((len(group),), 1 / len(group), dtype=rho.dtype)
            if weighting == "temperature":
                w = (torch.softmax(rho[group] / temperature, 0) + torch.softmax(-rho[group] / temperature, 0)) / 2
            rho_c = rho[i] - (w * rho[group]).sum()
            r_c = r[i] - (w * torch.stack([r[j] for j in group])).sum().detach()
            if form == "mse":
                loss = loss + (beta * r_c - rho_c).square() / n[k, 0]
            else:
                p, q = torch.sigmoid(beta * r_c), torch.sigmoid(rho_c)
                loss = loss - (q * p.log() + (1 - q) * (1 - p).log()) / n[k, 0]
        losses.append(loss * adv_clip / beta)
    return torch.stack(losses)
