"""What the factored engine returns, and what it takes."""

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class FactoredGradients:
    """What :meth:`FactoredEngine.gradients` found.

    ``blocks``: [K, *shape] per covered parameter that the prediction depends on, at least fp32. ``uncovered``: other
    parameters that it depends on, which need exact passes (:meth:`FactoredEngine.exact`); if there are any, the
    graph has been kept. ``reasons``: why, by the parameter's name. ``passes``: backward passes run, without the
    comparisons of the first steps. ``layers``: modules contracted. ``hiding``: a reentrant checkpoint is in the
    prediction's graph.
    """

    blocks: dict[Tensor, Tensor]
    uncovered: list[Tensor]
    reasons: dict[str, str]
    passes: int
    layers: int
    hiding: bool


def trainable(parameters: Iterable[Tensor]) -> list[Tensor]:
    """The parameters that require a gradient, once each; ``ValueError`` for sharded ones."""
    found = list(dict.fromkeys(parameter for parameter in parameters if parameter.requires_grad))
    if any(hasattr(parameter, "device_mesh") for parameter in found):
        raise ValueError(
            "sharded parameters (DTensor, as FSDP2 makes them) are not those that the layers compute with: let an "
            "ordinary backward fill their .grad, one per reward"
        )
    return found


def zeros(rewards: int, parameter: Tensor) -> Tensor:
    """An empty block [K, *shape], at least fp32."""
    dtype = torch.promote_types(parameter.dtype, torch.float32)
    return torch.zeros(rewards, *parameter.shape, dtype=dtype, device=parameter.device)


def label(names: Mapping[Tensor, str], parameter: Tensor) -> str:
    """How messages call a parameter."""
    return names.get(parameter, f"a parameter of shape {list(parameter.shape)} outside the watched modules")


def tell_once(reasons: Mapping[str, str], told: set[str]) -> None:
    """Warn about parameters that are not covered, those in ``told`` excepted."""
    new = [f"{name} ({reason})" for name, reason in reasons.items() if name not in told]
    if new:
        told.update(reasons)
        warnings.warn(
            "the factored backward does not cover these parameters, which take one exact backward per reward: "
            + "; ".join(new),
            stacklevel=4,
        )
