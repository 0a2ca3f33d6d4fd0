"""The LoRA adapters of one transformer: ``default`` is trained, ``old`` rolls out, ``average`` is evaluated."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from diffusers import SD3Transformer2DModel
from peft import LoraConfig
from torch import Tensor

ADAPTERS = ("default", "old", "average")

TARGETS = [
    f"attn.{name}"
    for name in ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
]


class Adapters:
    """Adds the adapters to ``transformer`` (in place) and freezes everything else.

    Args:
        transformer: a diffusers model with peft support.
        rank: LoRA rank r; α = 2 r, as in the recipe.
        seed: of the Gaussian initialisation. B starts at zero, so the adapted model equals the base.
    """

    def __init__(self, transformer: SD3Transformer2DModel, rank: int, seed: int) -> None:
        self.transformer = transformer
        transformer.requires_grad_(False)
        config = LoraConfig(r=rank, lora_alpha=2 * rank, init_lora_weights="gaussian", target_modules=TARGETS)
        with torch.random.fork_rng(), warnings.catch_warnings():
            # peft warns about what is meant here: several adapters on one model.
            warnings.filterwarnings("ignore", message="Already found a `peft_config`")
            torch.manual_seed(seed)
            for name in ADAPTERS:
                transformer.add_adapter(config, adapter_name=name)
        self.copy("default", "old", 0.0)
        self.copy("default", "average", 0.0)
        transformer.set_adapter("default")

    def parameters(self, name: str) -> dict[str, Tensor]:
        """The weights of one adapter by name, the adapter's own name left out."""
        return {
            key.replace(f".{name}.", "."): weight
            for key, weight in self.transformer.named_parameters()
            if ".lora_" in key and f".{name}." in key
        }

    @torch.no_grad()
    def copy(self, source: str, target: str, decay: float) -> None:
        """target ← decay · target + (1 − decay) · source."""
        weights = self.parameters(source)
        for key, weight in self.parameters(target).items():
            weight.copy_(decay * weight + (1 - decay) * weights[key] if decay else weights[key])

    @contextmanager
    def using(self, name: str | None) -> Iterator[None]:
        """Run the block without gradient under another adapter, or under none: the pretrained model."""
        if name is None:
            self.transformer.disable_adapters()
        else:
            self.transformer.set_adapter(name)
        try:
            with torch.no_grad():
                yield
        finally:
            if name is None:
                self.transformer.enable_adapters()
            self.transformer.set_adapter("default")

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """All adapters' weights."""
        return {name: {k: w.detach().clone() for k, w in self.parameters(name).items()} for name in ADAPTERS}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, dict[str, Tensor]]) -> None:
        """Restore what :meth:`state_dict` returned."""
        for name in ADAPTERS:
            for key, weight in self.parameters(name).items():
                weight.copy_(state[name][key])


def old_decay(step: int) -> float:
    """The recipe's "slow" schedule: old ← η old + (1 − η) θ with η = min(0.001 step, 0.5)."""
    return min(0.001 * step, 0.5)


def average_decay(step: int) -> float:
    """Decay of the evaluated average: min((1 + s) / (10 + s), 0.9)."""
    return min((1 + step) / (10 + step), 0.9)
