"""A network, losses and the right result for the tests of ways to get gradients wrong."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from distributed_worker import Share
from marble_opt import Marble

NAMES = ("a", "b")


Losses = dict[str, Tensor]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 4)).double()


def sharded(share: Share) -> nn.Module:
    model = network()
    return fully_shard(model, mesh=init_device_mesh("cpu", (share.ranks,)))


def make(model: nn.Module, **options: Any) -> Marble:
    return Marble(torch.optim.SGD(model.parameters(), lr=0.1), NAMES, **options)


def two_losses(share: Share, model: nn.Module, seed: int = 0) -> Losses:
    prediction = model(share.normal(4, seed=seed))
    return {"a": (prediction - share.normal(4, seed=seed + 1)).square().mean(), "b": prediction.abs().mean()}


def expected(steps: int, shared: bool = False, **options: Any) -> Tensor:
    """The parameters after ``steps`` on the whole batch, every rank on its own."""
    model, whole = network(), Share(0, 1)
    if dist.is_initialized():
        options["process_group"] = [dist.new_group([rank]) for rank in range(dist.get_world_size())][dist.get_rank()]
    opt = make(model, **options)
    for step in range(steps):
        given = two_losses(whole, model, 10 * step)
        opt.backward(given, shared=0.3 * (given["a"] + given["b"]) if shared else None)
        opt.step()
        opt.zero_grad()
    return parameters(model)


def parameters(model: nn.Module) -> Tensor:
    found = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in model.parameters()]
    return torch.cat([p.detach().flatten() for p in found])


def parameters_differ(found: Tensor, right: Tensor) -> bool:
    return bool((found - right).abs().max() > 1e-4)
