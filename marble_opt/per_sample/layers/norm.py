"""Normalisations within a sample: y = x̂ · weight + bias."""

from collections.abc import Callable, Collection
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .base import Handler, mix, wide


class NormHandler(Handler):
    """y = x̂ · w + b over the last dimensions: the gradients of row l are Σ_t δ_lt · x̂_lt and Σ_t δ_lt.

    Args:
        normalized: x̂, computed again from the module and x.
    """

    names = frozenset({"weight", "bias"})

    def __init__(self, normalized: Callable[[Any, Tensor], Tensor]) -> None:
        self.normalized = normalized

    def batched(self, module: nn.Module, saved: list[Tensor], output: Tensor) -> bool:
        weight = module.weight if module.weight is not None else module.bias
        return isinstance(weight, Tensor) and output.dim() > weight.dim()

    def contract(
        self,
        module: nn.Module,
        names: Collection[str],
        saved: list[Tensor],
        other: Any,
        grad: Tensor,
        weights: Tensor,
    ) -> dict[str, Tensor]:
        delta, found = wide(grad), {}
        for name in names:
            product = delta * self.normalized(module, saved[0]) if name == "weight" else delta
            found[name] = mix(weights, self._per_row(product, cast(Tensor, getattr(module, name))))
        return found

    def _per_row(self, product: Tensor, parameter: Tensor) -> Tensor:
        return product.reshape(len(product), -1, *parameter.shape).sum(1)


class GroupNormHandler(NormHandler):
    """y = x̂ · w + b with one weight and bias per channel, dimension 1."""

    def batched(self, module: nn.Module, saved: list[Tensor], output: Tensor) -> bool:
        return True

    def _per_row(self, product: Tensor, parameter: Tensor) -> Tensor:
        return product.reshape(*product.shape[:2], -1).sum(2)


def layer_norm(module: nn.LayerNorm, x: Tensor) -> Tensor:
    """(x − mean) / sqrt(variance + ε) over the last dimensions."""
    return F.layer_norm(wide(x), module.normalized_shape, eps=module.eps)


def layer_norm_in_fp32(module: nn.LayerNorm, x: Tensor) -> Tensor:
    """diffusers' FP32LayerNorm: fp64 is rounded too."""
    return F.layer_norm(x.float(), module.normalized_shape, eps=module.eps)


def rms_norm(module: nn.RMSNorm, x: Tensor) -> Tensor:
    """x / sqrt(mean x² + ε) over the last dimensions."""
    eps = torch.finfo(x.dtype).eps if module.eps is None else module.eps
    return F.rms_norm(wide(x), module.normalized_shape, eps=eps)


def rms_norm_of_diffusers(module: Any, x: Tensor) -> Tensor:
    """x / sqrt(mean x² + ε), with the mean in fp32 whatever x is."""
    return wide(x) * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + module.eps)


def group_norm(module: nn.GroupNorm, x: Tensor) -> Tensor:
    """(x − mean) / sqrt(variance + ε) over each group of channels."""
    return F.group_norm(wide(x), module.num_groups, eps=module.eps)


class BatchNormHandler(Handler):
    """Batch statistics mix the samples, so their gradients cannot be told apart: refused in train mode."""

    names = None

    def refuses(self, module: nn.Module, names: Collection[str]) -> str | None:
        if not (module.training or module.running_mean is None):
            return None
        return "normalises over the batch, so no gradient belongs to one sample: call .eval() on it, or use GroupNorm"

    def batched(self, module: nn.Module, saved: list[Tensor], output: Tensor) -> bool:
        return True

    def contract(
        self,
        module: Any,
        names: Collection[str],
        saved: list[Tensor],
        other: Any,
        grad: Tensor,
        weights: Tensor,
    ) -> dict[str, Tensor]:
        delta, found = wide(grad), {}
        for name in names:
            if name == "weight":
                x = wide(saved[0])
                normalized = F.batch_norm(x, module.running_mean, module.running_var, eps=module.eps)
                product = delta * normalized
            else:
                product = delta
            found[name] = mix(weights, product.reshape(*product.shape[:2], -1).sum(2))
        return found
