"""A reentrant checkpoint refuses torch.autograd.grad: all kinds of steps work with it all the same."""

import pytest
import torch
from torch import Generator, Tensor, nn
from torch.utils.checkpoint import checkpoint

from marble_opt import Marble, SeparableLoss


def train(reentrant: bool | None, route: str, **options: object) -> Tensor:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4)).double()
    opt = Marble(torch.optim.SGD(model.parameters(), lr=0.1), ["a", "b"], model=model, route=route, **options)
    generator = Generator().manual_seed(1)
    for _ in range(4):
        x = torch.randn(6, 4, generator=generator, dtype=torch.float64).requires_grad_(reentrant is True)
        weights = torch.randn(1, 2, 6, generator=generator, dtype=torch.float64)
        prediction = model(x) if reentrant is None else checkpoint(model, x, use_reentrant=reentrant)
        loss = SeparableLoss(prediction, prediction.square().mean(1).unsqueeze(0), weights)
        opt.backward(loss, shared=(prediction - 1).square().mean())
        opt.step()
        opt.zero_grad()
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("route", ["factored", "loop"])
@pytest.mark.parametrize("every", [1, 2])
def test_result_is_that_without_a_checkpoint(reentrant: bool, route: str, every: int) -> None:
    expected = train(None, "loop", refresh_every=every)
    torch.testing.assert_close(train(reentrant, route, refresh_every=every), expected, rtol=1e-12, atol=1e-14)
