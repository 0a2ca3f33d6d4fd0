"""Five conflicting regressions on one small network, each with specialist samples of its own."""

import torch
from torch import Tensor, nn

COUNT, INPUTS, HIDDEN, BATCH = 5, 6, 32, 60
# The losses' scales differ, as rewards' do.
SCALES = (1.0, 2.0, 0.5, 1.0, 4.0)
_SHARED = 0.2


class Toy:
    """Everything in fp64 and a function of the seed.

    A sample belongs to one specialist, whose inputs lie around a centre of its own, or (a fifth of them) to all. On the
    shared ones the losses ask for different values, so that no network satisfies all.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        random = torch.Generator().manual_seed(1000 + seed)
        self.centres = torch.randn(COUNT, INPUTS, generator=random, dtype=torch.float64)
        self.directions = torch.randn(COUNT, INPUTS, generator=random, dtype=torch.float64)
        torch.manual_seed(seed)
        self.model = nn.Sequential(nn.Linear(INPUTS, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, 1)).double()

    def losses(self, step: int) -> dict[str, Tensor]:
        """The scaled losses of the batch of one step."""
        raw = self._errors(1_000_003 * (self.seed + 1) + step, BATCH)
        return {name: scale * loss for name, scale, loss in zip("abcde", SCALES, raw, strict=True)}

    @torch.no_grad()
    def final(self) -> tuple[float, float]:
        """Mean and largest of the unscaled losses on 6000 fresh samples."""
        errors = torch.stack(self._errors(seed=7, count=6000))
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
