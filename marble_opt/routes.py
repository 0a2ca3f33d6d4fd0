"""How losses become gradients: K backwards into the bank, or one backward of their combination."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from .per_sample.backward_passes import ordinary
from .per_sample.graph_walk import hides
from .ranks import is_sharded
from .separable import SeparableLoss

Losses = Mapping[str, Tensor | None] | Tensor | SeparableLoss
Gradients = Sequence[Tensor | None]


def scalar_losses(losses: Losses, rewards: Sequence[str]) -> list[Tensor | None]:
    """Check ``losses`` and list them in the order of ``rewards``; ``None``: does not apply to this batch."""
    if isinstance(losses, SeparableLoss):
        if losses.num_rewards != len(rewards):
            raise ValueError(
                f"the loss has {losses.num_rewards} rewards (weights {list(losses.weights.shape)}), "
                f"the optimizer has {len(rewards)}: {list(rewards)}"
            )
        return [loss if used else None for loss, used in zip(losses.losses(), losses.applies(), strict=True)]
    if isinstance(losses, Tensor):
        if losses.shape != (len(rewards),):
            raise ValueError(f"losses has shape {list(losses.shape)}, needs [{len(rewards)}] for {list(rewards)}")
        _check_graph("losses", losses)
        return list(losses)
    if not isinstance(losses, Mapping):
        raise ValueError(f"losses must be a mapping, a tensor [K] or a SeparableLoss, got {type(losses).__name__}")
    unknown, missing = set(losses) - set(rewards), set(rewards) - set(losses)
    if unknown:
        raise ValueError(f"losses names the unknown rewards {sorted(unknown)}: known are {list(rewards)}")
    if missing:
        raise ValueError(f"losses misses {sorted(missing)}: pass None for a reward that does not apply to this batch")
    for name, loss in losses.items():
        if loss is not None:
            check_loss(f"the loss of reward {name!r}", loss)
    return [losses[name] for name in rewards]


def check_loss(what: str, loss: Tensor) -> None:
    """Raise ``ValueError`` unless ``loss`` is a scalar tensor with a graph."""
    if not isinstance(loss, Tensor) or loss.dim() != 0:
        shape = list(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        raise ValueError(f"{what} must be a scalar tensor, got {shape}: reduce it, for example with .mean()")
    _check_graph(what, loss)


def _check_graph(what: str, loss: Tensor) -> None:
    if not loss.requires_grad:
        raise ValueError(f"{what} has no graph: compute it from trainable parameters with gradients enabled")


def loop(
    losses: Sequence[Tensor | None],
    parameters: Sequence[Tensor],
    retain_graph: bool,
    store: Callable[[int, Gradients], None],
    sharded: bool = False,
) -> None:
    """One backward per loss, ``store(k, gradients)`` after each: the exact and slow route.

    The gradients stay local to the rank: hooks on ``.grad``, DDP's reduction among them, do not fire. Those of sharded
    parameters are reduced by FSDP2 in each backward.
    """
    present = [(index, loss) for index, loss in enumerate(losses) if loss is not None]
    for position, (index, loss) in enumerate(present):
        keep = retain_graph or position + 1 < len(present)
        store(index, gradients_of(loss, parameters, keep, sharded=sharded))


def gradients_of(
    loss: Tensor,
    parameters: Sequence[Tensor],
    retain_graph: bool,
    clear: Tensor | None = None,
    sharded: bool = False,
) -> list[Tensor | None]:
    """Gradients of one scalar, without touching ``.grad``.

    Where a reentrant checkpoint refuses ``torch.autograd.grad`` a plain backward is made with the parameters' ``.grad``
    put aside; other leaves of the graph then get a ``.grad`` too, and hooks fire. ``clear``: a tensor known to have
    none in its graph. ``sharded``: the graph holds FSDP2's gathered parameters, and only a plain backward fills the
    ``.grad`` of the sharded ones.
    """
    if sharded:
        found = ordinary(loss, parameters, retain_graph, set(parameters))
        if all(each is None for p, each in zip(parameters, found, strict=True) if is_sharded(p)):
            raise RuntimeError(
                "a backward left no gradient on the sharded parameters: FSDP2 keeps them back under "
                "set_requires_gradient_sync(False) (accelerate's no_sync() and accumulate() set it). Pass model= to "
                "Marble, which then switches it on where it is needed, or to accelerate "
                "GradientAccumulationPlugin(sync_each_batch=True); the rows of micro-steps are added up here"
            )
        return found
    return ordinary(loss, parameters, retain_graph, set(parameters) if hides(loss, clear) else None)


def total(terms: Sequence[Tensor | None]) -> Tensor | None:
    """The sum of the terms that are there, or ``None``."""
    present = [term for term in terms if term is not None]
    return torch.stack(present).sum() if present else None


def combine_losses(
    losses: Losses, scalars: Sequence[Tensor | None], coefficients: Tensor, scaled: bool
) -> tuple[Tensor | None, list[int]]:
    """Σ c_k loss_k as one scalar (``None`` if nothing is left), and the rewards whose loss is not finite.

    Those are left out, as are rewards with c_k = 0, whose gradient may not be finite; but if that leaves none under a
    loss scaler, they stay in, for the scaler to see.
    """
    present = [(index, loss) for index, loss in enumerate(scalars) if loss is not None]
    if not present:
        return None, []
    if isinstance(losses, SeparableLoss):
        return losses.combined(coefficients), []
    values = torch.stack([loss.detach() for _, loss in present])
    used = coefficients[[index for index, _ in present]].to(values.device) != 0
    flags = torch.stack([torch.isfinite(values), used]).T.tolist()
    kept = [pair for pair, keep in zip(present, flags, strict=True) if all(keep)]
    left_out = [index for (index, _), (finite, _) in zip(present, flags, strict=True) if not finite]
    if not kept and scaled:
        kept = [pair for pair, (_, weighs) in zip(present, flags, strict=True) if weighs]
    return total([coefficients[index].to(loss) * loss for index, loss in kept]), left_out
