"""Networks, losses and helpers for the tests of probed steps."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.amp import GradScaler

from marble_opt import Marble, SeparableLoss, losses
from toys import NAMES, normal, parameters, sgd

REWARDS = NAMES[:3]


BATCH, MICRO, PROBES, LR = 5, 6, 2, 0.05


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Tanh(), nn.Linear(5, 4)).double()


def nft(model: nn.Module, step: int, micro: int) -> SeparableLoss:
    """Rewards come and go: a is masked on samples, b absent from the second probe and from the last micro-step,
    c from the probes of step 1.
    """
    seed = 1000 * step + 10 * micro
    x_0, noise, old = (normal(BATCH, 4, seed=seed + k) for k in range(3))
    t = normal(BATCH, seed=seed + 3).sigmoid().unsqueeze(1)
    advantages = 3 * normal(3, BATCH, seed=seed + 4)
    advantages[0, 1:3] = torch.nan
    if micro in (1, MICRO - 1):
        advantages[1] = torch.nan
    if step == 1 and micro < PROBES:
        advantages[2] = torch.nan
    x_t = (1 - t) * x_0 + t * noise
    counts, anchor = torch.tensor([18, 20, 30]), "shared"
    prediction = model(x_t)
    return losses.diffusion_nft(
        prediction, old, x_t, x_0, t.squeeze(1), advantages, beta=0.5, adv_clip=2.0, counts=counts, anchor=anchor
    )


def offer(opt: Marble, loss: SeparableLoss, form: str, scaler: GradScaler | None = None) -> None:
    if form != "mapping":
        opt.backward(loss, scaler=scaler)
        return
    present = loss.applies()
    given = {name: each if on else None for name, each, on in zip(REWARDS, loss.losses(), present, strict=True)}
    opt.backward(given, shared=loss.shared(), scaler=scaler)


def probed(net: nn.Module, form: str = "separable", **options: Any) -> Marble:
    base = torch.optim.SGD(net.parameters(), lr=LR)
    return Marble(
        base, REWARDS, micro_steps=MICRO, probe=PROBES / MICRO, model=net if form == "factored" else None, **options
    )


def micro_steps(opt: Marble, given: list[Any], shared: list[Tensor] | None = None, **options: Any) -> None:
    for number, each in enumerate(given):
        opt.backward(each, shared=None if shared is None else shared[number], **options)


def toy(count: int = 4, probe: float = 0.5, **options: Any) -> tuple[list[Any], Marble]:
    params = parameters()
    return params, sgd(params, micro_steps=count, probe=probe, **options)


def finish(opt: Marble, match: str | None = None) -> None:
    if match is None:
        opt.step()
    else:
        with pytest.warns(UserWarning, match=match):
            opt.step()
    opt.zero_grad()
