"""Ways to get gradients under DDP wrong."""

import copy
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import marble_opt.bank
import marble_opt.collector
import marble_opt.gram
from distributed_worker import Share
from misuse_cases import NAMES, expected, make, network, parameters, parameters_differ, two_losses


def ddp_collects(share: Share, together: bool, by_hand: bool = False, every: int = 1, **settings: Any) -> Any:
    """Right, though DDP reduces: collects on one forward (``together``), or each with a forward of its own."""
    plain = network()
    model = DistributedDataParallel(plain, **settings)
    opt = make(model, refresh_every=every)
    for step in range(3):
        given = two_losses(share, model, 10 * step)
        if by_hand:
            (0.3 * (given["a"] + given["b"])).backward(retain_graph=together)
        for name in NAMES:
            if not together:
                given = two_losses(share, model, 10 * step)
            with opt.collect(name):
                given[name].backward(retain_graph=together)
        opt.step()
        opt.zero_grad()
    return parameters(plain)


def ddp_backwards(share: Share, **settings: Any) -> Any:
    """Right: backward() does not wake DDP."""
    plain = network()
    model = DistributedDataParallel(plain, **settings)
    opt = make(plain)
    for step in range(3):
        opt.backward(two_losses(share, model, 10 * step))
        opt.step()
        opt.zero_grad()
    return parameters(plain)


def ddp_collects_differ(share: Share) -> Any:
    """a applies to rank 0 only and b to rank 1 only: DDP would average the one with the other."""
    model = DistributedDataParallel(network())
    opt = make(model)
    with opt.collect(NAMES[share.rank]):
        two_losses(share, model)[NAMES[share.rank]].backward()
    opt.step()


def ddp_collects_differ_without_sync(share: Share) -> Any:
    """The same under no_sync(): right."""
    plain = network()
    model = DistributedDataParallel(plain)
    opt = make(model, reduction="sum")
    with opt.collect(NAMES[share.rank]), model.no_sync():
        two_losses(Share(0, 1), model)[NAMES[share.rank]].backward()
    opt.step()
    return parameters(plain)


def one_rank_collects_nothing(share: Share) -> Any:
    plain = network()
    opt = make(plain, reduction="sum")
    if share.rank == 0:
        opt.backward(two_losses(Share(0, 1), plain))
    opt.step()
    return parameters(plain)


def nobody_collects(share: Share) -> Any:
    plain = network()
    opt = make(plain)
    opt.step()
    return parameters(plain)


def another_checkpoint(share: Share) -> Any:
    plain = network()
    opt = make(plain, refresh_every=3)
    opt.backward(two_losses(share, plain))
    before = copy.deepcopy(opt.state_dict())
    opt.step()
    opt.zero_grad()
    if share.rank == 0:
        opt.load_state_dict(before)
    opt.backward(two_losses(share, plain))
    opt.step()


def reentrant(share: Share, quiet: bool) -> Any:
    """A reentrant checkpoint makes plain backwards, which DDP reduces unless told not to."""

    class Recomputed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network()

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = checkpoint(self.inner, x.requires_grad_(), use_reentrant=True)
            return result

    plain = Recomputed()
    model = DistributedDataParallel(plain)
    opt = make(plain)
    for step in range(3):
        if quiet:
            with model.no_sync():
                given = two_losses(share, model, 10 * step)
        else:
            given = two_losses(share, model, 10 * step)
        opt.backward(given)
        opt.step()
        opt.zero_grad()
    return parameters(plain)


def bucket_view_without_copy(share: Share) -> Any:
    """The teeth of a guard: without the copy DDP overwrites the shared gradient."""
    original = marble_opt.collector.keep_grads
    marble_opt.collector.keep_grads = lambda found: [p.grad for p in found]
    try:
        return parameters_differ(
            ddp_collects(share, False, True, gradient_as_bucket_view=True), expected(3, shared=True)
        )
    finally:
        marble_opt.collector.keep_grads = original


def unmarked_collects(share: Share) -> Any:
    """The teeth of a guard: without the marks ranks that collect different rewards go on with wrong rows; compare
    :func:`ddp_collects_differ_without_sync`.
    """
    original = marble_opt.collector.GradientCollector._tell_reduced
    marble_opt.collector.GradientCollector._tell_reduced = lambda self, by_ddp: self.reduced.clear()  # type: ignore
    try:
        plain = network()
        model = DistributedDataParallel(plain)
        opt = make(model, reduction="sum")
        with opt.collect(NAMES[share.rank]):
            two_losses(Share(0, 1), model)[NAMES[share.rank]].backward()
        opt.step()
        return parameters_differ(parameters(plain), expected(1))
    finally:
        marble_opt.collector.GradientCollector._tell_reduced = original  # type: ignore[method-assign]
