"""The tiny model of this repository behind the backbone interface."""

from collections.abc import Sequence
from pathlib import Path

from diffusers import StableDiffusion3Pipeline
from torch import Tensor

from prompts.prompt import Prompt
from tiny.model import CHECKPOINT, TinyModel
from tiny.render import SIZE

from .interface import Backbone, Conditioning
from .lora import save_lora
from .settings import ModelSettings


class TinyBackbone(Backbone):
    """Pixels are its latents; it computes in fp32."""

    lora_targets = tuple(
        f"attn.{name}"
        for name in ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
    )
    latent_shape = (3, SIZE, SIZE)

    def __init__(self, model: TinyModel) -> None:
        self.model = model
        self.transformer = model.transformer

    @classmethod
    def from_pretrained(cls, settings: ModelSettings, device: str = "cpu") -> "TinyBackbone":
        """The shipped checkpoint for the name "tiny", else a folder that ``pretrain.py`` wrote."""
        if settings.precision != "no" or settings.resolution not in (0, SIZE):
            raise ValueError(f"the tiny model computes in fp32 at {SIZE} pixels: leave model.precision and resolution")
        return cls(TinyModel.from_pretrained(CHECKPOINT if settings.name == "tiny" else settings.name).to(device))

    def encode(self, prompts: Sequence[Prompt]) -> Conditioning:
        sequence, pooled = self.model.encode([prompt.text for prompt in prompts])
        return {"sequence": sequence, "pooled": pooled}

    def velocity(self, x: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        return self.model.velocity(x, t, (conditioning["sequence"], conditioning["pooled"]))

    def decode(self, latents: Tensor) -> Tensor:
        return self.model.decode(latents).cpu()

    def save_lora(self, folder: Path, adapter: str, write: bool = True) -> None:
        save_lora(StableDiffusion3Pipeline, self.transformer, folder, adapter, write)
