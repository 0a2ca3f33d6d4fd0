"""The metric of the base optimizer's second moment: what Adam divides its steps by.

    P = diag(sqrt(v̂) + eps),   v̂ = v / (1 − β₂ᵗ)         (Kingma and Ba 2015, algorithm 1)

v is the state ``exp_avg_sq`` after t steps. Adam's step without momentum is lr · P⁻¹ d.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from .ranks import local_part, local_parts

METRICS = (None, "adam")
_WORKS_WITH = "torch.optim.Adam, AdamW, NAdam, RAdam, or any that keeps exp_avg_sq per element and has betas"


def denominator(state: Mapping[str, Any], group: Mapping[str, Any], parameter: Tensor) -> Tensor | None:
    """The diagonal of P for one parameter, in its shape and in fp32 or wider; ``None`` without such a second moment.

    Of a sharded parameter (FSDP2, HSDP): that of this rank's shard, a plain tensor.

    A base that keeps no ``step`` per parameter gets no bias correction, one without ``eps`` gets 1e-8. With ``amsgrad``
    v is the largest so far. Nothing is read from the device. At least the square root of the smallest normal number, so
    that its inverse stays usable where v and eps are zero.
    """
    moment = state.get("max_exp_avg_sq", state.get("exp_avg_sq"))
    if not isinstance(moment, Tensor):
        return None
    moment = local_part(moment)
    if moment.shape != local_part(parameter).shape:
        return None
    moment = moment.detach().to(torch.promote_types(moment.dtype, torch.float32))
    root = moment.clamp_min(0).sqrt()
    if "step" in state and "betas" in group:
        wide = torch.float32 if moment.device.type == "mps" else torch.float64
        count = local_part(torch.as_tensor(state["step"])).to(wide)
        seen = 1 - group["betas"][1] ** count
        root = root / torch.where(seen > 0, seen, 1.0).sqrt().to(root)
    positive: Tensor = (root + group.get("eps", 1e-8)).clamp_min(torch.finfo(root.dtype).tiny ** 0.5)
    return positive.contiguous()


@dataclass(frozen=True)
class AdamMetric:
    """``Marble(metric="adam")``: M = P⁻¹, in which the Gram matrix G = J M Jᵀ of a balance is taken.

    v̂ is that of the steps before this one. A parameter without a step of its own has M = 1, and so has every one
    before the first step. Of a sharded parameter M is that of this rank's shard.
    """

    base: Optimizer

    def __call__(self, parameters: Sequence[Tensor]) -> list[Tensor] | None:
        """The diagonal of M per parameter; ``None``: the identity.

        Raises:
            ValueError: the base optimizer has stepped and keeps no second moment.
        """
        groups = {parameter: group for group in self.base.param_groups for parameter in group["params"]}
        states = [self.base.state.get(parameter, {}) for parameter in parameters]
        found = [denominator(s, groups[p], p) for s, p in zip(states, parameters, strict=True)]
        if all(diagonal is None for diagonal in found):
            if any(states):
                raise ValueError(_refusal(self.base))
            return None
        wide = [torch.promote_types(p.dtype, torch.float32) for p in parameters]
        return [
            torch.ones_like(p, dtype=dtype, memory_format=torch.contiguous_format) if d is None else d.reciprocal()
            for p, d, dtype in zip(local_parts(parameters), found, wide, strict=True)
        ]


def make_metric(name: str | None, base: Optimizer) -> AdamMetric | None:
    """The metric of a balance by name.

    Raises:
        ValueError: an unknown name, or a base optimizer that cannot have a second moment.
    """
    if name not in METRICS:
        raise ValueError(f"metric must be one of {METRICS}, got {name!r}")
    if name is None:
        return None
    stepped = any(base.state.values())
    if not all("betas" in group for group in base.param_groups) or (
        stepped and not any("exp_avg_sq" in state for state in base.state.values())
    ):
        raise ValueError(_refusal(base))
    return AdamMetric(base)


def _refusal(base: Optimizer) -> str:
    return f"metric='adam' needs a second moment, {type(base).__name__} keeps none: use {_WORKS_WITH}"
