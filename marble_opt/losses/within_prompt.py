"""Centring within prompts, over all ranks that hold images of a prompt."""

import torch
import torch.distributed as dist
from torch import Tensor

from ..ranks import world_size


def centre_within_prompts(
    ratings: Tensor,
    implicit: Tensor,
    prompt_ids: Tensor,
    temperature: float | None = None,
    process_group: dist.ProcessGroup | None = None,
    across_ranks: bool = True,
) -> tuple[Tensor, Tensor]:
    """Subtract from each image the weighted means over the images of its prompt, in fp64:

        ρ^c_ki = ρ_ki − Σ_j w_kj ρ_kj        r^c_ki = r_i − Σ_j w_kj r_j        Σ_j w_kj = 1

    over the images j of i's prompt to which reward k applies, on whatever rank they are. A sum over j runs in the order
    (rank, position), without atomics: the result is the same bit for bit in every run. It is computed as
    Σ_j w_kj (ρ_ki − ρ_kj), so that equal images are centred to exactly zero.

    One image is K + 2 numbers of eight bytes. Ranks exchange images, not sums per prompt: these would be more numbers
    (3 K per prompt and rank, and the prompts of each rank), and a softmax over a prompt would need another round.

    Args:
        ratings: ρ [K, B], NaN where reward k does not apply to image i.
        implicit: r [B].
        prompt_ids: integers [B], with one meaning on all ranks.
        temperature: τ of the weights ½ softmax(ρ / τ) + ½ softmax(−ρ / τ); ``None`` for uniform ones.
        process_group: ranks that images are collected from: two collectives, the first of one number per rank.
        across_ranks: off, only this rank's images count and nothing is sent.

    Returns:
        ρ^c and r^c, both [K, B], zero where the reward does not apply.
    """
    ratings, implicit, prompt_ids = ratings.double(), implicit.double(), prompt_ids.to(implicit.device, torch.int64)
    ids, values, rows = prompt_ids, implicit, ratings
    if across_ranks and world_size(process_group) > 1:
        ids, values, rows = _collect(prompt_ids, implicit, ratings, process_group)
    together = prompt_ids.unsqueeze(1) == ids
    apart = implicit.unsqueeze(1) - values
    centred, centred_implicit = torch.zeros_like(ratings), torch.zeros_like(ratings)
    # One reward at a time: [B, N] is the largest that is held.
    for k, (own, others) in enumerate(zip(ratings, rows, strict=True)):
        counted = together & ~others.isnan() & ~own.isnan().unsqueeze(1)
        weights = _weights(others, counted, temperature)
        centred[k] = (weights * torch.where(counted, own.unsqueeze(1) - others, 0.0)).sum(1)
        centred_implicit[k] = (weights * torch.where(counted, apart, 0.0)).sum(1)
    return centred, centred_implicit


def _weights(ratings: Tensor, counted: Tensor, temperature: float | None) -> Tensor:
    """w_ij [B, N], each row zero or of sum one."""
    if temperature is None:
        share = counted.to(ratings.dtype)
        return share / share.sum(1, keepdim=True).clamp_min(1)
    scaled = ratings / temperature
    sides = [torch.where(counted, sign * scaled, -torch.inf).softmax(1) for sign in (1, -1)]
    return torch.where(counted, (sides[0] + sides[1]) / 2, 0.0)


def _collect(
    prompt_ids: Tensor, implicit: Tensor, ratings: Tensor, group: dist.ProcessGroup | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The images of all ranks in the order of ranks: ids [N], r [N] and ρ [K, N]."""
    ranks, own = world_size(group), len(prompt_ids)
    mine = torch.tensor([own, len(ratings)], device=prompt_ids.device)
    sizes = [torch.empty_like(mine) for _ in range(ranks)]
    dist.all_gather(sizes, mine, group=group)
    counts = torch.stack(sizes).tolist()
    if any(rewards != len(ratings) for _, rewards in counts):
        raise ValueError(f"the ranks have different numbers of rewards, {[rewards for _, rewards in counts]}")
    # Bits of fp64 travel as integers, beside the ids.
    packed = prompt_ids.new_zeros(max(count for count, _ in counts), len(ratings) + 2)
    packed[:own, 0] = prompt_ids
    packed[:own, 1:] = torch.cat([implicit.unsqueeze(0), ratings]).T.contiguous().view(torch.int64)
    received = [torch.empty_like(packed) for _ in range(ranks)]
    dist.all_gather(received, packed, group=group)
    every = torch.cat([part[:count] for part, (count, _) in zip(received, counts, strict=True)])
    numbers = every[:, 1:].T.contiguous().view(torch.float64)
    return every[:, 0], numbers[0], numbers[1:]
