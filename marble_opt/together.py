"""Backwards that FSDP2 runs on all ranks together: a rank without a loss takes part with a zero one."""

from collections.abc import Iterable, Sequence

import torch.distributed as dist
from torch import Tensor

from .ranks import agree, any_sharded, local_part
from .routes import Losses
from .separable import SeparableLoss


def take_part(
    scalars: Sequence[Tensor | None],
    losses: Losses,
    shared: Tensor | None,
    parameters: Sequence[Tensor],
    group: dist.ProcessGroup | None,
) -> list[Tensor | None]:
    """The scalars to differentiate, the same ones on every rank: where only others have one it is 0 · (a loss of this
    rank), so that FSDP2's collectives meet and the average over ranks is right.

    One small collective per micro-step, read by the host.

    Raises:
        RuntimeError: a rank has nothing with a graph of the model, while others run a backward.
    """
    carrier = _carrier(losses, shared)
    *wanted, stuck = agree(
        [*(scalar is not None for scalar in scalars), carrier is None], local_part(parameters[0]).device, group
    )
    if stuck and any(wanted):
        raise RuntimeError(
            "some ranks have losses and at least one has none at all, but FSDP2 needs every rank in every backward: "
            "give it a loss of zero that is computed from the model, 0 * prediction.sum(), in place of None"
        )
    return [
        0 * carrier if scalar is None and needed and carrier is not None else scalar
        for scalar, needed in zip(scalars, wanted, strict=True)
    ]


def finite_on_all(
    gradients: Iterable[Tensor | None], parameters: Sequence[Tensor], group: dist.ProcessGroup | None
) -> bool:
    """Whether gradients are finite: here, or in all shards if parameters are sharded."""
    finite = all(bool(local_part(gradient).isfinite().all()) for gradient in gradients if gradient is not None)
    if not any_sharded(parameters):
        return finite
    return not agree([not finite], local_part(parameters[0]).device, group)[0]


def _carrier(losses: Losses, shared: Tensor | None) -> Tensor | None:
    if isinstance(losses, SeparableLoss):
        return losses.prediction.sum()
    if isinstance(losses, Tensor):
        return losses.sum()
    return next((loss for loss in (*losses.values(), shared) if loss is not None), None)
