"""The optimizer of a run: Marble around SGD or AdamW."""

from collections.abc import Callable, Mapping
from pkgutil import resolve_name
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

import marble_opt

from .config import Config

Weighting = Callable[[Tensor], Tensor]


def make_optimizer(
    config: Config,
    parameters: list[Tensor],
    model: nn.Module,
    micro_steps: int,
    replaced: Mapping[str, Any] = MappingProxyType({}),
) -> marble_opt.Marble:
    """Marble with the config's options, those in ``replaced`` apart; the losses' normalisers count all ranks, so ranks
    are summed over."""
    options = config.balance
    own: dict[str, Any] = dict(
        balancing(config),
        optimizer=base_optimizer(parameters, config),
        rewards=list(config.rewards),
        refresh_every=options.refresh_every,
        ema=options.ema,
        max_grad_norm=config.optimizer.max_grad_norm,
        track_step=options.track_step,
        guard=options.guard or None,
        fused=options.fused,
        model=model,
        reduction="sum",
        micro_steps=micro_steps,
        probe=None if config.summed else options.probe or None,
        shared_every=1 if config.summed else options.shared_every,
    )
    return marble_opt.Marble(**(own | dict(replaced)))


def base_optimizer(parameters: list[Tensor] | list[dict[str, Any]], config: Config) -> torch.optim.Optimizer:
    """The optimizer that Marble wraps, for parameters or groups of them."""
    settings = config.optimizer
    if settings.name == "sgd":
        return torch.optim.SGD(parameters, lr=settings.lr, momentum=0.9)
    return torch.optim.AdamW(parameters, lr=settings.lr, weight_decay=settings.weight_decay)


def balancing(config: Config) -> dict[str, object]:
    """Marble's options for a method; sums are applied as the shared term, the rewards' gradients only measured."""
    weights = {name: settings.weight for name, settings in config.rewards.items()}
    options = config.balance
    if config.method == "marble":
        own = {"normalize": options.normalize, "groups": options.groups or None}
        if options.balancer:
            return own | {"balancer": make_balancer(options.balancer)}
        return own | {"weights": weights, "floor": options.floor}
    return {"balancer": weights if config.method == "equal" else "observe"}


def make_balancer(name: str) -> Weighting:
    """The balancer that the factory ``name`` = "module:name" makes; ``ValueError`` if there is none of that name."""
    try:
        factory = resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"balance.balancer must be module:name of a factory that can be imported, such as "
            f"torchjd.aggregation:UPGradWeighting, got {name!r} ({error})"
        ) from error
    made: Weighting = factory()
    return made
