"""bf16 and fp16 parameters with an fp32 bank, and autocast."""

import pytest
import torch
from torch import nn

from marble_opt import Marble
from toys import LENGTH, NAMES, balanced, close, grads, linear_losses, normal, parameters, sgd


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_bank_is_fp32_and_grad_has_the_parameters_type(dtype: torch.dtype) -> None:
    params, rows = parameters(dtype), normal(3, LENGTH, dtype=dtype)
    opt = sgd(params)
    opt.backward(linear_losses(params, rows))
    assert {block.dtype for block in opt._collector.bank.blocks.values()} == {torch.float32}
    opt.balance()
    assert {parameter.grad.dtype for parameter in params if parameter.grad is not None} == {dtype}
    # The rows are what they are; only the sum is rounded to the type.
    assert close(grads(params).double(), balanced(rows.double())[0], 2 * torch.finfo(dtype).eps)


def test_many_small_micro_steps_are_not_lost_in_bf16() -> None:
    # 1 + 2^-9 is 1 in bf16, so a bf16 bank would stand still.
    params, row = parameters(torch.bfloat16), torch.ones(LENGTH, dtype=torch.bfloat16)
    opt = sgd(params, 1)
    opt.backward(linear_losses(params, row.unsqueeze(0)))
    for _ in range(512):
        opt.backward(linear_losses(params, row.unsqueeze(0) / 512))
    opt.balance()
    assert grads(params).float().tolist() == [2.0] * LENGTH


@pytest.mark.parametrize("form", ["backward", "collect"])
@pytest.mark.parametrize("every", [1, 2])
def test_autocast_keeps_fp32_gradients_near_the_fp32_ones(form: str, every: int) -> None:
    runs = []
    for enabled in (True, False):
        torch.manual_seed(4)
        net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        opt = Marble(torch.optim.SGD(net.parameters(), lr=0.1), NAMES[:2], refresh_every=every)
        for number in range(3):
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                output = net(normal(6, 4, seed=number, dtype=torch.float32))
                losses = {"a": (output - 1).square().mean(), "b": (output + 1).abs().mean()}
            if form == "backward":
                opt.backward(losses)
            else:
                for name, loss in losses.items():
                    with opt.collect(name):
                        loss.backward(retain_graph=True)
            opt.step()
            assert {p.grad.dtype for p in net.parameters() if p.grad is not None} == {torch.float32}
            opt.zero_grad()
        runs.append(torch.cat([parameter.detach().flatten() for parameter in net.parameters()]))
    assert close(runs[0], runs[1], 0.03)
    assert not torch.equal(runs[0], runs[1])
