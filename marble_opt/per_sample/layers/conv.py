"""``torch.nn.Conv1d`` and ``torch.nn.Conv2d``."""

from collections.abc import Collection
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .base import CHUNK_ELEMENTS, Handler, mix, mix_products, wide


class ConvHandler(Handler):
    """A convolution is a linear map of patches: with x_lt the input under the kernel at place t (Chellapilla et al.
    2006), the gradients of row l are Σ_t δ_lt ⊗ x_lt, group by group, and Σ_t δ_lt.
    """

    names = frozenset({"weight", "bias"})
    casts = True

    def __init__(self, dimensions: int) -> None:
        self.dimensions = dimensions

    def batched(self, module: nn.Module, saved: list[Tensor], output: Tensor) -> bool:
        return output.dim() == self.dimensions + 2

    def contract(
        self,
        module: nn.Module,
        names: Collection[str],
        saved: list[Tensor],
        other: Any,
        grad: Tensor,
        weights: Tensor,
    ) -> dict[str, Tensor]:
        conv = cast("nn.Conv1d | nn.Conv2d", module)
        delta, found = grad.flatten(2), {}
        if "weight" in names:
            per_row = max(conv.weight[0].numel() * delta.shape[2] * conv.groups, conv.weight.numel())
            size = max(1, CHUNK_ELEMENTS // max(1, per_row))
            parts = [slice(start, start + size) for start in range(0, len(delta), size)]
            products = [_products(conv, saved[0][part], delta[part], weights[:, part]) for part in parts]
            found["weight"] = torch.stack(products).sum(0) if len(products) > 1 else products[0]
        if "bias" in names:
            found["bias"] = mix(weights, wide(delta).sum(2))
        return found


def _products(conv: nn.Conv1d | nn.Conv2d, x: Tensor, delta: Tensor, weights: Tensor) -> Tensor:
    left, right = wide(delta), _patches(conv, wide(x))
    if conv.groups == 1:
        products = mix_products(left.mT, right.mT, weights)
    else:
        left, right = left.unflatten(1, (conv.groups, -1)), right.unflatten(1, (conv.groups, -1))
        products = mix(weights, left @ right.mT)
    return products.reshape(len(weights), *conv.weight.shape)


def _patches(conv: nn.Conv1d | nn.Conv2d, x: Tensor) -> Tensor:
    """[L, channels · kernel, places]."""
    # The module's own list, in F.pad's order, which also resolves padding="same".
    padding = conv._reversed_padding_repeated_twice
    x = F.pad(x, padding, "constant" if conv.padding_mode == "zeros" else conv.padding_mode)
    kernel, dilation, stride = tuple(conv.kernel_size), tuple(conv.dilation), tuple(conv.stride)
    if len(kernel) == 1:
        x, kernel, dilation, stride = x.unsqueeze(2), (1, *kernel), (1, *dilation), (1, *stride)
    return F.unfold(x, kernel, dilation=dilation, stride=stride)
