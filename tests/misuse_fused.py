"""Fused steps on the shards of FSDP2."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils._pytree import tree_leaves

import marble_opt.bank
import marble_opt.fused
import marble_opt.gram
from distributed_worker import Share
from marble_kernels.segments import Rows
from marble_opt import Marble
from misuse_cases import NAMES, make, network, parameters, sharded, two_losses


def fsdp_fused(share: Share) -> Any:
    """What reaches the kernels is local, always; nothing is combined outside of the fused one."""
    seen: dict[str, list[Any]] = {}
    places = ((marble_opt.gram, "gram"), (marble_opt.bank, "combine"), (marble_opt.fused, "fused_adamw"))
    originals = [(module, name, getattr(module, name)) for module, name in places]

    def watched(name: str, kernel: Callable[..., Any]) -> Callable[..., Any]:
        def call(rows: Any, *args: Any, **named: Any) -> Any:
            given = [*args, *named.values(), *([rows.tensors()] if isinstance(rows, Rows) else [rows])]
            given += [each.tensors() for each in args if isinstance(each, Rows)]
            seen.setdefault(name, []).extend(each for each in tree_leaves(given) if isinstance(each, Tensor))
            return kernel(rows, *args, **named)

        return call

    for module, name, kernel in originals:
        setattr(module, name, watched(name, kernel))
    try:
        model = sharded(share)
        opt = make(model)
        fused = Marble(torch.optim.AdamW(model.parameters()), NAMES, fused=True, max_grad_norm=1.0)
        for each in (opt, fused):
            given = two_losses(share, model)
            each.backward(given, shared=given["a"])
            each.step()
    finally:
        for module, name, kernel in originals:
            setattr(module, name, kernel)
    assert fused.report is not None
    kinds = {hasattr(each, "device_mesh") for found in seen.values() for each in found}
    return sorted(seen), min(map(len, seen.values())) > 5, kinds, fused.report.fused


def fsdp_fused_in_turns(share: Share) -> Any:
    """Fused and plain steps take over from each other; the state is as torch's AdamW makes it."""
    found, models = [], [sharded(share), sharded(share)]
    for turns, model in zip((False, True), models, strict=True):
        opt = Marble(torch.optim.AdamW(model.parameters(), lr=0.05), NAMES, max_grad_norm=0.1)
        for step in range(6):
            opt.fused = turns and step % 3 != 1
            opt.backward(two_losses(share, model, 10 * step))
            opt.step()
            opt.zero_grad()
        assert opt.report is not None
        assert opt.report.fused is turns
        found.append(parameters(model))
        kinds = [
            (type(each[key]), each[key].placements, each[key].shape, float(each["step"]))
            for each in opt.state.values()
            for key in ("exp_avg", "exp_avg_sq")
        ]
        found.append(kinds)
    return bool((found[0] - found[2]).abs().max() < 1e-12), found[1] == found[3]


def fsdp_without_a_usable_gradient(share: Share) -> Any:
    """A fused step that is dropped changes nothing, step counts of empty shards included."""
    model = network()
    model.append(torch.nn.Linear(4, 1).double())
    fully_shard(model, mesh=init_device_mesh("cpu", (share.ranks,)))
    opt = Marble(torch.optim.AdamW(model.parameters(), lr=0.05), NAMES, fused=True, guard="step")
    before = parameters(model)
    for step in range(3):
        given = two_losses(share, model, 10 * step)
        if step == 1:
            given = {name: loss * (torch.nan if share.rank else 1) for name, loss in given.items()}
            before = parameters(model)
        opt.backward(given)
        opt.step()
        opt.zero_grad()
        assert torch.equal(before, parameters(model)) is (step == 1)
    assert opt.report is not None
    return [float(state["step"]) for state in opt.state.values()], opt.report.dropped_steps, opt.report.fused
