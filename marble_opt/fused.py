"""From the bank to the parameters in one pass, where the base optimizer is torch's AdamW or Adam.

AdamW works element by element: under FSDP2 and HSDP each rank steps on its own shards, and only the norm for clipping
is over the shards of all ranks.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Adam, AdamW, Optimizer, optimizer

from marble_kernels.combine import clip_scale
from marble_kernels.fused_adamw import fused_adamw
from marble_kernels.segments import Rows

from .bank import GradientBank
from .distributed import full_gram, gram_over_shards
from .ranks import any_sharded, local_part, local_parts

_OPTIONS = ("amsgrad", "differentiable")


def obstacle(base: Optimizer) -> str | None:
    """Why the step of ``base`` cannot be fused, or ``None``.

    Exactly torch's AdamW or Adam: a subclass may compute anything. Hooks on its ``step`` would not be called.
    """
    if type(base) not in (AdamW, Adam):
        return f"the base optimizer is {type(base).__name__}, not torch.optim.AdamW or Adam"
    for name in _OPTIONS:
        if any(group[name] for group in base.param_groups):
            return f"the base optimizer has {name}=True"
    hooks = (
        base._optimizer_step_pre_hooks,
        base._optimizer_step_post_hooks,
        optimizer._global_optimizer_pre_hooks,
        optimizer._global_optimizer_post_hooks,
    )
    return "the base optimizer's step has hooks" if any(hooks) else None


@torch.no_grad()
def fused_step(
    base: Optimizer,
    bank: GradientBank,
    coefficients: Tensor | None,
    usable: Tensor,
    max_grad_norm: float | None,
    gram: Tensor | None,
    process_group: dist.ProcessGroup | None = None,
) -> None:
    """Σ_k c_k g_k + ``.grad``, its clipping and the step of ``base``, without writing the sum to ``.grad``.

    Args:
        base: an optimizer without an :func:`obstacle`. Steps that it counts on the host move to the parameters' device.
        bank: the rows; all ranks have some of the same parameters.
        coefficients: c [K]; ``None``: ``.grad`` alone is stepped on.
        usable: bool, 0-d: where it is false nothing changes; the same on all ranks.
        max_grad_norm: clip to this norm.
        gram: G [K + 1, K + 1] of the rows and ``.grad`` over all shards if it is known, for the norm.
        process_group: the ranks that hold shards.
    """
    blocks: Mapping[Tensor, Tensor] = {} if coefficients is None else bank.blocks
    members = [
        [p for p in group["params"] if p.grad is not None or (blocks and p in blocks)] for group in base.param_groups
    ]
    parameters = [parameter for group in members for parameter in group]
    if not parameters:
        return
    # Without rows the gradients themselves are the one row.
    weights = torch.ones(1, device=usable.device) if coefficients is None else coefficients
    scale: Tensor | None = None
    if max_grad_norm is not None:
        if coefficients is None:
            gradients = [parameter.grad for parameter in parameters]
            gram = gram_over_shards(0, parameters, [None] * len(parameters), gradients, process_group)
        elif gram is None:
            gram = full_gram(bank, parameters, process_group)
        scale = clip_scale(gram, weights, max_grad_norm)
    for group, own in zip(base.param_groups, members, strict=True):
        devices = {parameter.device for parameter in own}
        for device in devices:
            here = own if len(devices) == 1 else [parameter for parameter in own if parameter.device == device]
            if any_sharded(here):
                here = _held(base, here, usable.to(device))
            if not here:
                continue
            rows, row_weights = _rows(bank, blocks, here, weights.to(device))
            factor = None if scale is None else scale.to(device)
            _step_group(base, group, here, rows, row_weights, factor, usable.to(device))


def _rows(
    bank: GradientBank, blocks: Mapping[Tensor, Tensor], parameters: Sequence[Tensor], weights: Tensor
) -> tuple[Rows, Tensor]:
    """The rows of some parameters and their coefficients; where no reward reaches any, ``.grad`` is the one row."""
    if any(parameter in blocks for parameter in parameters):
        return bank.rows(parameters), weights
    gradients = [None if parameter.grad is None else local_part(parameter.grad) for parameter in parameters]
    return Rows([gradients]), torch.ones(1, device=weights.device)


def _held(base: Optimizer, parameters: Sequence[Tensor], usable: Tensor) -> list[Tensor]:
    """The parameters of which this rank holds something. The others' step is that it is counted, as on other ranks."""
    empty = [parameter for parameter in parameters if local_part(parameter).numel() == 0]
    if not empty:
        return list(parameters)
    torch._foreach_add_([_state(base, parameter)["step"] for parameter in empty], usable.to(torch.float32))
    nothing = set(empty)
    return [parameter for parameter in parameters if parameter not in nothing]


def _step_group(
    base: Optimizer,
    group: dict[str, Any],
    parameters: Sequence[Tensor],
    rows: Rows,
    weights: Tensor,
    scale: Tensor | None,
    usable: Tensor,
) -> None:
    states = [_state(base, parameter) for parameter in parameters]
    lr = group["lr"]
    fused_adamw(
        local_parts(parameters),
        rows,
        weights,
        None,
        local_parts([state["exp_avg"] for state in states]),
        local_parts([state["exp_avg_sq"] for state in states]),
        [state["step"] for state in states],
        lr=lr if isinstance(lr, Tensor) and lr.device == usable.device else float(lr),
        beta1=float(group["betas"][0]),
        beta2=float(group["betas"][1]),
        eps=group["eps"],
        weight_decay=group["weight_decay"],
        # An option that older versions of torch do not have.
        decoupled=type(base) is AdamW or group.get("decoupled_weight_decay", False),
        maximize=group["maximize"],
        scale=scale,
        usable=usable,
    )
    if any_sharded(parameters):
        # Autograd learns of changes in place by this counter, and what has been written to are the shards.
        torch.autograd.graph.increment_version(parameters)


def _state(base: Optimizer, parameter: Tensor) -> dict[str, Any]:
    """The state of a parameter as the base optimizer keeps it, made on its first step; moments are sharded as it is."""
    state: dict[str, Any] = base.state[parameter]
    if not state:
        state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
        for name in ("exp_avg", "exp_avg_sq"):
            state[name] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
    step = local_part(torch.as_tensor(state["step"]))
    if step is not state["step"] or step.device != parameter.device or step.dtype != torch.float32:
        state["step"] = step.to(parameter.device, torch.float32)
    return state
