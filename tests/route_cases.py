"""A network, DiffusionNFT losses and a training loop for the tests of Marble's routes."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.nn import functional as F

from marble_opt import Balance, Marble, SeparableLoss, losses
from toys import NAMES, normal, values

REWARDS = NAMES[:3]


BATCH, MICRO, STEPS = 6, 2, 4


TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}


class Network(nn.Sequential):
    def __init__(self, seed: int = 1) -> None:
        torch.manual_seed(seed)
        super().__init__(nn.Linear(4, 5), nn.LayerNorm(5), nn.Tanh(), nn.Linear(5, 4))


class Loose(nn.Module):
    """A parameter that is used outside the module that owns it, which no handler covers."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = Network(), nn.Module()
        self.head.matrix = nn.Parameter(0.5 * torch.eye(4))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.body(x), self.head.matrix)


MODELS: dict[str, Callable[[], nn.Module]] = {"covered": Network, "loose": Loose}


def nft(model: nn.Module, step: int, micro: int, anchor: str, same: bool = False) -> SeparableLoss:
    """One of ``MICRO`` micro-batches with masks and clipping, normalised over all of them.

    b is absent from the first, c from the whole of step 1. ``same``: v_old = v.
    """
    dtype = next(model.parameters()).dtype
    seed = 100 * step + 10 * micro
    x_0, noise, old = (normal(BATCH, 4, seed=seed + k, dtype=dtype) for k in range(3))
    t = normal(BATCH, seed=seed + 3, dtype=dtype).sigmoid()
    whole = 3 * normal(3, MICRO, BATCH, seed=100 * step + 4, dtype=dtype)
    whole[0, :, 2:4] = whole[1, 0] = whole[2, 1, 0] = torch.nan
    if step == 1:
        whole[2] = torch.nan
    x_t = (1 - t.unsqueeze(1)) * x_0 + t.unsqueeze(1) * noise
    prediction = model(x_t)
    counts = (~whole.isnan()).sum((1, 2))
    return losses.diffusion_nft(
        *(prediction, prediction.detach() if same else old, x_t, x_0, t, whole[:, micro]),
        **{"beta": 0.5, "adv_clip": 2.0, "counts": counts, "anchor": anchor, "samples": MICRO * BATCH},
    )


def sgd(net: nn.Module, /, **options: Any) -> Marble:
    return Marble(torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9), REWARDS, **options)


def advance(
    opt: Marble,
    model: nn.Module,
    step: int,
    anchor: str = "per_reward",
    kl: bool = True,
    scaler: GradScaler | None = None,
    same: bool = False,
) -> Balance:
    """One optimizer step; the warning about parameters without a handler has its own test."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for micro in range(MICRO):
            loss = nft(model, step, micro, anchor, same)
            opt.backward(loss, shared=loss.prediction.square().mean() if kl else None, scaler=scaler)
        opt.balance()
        if scaler is None:
            opt.step()
        else:
            scaler.step(opt)
            scaler.update()
    opt.zero_grad()
    assert opt.report is not None
    return opt.report


def train(net: nn.Module, /, scaled: bool = False, **options: Any) -> tuple[Tensor, list[Balance]]:
    anchor, kl = options.pop("anchor", "per_reward"), options.pop("kl", True)
    opt, scaler = sgd(net, **options), GradScaler("cpu", init_scale=2.0**10) if scaled else None
    reports = [advance(opt, net, step, anchor, kl, scaler) for step in range(STEPS)]
    return values(net.parameters()), reports


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {"kl": False},
    "kl": {},
    "amortised": {"refresh_every": 3},
    "smoothed": {"ema": 0.5},
    "groups": {"groups": {"pair": ["a", "b"]}},
    "scaled": {"scaled": True},
    "scaled_amortised": {"scaled": True, "refresh_every": 3, "ema": 0.5},
}


def mapping(loss: SeparableLoss) -> dict[str, Tensor]:
    return dict(zip(REWARDS, loss.losses(), strict=True))
