"""Ways to train a model: which parameters, and the adapters that hold them."""

import torch
from torch import Tensor, nn

MODES = {
    "attention": "LoRA on the attention projections",
    "linear": "LoRA on all linear layers",
    "full": "all parameters",
    "adapter": "the parameters of the tuner",
}
RANK = 4
NOISE = 0.05
# Uninitialised memory holds anything.
LARGEST = 100.0


class NothingToTrainError(Exception):
    """A model without the layers that a mode trains."""


def prepare(model: nn.Module, mode: str) -> nn.Module:
    """The model in train mode, with the parameters of ``mode`` trainable and all moved away from their start.

    Zeros that a layer starts with would hide errors behind them.
    """
    if mode == "full":
        model.requires_grad_(True)
    elif mode != "adapter":
        add_lora(model, attention_projections(model) if mode == "attention" else linear_layers(model))
    move(model)
    return model.train()


def trained(model: nn.Module) -> dict[str, Tensor]:
    """The trainable parameters by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def add_lora(model: nn.Module, targets: list[str]) -> None:
    """Freeze the model and put LoRA on the layers ``targets``."""
    from peft import LoraConfig, inject_adapter_in_model

    if not targets:
        raise NothingToTrainError("the model has no such layer")
    model.requires_grad_(False)
    inject_adapter_in_model(LoraConfig(r=RANK, target_modules=targets, init_lora_weights=False), model)


def linear_layers(model: nn.Module) -> list[str]:
    """The paths of all linear layers.

    The output layer of ``torch.nn.MultiheadAttention``, a subclass, is not called as a layer.
    """
    return [path for path, module in model.named_modules() if type(module) is nn.Linear]


def attention_projections(model: nn.Module) -> list[str]:
    """The linear layers inside attention modules, which are told by the names of their classes."""
    inside = [path for path, module in model.named_modules() if path and _attends(module)]
    return [path for path in linear_layers(model) if any(path.startswith(f"{owner}.") for owner in inside)]


def _attends(module: nn.Module) -> bool:
    name = type(module).__name__
    return name.endswith(("Attention", "LiteLA")) or (("Attention" in name or "Attn" in name) and "Block" not in name)


@torch.no_grad()
def move(model: nn.Module, seed: int = 0, scale: float = NOISE) -> None:
    """Add noise to every parameter; what a constructor left uninitialised becomes noise alone."""
    random = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter[~(parameter.abs() < LARGEST)] = 0
            parameter += scale * torch.randn(parameter.shape, generator=random).to(parameter)
