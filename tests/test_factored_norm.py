"""Contraction at normalisations within a sample."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers.models.normalization import FP32LayerNorm, RMSNorm
from torch import Tensor, nn

from factored_cases import matches_loop

LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "layer_norm": (lambda: nn.LayerNorm(6), (4, 6)),
    "layer_norm_without_bias": (lambda: nn.LayerNorm(6, bias=False), (6,)),
    "layer_norm_of_two": (lambda: nn.LayerNorm((3, 6), eps=1e-2), (2, 3, 6)),
    "rms_norm": (lambda: nn.RMSNorm(6), (4, 6)),
    "rms_norm_of_two": (lambda: nn.RMSNorm((3, 6), eps=1e-2), (3, 6)),
    "group_norm": (lambda: nn.GroupNorm(2, 6), (6, 3, 2)),
    "group_norm_of_vectors": (lambda: nn.GroupNorm(3, 6, eps=1e-2), (6,)),
    "diffusers_rms_norm": (lambda: RMSNorm(6, eps=1e-6), (4, 6)),
    "diffusers_rms_norm_with_bias": (lambda: RMSNorm(6, eps=1e-3, bias=True), (2, 2, 6)),
    "batch_norm_in_eval": (lambda: nn.BatchNorm2d(6).eval(), (6, 2, 2)),
}


def around(layer: nn.Module, size: int) -> nn.Module:
    """``layer`` between two that make its input and output depend on parameters."""

    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.before, self.layer, self.after = nn.Linear(size, size), layer, nn.Linear(size, size)

        def forward(self, x: Tensor) -> Any:
            return self.after(torch.tanh(self.layer(self.before(x))))

    return Around()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", LAYERS)
def test_equals_the_loop(name: str, dtype: torch.dtype) -> None:
    make, shape = LAYERS[name]
    model = around(make(), shape[-1]).to(dtype)
    # diffusers takes the mean square in fp32: what passes through it in fp64 is rounded, in the loop as in the engine.
    rounds = dtype is torch.float64 and name.startswith("diffusers")
    model.get_submodule("before").requires_grad_(not rounds)
    matches_loop(model, lambda step: model(torch.randn(4, *shape, dtype=dtype)), layers=3 - rounds)


def test_equals_the_loop_for_layer_norm_in_fp32() -> None:
    model = around(FP32LayerNorm(6), 6)
    matches_loop(model, lambda step: model(torch.randn(4, 2, 6)), layers=3)


def test_no_parameters_need_no_handler() -> None:
    model = around(nn.LayerNorm(6, elementwise_affine=False), 6)
    matches_loop(model, lambda step: model(torch.randn(4, 6)), layers=2)


@pytest.mark.parametrize("frozen", ["weight", "bias"])
def test_half_of_a_norm_may_be_frozen(frozen: str) -> None:
    model = around(nn.LayerNorm(6), 6)
    model.get_parameter(f"layer.{frozen}").requires_grad_(False)
    matches_loop(model, lambda step: model(torch.randn(4, 6)), layers=3)
