"""Five conflicting regressions on one small network, each with specialist samples of its own."""

import torch
from torch import Tensor, nn

COUNT, INPUTS, HIDDEN = 5, 6, 32
REGIMES = {"mini-batches": 60, "full batch": 300}
# The losses' scales differ, as rewards' do.
SCALES = (1.0, 2.0, 0.5, 1.0, 4.0)
_SHARED = 0.2


class Toy:
    """Everything in fp64 and a function of the seed.

    ``regime``: "mini-batches" draws 60 fresh samples for each step, "full batch" takes the same 300 in all.

    A sample belongs to one specialist, whose inputs lie around a centre of its own, or (a fifth of them) to all. On the
    shared ones the losses ask for different values, so that no network satisfies all.
    """

    def __init__(self, seed: int, regime: str) -> None:
        self.seed, self.regime = seed, regime
        random = torch.Generator().manual_seed(1000 + seed)
        self.centres = torch.randn(COUNT, INPUTS, generator=random, dtype=torch.float64)
        self.directions = torch.randn(COUNT, INPUTS, generator=random, dtype=torch.float64)
        torch.manual_seed(seed)
        self.model = nn.Sequential(nn.Linear(INPUTS, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, 1)).double()

    def losses(self, step: int) -> dict[str, Tensor]:
        """The scaled losses of the batch of one step."""
        drawn = step if self.regime == "mini-batches" else 0
        raw = self._errors(1_000_003 * (self.seed + 1) + drawn, REGIMES[self.regime])
        return {name: scale * loss for name, scale, loss in zip("abcde", SCALES, raw, strict=True)}

    @torch.no_grad()
    def final(self) -> tuple[float, float]:
        """Mean and largest of the unscaled losses: on 6000 fresh samples, or on the full batch."""
        fresh = self.regime == "mini-batches"
        errors = torch.stack(self._errors(7, 6000) if fresh else self._errors(1_000_003 * (self.seed + 1), 300))
        return errors.mean().item(), errors.max().item()

    def _errors(self, seed: int, count: int) -> list[Tensor]:
        random = torch.Generator().manual_seed(seed)
        owner = torch.arange(count) % COUNT
        common = torch.rand(count, generator=random) < _SHARED
        noise = torch.randn(count, INPUTS, generator=random, dtype=torch.float64)
        inputs = noise + torch.where(common, 0.0, 1.0).unsqueeze(1) * 1.5 * self.centres[owner]
        predictions = self.model(inputs).squeeze(1)
        errors = []
        for k in range(COUNT):
            applies = common | (owner == k)
            targets = torch.sin(inputs @ self.directions[k])
            errors.append((predictions - targets).square()[applies].mean())
        return errors
