"""Random preference vectors that every rank, platform and restart draws alike."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import count, pairwise

import torch
from torch import Tensor

KINDS = ("vertex", "edge", "interior")
_BITS = 53
_UNIT = 2.0**-_BITS


class PreferenceSampler:
    """ω [M] for an image group, a pure function of (seed, epoch, prompt, slot) (ParetoSlider, arXiv 2604.20816).

    vertex    one-hot, each reward equally often
    edge      Dirichlet on two rewards, each pair equally often
    interior  Dirichlet on all M

    No generator has a state: calls in any order, on any rank, after any restart give the same numbers. All bits come
    from SHA-256, and Dirichlet vectors of whole-number concentration are sums of gaps between uniform numbers on a grid
    of 2⁻⁵³ (Devroye 1986, chapter V.2), which fp64 adds without rounding: the result is the same on every platform, and
    its sum is exactly 1.

    Args:
        size: M.
        seed: of the run.
        slots: groups per prompt, each with an ω of its own (the paper: 3 of 8 images).
        mixture: kind → share of the draws. Default: the paper's, 10 % vertex and 90 % interior for M = 2, 50 % vertex,
            35 % edge and 15 % interior for M ≥ 3. Without vertices the ends of a slider are never trained.
        concentration: of the Dirichlet, a whole number; 1 is uniform, larger ones keep away from the boundary.

    Raises:
        ValueError: a number out of range, an unknown kind, shares that do not sum to 1.
    """

    def __init__(
        self,
        size: int,
        *,
        seed: int = 0,
        slots: int = 3,
        mixture: Mapping[str, float] | None = None,
        concentration: int = 1,
    ) -> None:
        if size < 1 or slots < 1 or concentration < 1 or int(concentration) != concentration:
            raise ValueError(
                f"size, slots and concentration must be whole numbers of at least 1, got {size}, {slots} and "
                f"{concentration}"
            )
        self.size, self.seed, self.slots, self.concentration = size, seed, slots, int(concentration)
        self.mixture = dict(_default_mixture(size) if mixture is None else mixture)
        unknown, total = set(self.mixture) - set(KINDS), sum(self.mixture.values())
        if unknown or min(self.mixture.values(), default=-1) < 0 or not abs(total - 1) <= 1e-9:
            raise ValueError(f"mixture must give {KINDS} shares of sum 1, got {self.mixture}")

    def kind(self, epoch: int, prompt: int | str, slot: int) -> str:
        """Which part of the mixture a draw belongs to."""
        return self._kind(self._uniforms(epoch, prompt, slot))

    def __call__(self, epoch: int, prompt: int | str, slot: int) -> Tensor:
        """ω [M] in fp64.

        Args:
            epoch: number of the rollout.
            prompt: the prompt's index or its text.
            slot: within [0, slots).
        """
        uniforms = self._uniforms(epoch, prompt, slot)
        kind = self._kind(uniforms)
        chosen = _choose(self.size, {"vertex": 1, "edge": 2}.get(kind, self.size), uniforms)
        omega = torch.zeros(self.size, dtype=torch.float64)
        omega[chosen] = torch.tensor(_dirichlet(len(chosen), self.concentration, uniforms), dtype=torch.float64)
        return omega

    def batch(self, epoch: int, prompts: Sequence[int | str]) -> Tensor:
        """ω [P, slots, M] of all slots of some prompts."""
        drawn = [self(epoch, prompt, slot) for prompt in prompts for slot in range(self.slots)]
        empty = torch.zeros(0, dtype=torch.float64)
        return (torch.stack(drawn) if drawn else empty).view(len(prompts), self.slots, self.size)

    def _kind(self, uniforms: Iterator[int]) -> str:
        drawn, reached, last = next(uniforms) * _UNIT, 0.0, ""
        for kind in KINDS:
            share = self.mixture.get(kind, 0.0)
            reached += share
            last = kind if share > 0 else last
            if drawn < reached:
                return kind
        return last

    def _uniforms(self, epoch: int, prompt: int | str, slot: int) -> Iterator[int]:
        """Whole numbers within [0, 2^53), without end."""
        if not 0 <= slot < self.slots:
            raise ValueError(f"slot must be within [0, {self.slots}), got {slot}")
        # A list in JSON has one reading: (1, "2") and ("1", 2) differ.
        key = json.dumps([self.seed, epoch, prompt, slot]).encode()
        for block in count():
            digest = hashlib.sha256(key + block.to_bytes(4, "big")).digest()
            for start in range(0, len(digest), 8):
                yield int.from_bytes(digest[start : start + 8], "big") >> (64 - _BITS)


def _default_mixture(size: int) -> dict[str, float]:
    if size == 1:
        return {"vertex": 1.0}
    return {"vertex": 0.1, "interior": 0.9} if size == 2 else {"vertex": 0.5, "edge": 0.35, "interior": 0.15}


def _choose(size: int, wanted: int, uniforms: Iterator[int]) -> list[int]:
    """``wanted`` of ``size`` indices, all subsets equally likely, in order."""
    left = list(range(size))
    # Scaling 53 bits to a few choices favours none by more than size · 2⁻⁵³.
    return sorted(left.pop(next(uniforms) * len(left) >> _BITS) for _ in range(min(wanted, size)))


def _dirichlet(size: int, concentration: int, uniforms: Iterator[int]) -> list[float]:
    """Gaps between size · concentration − 1 sorted uniforms, ``concentration`` of them to an entry."""
    cuts = sorted(next(uniforms) for _ in range(size * concentration - 1))
    ends = [0, *cuts[concentration - 1 :: concentration], 1 << _BITS]
    return [(right - left) * _UNIT for left, right in pairwise(ends)]
