"""``torch.nn.Linear``, and with it peft's LoRA matrices."""

from collections.abc import Collection
from typing import Any

from torch import Tensor, nn

from .base import Handler, mix, mix_products, wide


class LinearHandler(Handler):
    """y = x Wᵀ + b with x [L, ..., in]: the gradients of row l are Σ_t δ_lt ⊗ x_lt and Σ_t δ_lt."""

    names = frozenset({"weight", "bias"})
    casts = True
    flattens = True

    def batched(self, module: nn.Module, saved: list[Tensor], output: Tensor) -> bool:
        return output.dim() > 1

    def contract(
        self,
        module: nn.Module,
        names: Collection[str],
        saved: list[Tensor],
        other: Any,
        grad: Tensor,
        weights: Tensor,
    ) -> dict[str, Tensor]:
        rows = grad.shape[0]
        delta, found = grad.reshape(rows, -1, grad.shape[-1]), {}
        if "weight" in names:
            found["weight"] = mix_products(delta, saved[0].reshape(rows, -1, saved[0].shape[-1]), weights)
        if "bias" in names:
            found["bias"] = mix(weights, wide(delta).sum(1))
        return found
