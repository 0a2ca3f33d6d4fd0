"""What the engine returns."""

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..ranks import is_sharded


@dataclass
class RowResult:
    """What :meth:`RowEngine.gradients` did.

    ``blocks``: [K, *shape], at least fp32, per parameter that rows were found for. ``uncovered``: parameters that need
    exact passes (:meth:`RowEngine.exact`); if there are any, the graph has been kept. ``reasons``: why, by the
    parameter's name. ``passes``: backward passes for the rows; ``checks``: those that compared. ``layers``: modules
    that gave rows. ``hiding``: a reentrant checkpoint is in the prediction's graph.
    """

    blocks: dict[Tensor, Tensor] = field(default_factory=dict)
    uncovered: list[Tensor] = field(default_factory=list)
    reasons: dict[str, str] = field(default_factory=dict)
    passes: int = 0
    checks: int = 0
    layers: int = 0
    hiding: bool = False


def trainable(parameters: Iterable[Tensor]) -> list[Tensor]:
    """The parameters that require a gradient, once each."""
    return list(dict.fromkeys(parameter for parameter in parameters if parameter.requires_grad))


def zeros(rewards: int, parameter: Tensor) -> Tensor:
    """An empty block [K, *shape], at least fp32; under FSDP2 of this rank's shard."""
    local = parameter.to_local() if is_sharded(parameter) else parameter  # type: ignore[attr-defined]
    dtype = torch.promote_types(parameter.dtype, torch.float32)
    return torch.zeros(rewards, *local.shape, dtype=dtype, device=local.device)


def label(names: Mapping[Tensor, str], parameter: Tensor) -> str:
    """How messages call a parameter."""
    return names.get(parameter, f"a parameter of shape {list(parameter.shape)} outside the watched modules")


def tell_once(reasons: Mapping[str, str], told: set[str]) -> None:
    """Warn about parameters that are not covered, those in ``told`` excepted."""
    new = [f"{name} ({reason})" for name, reason in reasons.items() if name not in told]
    if new:
        told.update(reasons)
        warnings.warn(
            "these parameters get no rows from one backward per term, so every reward takes a backward of its own: "
            + "; ".join(new),
            stacklevel=4,
        )
