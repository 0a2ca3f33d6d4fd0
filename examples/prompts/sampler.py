"""Which prompts an epoch trains on, which samples a rank makes, and each sample's noise: pure functions."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from .prompt import Prompt


def choose(
    sources: Mapping[str, Sequence[Prompt]], weights: Mapping[str, float], count: int, seed: int, epoch: int
) -> list[Prompt]:
    """The ``count`` prompts of an epoch, source by source in the order of ``sources``.

    Each source gets :func:`shares` of them, drawn without repetition; one that has fewer prompts than its share is
    gone through as often as needed. Equal arguments give an equal list: ranks agree, and a resumed run repeats it.

    Args:
        sources: prompts by source.
        weights: a number ≥ 0 for each source; 0 leaves it out.
        count: prompts per epoch, at least 1.
        seed, epoch: whole numbers ≥ 0.

    Raises ``ValueError``: names of sources and weights that differ, a source without prompts, numbers out of range.
    """
    if set(sources) != set(weights):
        raise ValueError(f"sources and weights must have the same names, got {list(sources)} and {list(weights)}")
    if seed < 0 or epoch < 0:
        raise ValueError(f"seed and epoch must be whole numbers >= 0, got {seed} and {epoch}")
    counts = shares({name: weights[name] for name in sources}, count, epoch)
    rng = np.random.default_rng((seed, epoch))
    chosen: list[Prompt] = []
    for name, wanted in counts.items():
        if weights[name] == 0:
            continue
        prompts = sources[name]
        if not prompts:
            raise ValueError(f"the source {name!r} holds no prompts: set its weight to 0, or give it some")
        while wanted > 0:
            drawn = min(wanted, len(prompts))
            chosen += [prompts[i] for i in rng.choice(len(prompts), drawn, replace=False)]
            wanted -= drawn
    return chosen


def shares(weights: Mapping[str, float], count: int, epoch: int) -> dict[str, int]:
    """How many of an epoch's ``count`` prompts each source gets; they add up to ``count``.

    With the quota q_s = count · w_s / Σ w it is q_s rounded down or up. The remainders f_s = q_s − ⌊q_s⌋ lie one after
    the other on a line, C_s their sum up to s; source s gets ⌊C_s + u⌋ − ⌊C_{s−1} + u⌋ more, where u goes through the D
    multiples of 1/D, D the common denominator of the f_s, in an order that spreads them. So after every D epochs the
    shares are exact (weights are read as decimal fractions), and before they are off by a few prompts at most.

    Raises ``ValueError``: a weight that is negative or not finite, no positive weight, ``count`` < 1.
    """
    wrong = {name: weight for name, weight in weights.items() if not (math.isfinite(weight) and weight >= 0)}
    if wrong or not any(weights.values()):
        raise ValueError(f"weights must be finite numbers >= 0, one of them positive, got {dict(weights)}")
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    exact = {name: Fraction(repr(float(weight))) for name, weight in weights.items()}
    total = sum(exact.values())
    quotas = {name: count * weight / total for name, weight in exact.items()}
    period = math.lcm(*(quota.denominator for quota in quotas.values()))
    # In units of 1 / period, so that nothing is rounded.
    position = epoch * _stride(period) % period
    counts = {}
    for name, quota in quotas.items():
        start, position = position, position + int(quota % 1 * period)
        counts[name] = math.floor(quota) + position // period - start // period
    return counts


def _stride(period: int) -> int:
    """The number prime to ``period`` that is next to its golden section: its multiples spread evenly modulo it."""
    golden = period * 618034 // 1000000
    return next(golden + k for k in range(period + 1) if math.gcd(golden + k, period) == 1)


def rank_slice(prompts: int, images: int, rank: int, ranks: int) -> list[tuple[int, int]]:
    """The samples (index of the prompt, index of the image) that ``rank`` of ``ranks`` makes.

    All prompts × images samples in the order of prompts, cut into equal runs: a prompt's images are on one rank unless
    a cut falls among them.

    Raises ``ValueError`` where they cannot be divided by ``ranks``, with the nearest numbers of prompts that can.
    """
    if min(prompts, images, ranks) < 1 or not 0 <= rank < ranks:
        raise ValueError(
            f"prompts, images and ranks must be at least 1 and 0 <= rank < ranks, got {prompts=}, {images=}, "
            f"{rank=}, {ranks=}"
        )
    size, rest = divmod(prompts * images, ranks)
    if rest:
        step = ranks // math.gcd(images, ranks)
        below = prompts // step * step
        nearest = (below, below + step) if below else (step, 2 * step)
        raise ValueError(
            f"{prompts} prompts x {images} images cannot be divided by {ranks} ranks: "
            f"take {nearest[0]} or {nearest[1]} prompts"
        )
    return [divmod(sample, images) for sample in range(rank * size, (rank + 1) * size)]


def sample_seed(seed: int, epoch: int, prompt: int, image: int, purpose: str) -> int:
    """A seed in [0, 2^63) for one sample and ``purpose`` ("rollout", "training noise 3", ...).

    A hash of what the sample is, whichever rank makes it and in whichever batch; equal on all machines.
    """
    identity = json.dumps([int(seed), int(epoch), int(prompt), int(image), purpose])
    return int.from_bytes(hashlib.sha256(identity.encode()).digest()[:8], "big") >> 1


def noise(seeds: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Standard normal noise [B, *shape], float32 on the CPU; sample i is a function of ``seeds[i]`` alone."""
    values = torch.empty(len(seeds), *shape)
    generator = torch.Generator()
    for value, seed in zip(values, seeds, strict=True):
        # Seeding makes the generator as new.
        value.normal_(generator=generator.manual_seed(seed))
    return values
