"""A backbone whose prompts may carry a preference ω between rewards (ParetoSlider, arXiv 2604.20816)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE
from torch import Tensor

from marble_opt.preferences import PreferenceConditioning, install
from prompts.prompt import Prompt

from .interface import Backbone, Conditioning

# Of a prompt's metadata, a list of M numbers, and of a conditioning, [B, M].
PREFERENCE = "preference"


class PreferredBackbone(Backbone):
    """``backbone`` with ω given to its network: a prompt's ``metadata["preference"]`` becomes part of its conditioning.

    A prompt without one gets the centre (1/M, …, 1/M).

    Args:
        backbone: the model; conditionings are installed on its transformer.
        size: M.
        current: returns the conditioning of the weights in use, ``None`` while the pretrained model runs, which gets
            no ω.
        saved: returns the conditioning that belongs to an adapter, to be saved beside it.
    """

    def __init__(
        self,
        backbone: Backbone,
        size: int,
        current: Callable[[], PreferenceConditioning | None],
        saved: Callable[[str], PreferenceConditioning],
    ) -> None:
        self.backbone, self.size, self.current, self.saved = backbone, size, current, saved
        self.transformer, self.lora_targets = backbone.transformer, backbone.lora_targets
        self.schedule = backbone.schedule

    @property
    def latent_shape(self) -> tuple[int, ...]:
        return self.backbone.latent_shape

    def latent_shape_of(self, prompt: Prompt) -> tuple[int, ...]:
        return self.backbone.latent_shape_of(prompt)

    @property
    def tokens(self) -> int:
        return self.backbone.tokens

    def trained(self, latents: Tensor) -> Tensor:
        return self.backbone.trained(latents)

    def times(self, steps: int, solver: str) -> Tensor:
        return self.backbone.times(steps, solver)

    def encode(self, prompts: Sequence[Prompt]) -> Conditioning:
        centre = [1 / self.size] * self.size
        omega = torch.tensor([[*prompt.metadata.get(PREFERENCE, centre)] for prompt in prompts], dtype=torch.float32)
        return {**self.backbone.encode(prompts), PREFERENCE: omega.to(self.device)}

    def unconditional(self, conditioning: Mapping[str, Tensor]) -> Conditioning:
        """The backbone's own, with the same ω: guidance is then over what the prompt says alone."""
        return {**self.backbone.unconditional(_without(conditioning)), PREFERENCE: conditioning[PREFERENCE]}

    def velocity(self, x: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        plain = _without(conditioning)
        current = self.current()
        if current is None:
            return self.backbone.velocity(x, t, plain)
        with current.preference(conditioning[PREFERENCE]):
            return self.backbone.velocity(x, t, plain)

    def decode(self, latents: Tensor) -> Tensor:
        return self.backbone.decode(latents)

    def save_lora(self, folder: Path, adapter: str, write: bool = True) -> None:
        """The LoRA and, beside it, the conditioning; :func:`load_preferred` reads both."""
        self.backbone.save_lora(folder, adapter, write)
        if write:
            self.saved(adapter).save_pretrained(folder)


def _without(conditioning: Mapping[str, Tensor]) -> Conditioning:
    """What the backbone itself reads."""
    return {name: tensor for name, tensor in conditioning.items() if name != PREFERENCE}


def preferring(prompt: Prompt, omega: Sequence[float] | Tensor, **facts: Any) -> Prompt:
    """``prompt`` with the preference ω [M], and whatever other facts."""
    values = omega.tolist() if isinstance(omega, Tensor) else [*omega]
    metadata: Mapping[str, Any] = {**prompt.metadata, PREFERENCE: values, **facts}
    return replace(prompt, metadata=metadata)


def load_preferred(backbone: Backbone, folder: str | Path) -> PreferredBackbone:
    """A fresh ``backbone`` with the LoRA and the conditioning that ``save_lora`` wrote to ``folder``.

    The rewards' names are ``result.current().rewards``. Raises ``ValueError`` for a folder without a conditioning.
    """
    conditioning = PreferenceConditioning.from_pretrained(folder).float().to(backbone.device).requires_grad_(False)
    transformer: Any = backbone.transformer
    transformer.load_lora_adapter(str(folder), prefix="transformer", weight_name=LORA_WEIGHT_NAME_SAFE)
    for name, weight in transformer.named_parameters():
        if ".lora_" in name:
            weight.data = weight.data.float()
    install(transformer, conditioning)
    return PreferredBackbone(backbone, len(conditioning.rewards), lambda: conditioning, lambda adapter: conditioning)
