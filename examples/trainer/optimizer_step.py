"""One optimizer step, and the norm that its gradient had before it was clipped."""

import math

import torch
from torch import Tensor

import marble_opt


def take_step(
    optimizer: marble_opt.Marble, scaler: "torch.amp.GradScaler | None" = None, probed: bool = False
) -> Tensor | None:
    """Balance, clip and step; returns the norm (0-d, on the device) of the combined gradient, shared terms included.

    Marble clips as it balances and does not keep the norm, so that here it balances unclipped and its limit is applied
    afterwards, by the same function. With ``fused=True`` and under FSDP2 it clips itself: there the norm comes from the
    Gram matrix of a step that has solved on its rows, and is ``None`` for a step between refreshes and for a ``probed``
    one, whose Gram matrix is that of its probes.
    """
    scale = 1.0 if scaler is None else scaler.get_scale()
    if _clips_itself(optimizer, scaler):
        if scaler is not None:
            optimizer.balance()
        _step(optimizer, scaler)
        report = optimizer.report
        return None if probed or report is None or not report.refreshed else report.combined_norm / scale
    norm = _balance_and_clip(optimizer, scale)
    _step(optimizer, scaler)
    return norm / scale


def _step(optimizer: marble_opt.Marble, scaler: "torch.amp.GradScaler | None") -> None:
    if scaler is None:
        optimizer.step()
        return
    scaler.step(optimizer)
    scaler.update()


def _clips_itself(optimizer: marble_opt.Marble, scaler: "torch.amp.GradScaler | None") -> bool:
    """Whether Marble is to clip: where ``.grad`` will not hold the whole combined gradient."""
    fused = optimizer.fused and not optimizer.track_step and scaler is None
    return fused or any(hasattr(p, "placements") for group in optimizer.param_groups for p in group["params"])


def _balance_and_clip(optimizer: marble_opt.Marble, scale: float) -> Tensor:
    limit, optimizer.max_grad_norm = optimizer.max_grad_norm, None
    try:
        optimizer.balance()
    finally:
        optimizer.max_grad_norm = limit
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return torch.nn.utils.clip_grad_norm_(parameters, math.inf if limit is None else limit * scale)
