"""Checkpoints under FSDP2 through torch.distributed.checkpoint, as users write them."""

import tempfile
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from distributed_worker import Share
from marble_opt import Marble

NAMES = ("a", "b")


def fresh(share: Share, seed: int, **options: Any) -> tuple[nn.Module, Marble]:
    torch.manual_seed(seed)
    plain = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 4)).double()
    model = fully_shard(plain, mesh=init_device_mesh("cpu", (share.ranks,)))
    return model, Marble(torch.optim.AdamW(model.parameters(), lr=0.05), NAMES, refresh_every=3, ema=0.5, **options)


def advance(share: Share, model: nn.Module, opt: Marble, steps: range) -> Tensor:
    for step in steps:
        prediction = model(share.normal(4, seed=step))
        opt.backward({"a": (prediction - 1).square().mean(), "b": (prediction + 1).abs().mean()})
        opt.step()
        opt.zero_grad()
    return torch.cat([p.full_tensor().detach().flatten() for p in model.parameters()])  # type: ignore[attr-defined]


def everything(model: nn.Module, opt: Marble) -> dict[str, Any]:
    """What the README says to save: the base optimizer's state by name, ours beside it."""
    return {
        "model": get_model_state_dict(model),
        "optimizer": get_optimizer_state_dict(model, opt.base),
        "marble": opt.state_dict()["marble"],
    }


def resumed(share: Share, forget: bool = False, **options: Any) -> bool:
    """Whether a run that is resumed after four steps ends as one that is not; ``forget`` leaves our own state out."""
    box = [tempfile.mkdtemp()] if share.rank == 0 else [""]
    dist.broadcast_object_list(box)
    model, opt = fresh(share, seed=0, **options)
    advance(share, model, opt, range(4))
    dcp.save(everything(model, opt), checkpoint_id=box[0])
    unbroken = advance(share, model, opt, range(4, 8))
    model, opt = fresh(share, seed=1, **options)
    state = everything(model, opt)
    dcp.load(state, checkpoint_id=box[0])
    set_model_state_dict(model, state["model"])
    set_optimizer_state_dict(model, opt.base, state["optimizer"])
    if not forget:
        opt.load_state_dict({**opt.base.state_dict(), "marble": state["marble"]})
    return torch.equal(advance(share, model, opt, range(4, 8)), unbroken)


def state_dict_of_the_wrapper(share: Share) -> list[str]:
    """``get_optimizer_state_dict`` takes the wrapper too; our own state is not in what it returns."""
    model, opt = fresh(share, seed=0)
    advance(share, model, opt, range(2))
    found = get_optimizer_state_dict(model, opt)
    assert found["state"]["0.weight"]["exp_avg"].full_tensor().shape == (6, 4)  # type: ignore[union-attr]
    return sorted(found)
