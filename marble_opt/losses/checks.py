"""What all losses check and count."""

import torch
from torch import Tensor


def check_batch(prediction: Tensor, advantages: Tensor, **others: Tensor) -> None:
    """Raise ``ValueError`` unless advantages are [K, B] and all other tensors have the prediction's shape."""
    batch = prediction.shape[0] if prediction.dim() else 0
    if advantages.dim() != 2 or advantages.shape[1] != batch:
        raise ValueError(
            f"advantages must be [K, {batch}] for a prediction of shape {list(prediction.shape)}, "
            f"got {list(advantages.shape)}"
        )
    if torch.isinf(advantages).any():
        raise ValueError("advantages hold inf: use NaN for a reward that does not apply to a sample")
    for name, tensor in others.items():
        if tensor.shape != prediction.shape:
            raise ValueError(f"{name} has shape {list(tensor.shape)}, the prediction {list(prediction.shape)}")


def normalisers(valid: Tensor, counts: Tensor | None) -> Tensor:
    """n_k [K, 1]: the given counts, or the valid samples of this batch; at least 1 where nothing is valid."""
    local = valid.sum(1)
    if counts is None:
        return local.clamp_min(1).unsqueeze(1)
    if counts.shape != local.shape or (counts < local).any():
        raise ValueError(
            f"counts must be [{len(local)}] and at least the valid samples of this batch {local.tolist()} (they "
            f"count the whole optimizer step), got {counts.tolist()}"
        )
    return counts.to(valid.device).clamp_min(1).unsqueeze(1)


def mean_dims(tensor: Tensor) -> Tensor:
    """Mean over everything but the batch, [B]."""
    return tensor.flatten(1).mean(1)


def difference(left: Tensor, right: Tensor) -> Tensor:
    """left − right in fp32 at least: halves are widened before they are subtracted."""
    dtype = torch.promote_types(torch.promote_types(left.dtype, right.dtype), torch.float32)
    return left.to(dtype) - right.to(dtype)
