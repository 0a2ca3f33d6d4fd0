"""Group-relative advantages per reward."""

from typing import Literal, NamedTuple, overload

import torch
from torch import Tensor

STD_EPSILON = 1e-4


class DegenerateGroups(NamedTuple):
    """Per reward, [K]: prompts with a single valid sample, and prompts whose valid samples all score the same."""

    single: Tensor
    equal: Tensor


@overload
def group_advantages(
    rewards: Tensor,
    prompt_ids: Tensor,
    *,
    std: str = ...,
    epsilon: float = ...,
    sentinel: float | None = ...,
    with_counts: Literal[False] = ...,
) -> Tensor: ...


@overload
def group_advantages(
    rewards: Tensor,
    prompt_ids: Tensor,
    *,
    std: str = ...,
    epsilon: float = ...,
    sentinel: float | None = ...,
    with_counts: Literal[True],
) -> tuple[Tensor, DegenerateGroups]: ...


def group_advantages(
    rewards: Tensor,
    prompt_ids: Tensor,
    *,
    std: str = "group",
    epsilon: float = STD_EPSILON,
    sentinel: float | None = None,
    with_counts: bool = False,
) -> Tensor | tuple[Tensor, DegenerateGroups]:
    """Advantages A[k, i] = (R[k, i] − mean) / (std + ε) within the samples of one prompt (GRPO, arXiv 2402.03300,
    section 4.1; per reward as in MARBLE, arXiv 2605.06507).

    Args:
        rewards: scores [K, B]; NaN: this reward does not apply to this sample.
        prompt_ids: integers [B], equal for the samples of one prompt. Under several ranks gather both first.
        std: ``"group"`` divides by the (population) std of the prompt's own samples, ``"global"`` by that of all valid
            samples of the reward, which gives prompts of little spread less weight.
        epsilon: added to the std, in units of the reward.
        sentinel: a score that also means "does not apply" (GenEval loops use −10).
        with_counts: also return :class:`DegenerateGroups`.

    Returns:
        Advantages [K, B] in the dtype of ``rewards`` (the default dtype for integers), NaN where the reward does
        not apply. A group of one sample or of zero spread has 0: it carries no signal.

    Raises:
        ValueError: shapes that disagree, infinite scores, an unknown ``std``.
    """
    if rewards.dim() != 2 or prompt_ids.shape != rewards.shape[1:]:
        raise ValueError(
            f"need rewards [K, B] and prompt_ids [B], got {list(rewards.shape)} and {list(prompt_ids.shape)}"
        )
    if std not in ("group", "global"):
        raise ValueError(f"std must be 'group' or 'global', got {std!r}")
    if torch.isinf(rewards).any():
        raise ValueError("rewards hold inf: use NaN for a reward that does not apply")
    valid = ~torch.isnan(rewards)
    if sentinel is not None:
        valid &= rewards != sentinel
    scores = torch.where(valid, rewards, 0).double()
    _, group = prompt_ids.unique(return_inverse=True)
    groups = int(group.max()) + 1 if group.numel() else 0
    index = group.expand_as(rewards)
    zeros = scores.new_zeros(len(rewards), groups)
    count = zeros.scatter_add(1, index, valid.double())
    mean = zeros.scatter_add(1, index, scores) / count.clamp_min(1)
    centred = torch.where(valid, scores - mean.gather(1, index), 0)
    high = zeros.scatter_reduce(1, index, torch.where(valid, scores, -torch.inf), "amax", include_self=False)
    low = zeros.scatter_reduce(1, index, torch.where(valid, scores, torch.inf), "amin", include_self=False)
    equal = (count > 1) & (high == low)
    if std == "group":
        spread = (zeros.scatter_add(1, index, centred.square()) / count.clamp_min(1)).sqrt().gather(1, index)
    else:
        total = valid.sum(1, keepdim=True).clamp_min(1)
        overall = scores.sum(1, keepdim=True) / total
        spread = (torch.where(valid, scores - overall, 0).square().sum(1, keepdim=True) / total).sqrt()
    flat = (equal | (count <= 1)).gather(1, index)
    advantages = torch.where(flat, 0, centred / (spread + epsilon))
    dtype = rewards.dtype if rewards.is_floating_point() else torch.get_default_dtype()
    advantages = torch.where(valid, advantages, torch.nan).to(dtype)
    if not with_counts:
        return advantages
    return advantages, DegenerateGroups(single=(count == 1).sum(1), equal=equal.sum(1))
