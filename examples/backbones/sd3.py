"""Stable Diffusion 3 and 3.5 behind the backbone interface."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from diffusers import StableDiffusion3Pipeline
from torch import Tensor

from prompts.prompt import Prompt

from .interface import Backbone, Conditioning
from .lora import save_lora
from .offload import visiting
from .prompt_cache import PromptCache
from .saved_pipeline import DTYPES
from .sd3_parts import encoders, fingerprint, latent_side, load_pipeline
from .settings import ModelSettings
from .solvers import Schedule
from .vae_images import decode_images


class SD3Backbone(Backbone):
    """A ``StableDiffusion3Pipeline`` whose transformer is trained.

    Frozen weights are stored in ``settings.precision``, the VAE's in fp32; LoRA weights are whatever the trainer makes
    them. Conditioning is {"sequence": [B, 77 + max_tokens, D], "pooled": [B, P]} (SD3.5: D = 4096, P = 2048) in the
    precision of the encoders. Latents are those of the transformer, the VAE's after shift and scale.

    ``lora_targets`` are those of DiffusionNFT's code. They end in "attn.…", which leaves out ``attn2``, the second
    attention over the image alone that SD3.5 Medium has in its first 13 blocks: so does that code.

    Args:
        pipeline: as :func:`load_pipeline` returns it; its transformer and VAE are moved to ``device``.
        settings: how it was loaded.
        device: where it runs.

    Raises:
        ValueError: a resolution that the model cannot make.
    """

    lora_targets = tuple(
        f"attn.{name}"
        for name in ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
    )

    def __init__(self, pipeline: StableDiffusion3Pipeline, settings: ModelSettings, device: torch.device) -> None:
        side = latent_side(pipeline, settings.resolution)
        self._latent_shape = (pipeline.transformer.config.in_channels, side, side)
        self.pipeline, self.settings = pipeline, settings
        self.dtype = DTYPES[settings.precision]
        self.transformer = pipeline.transformer.to(device)
        self.vae = pipeline.vae.to(device)
        self.schedule = Schedule(pipeline.scheduler.config.shift)
        if settings.tiling:
            self.vae.enable_tiling()
        if settings.checkpointing:
            self.transformer.enable_gradient_checkpointing()
        if not settings.offload_text_encoders:
            for encoder in encoders(pipeline):
                encoder.to(device)
        self.cache = PromptCache(
            self._encode, fingerprint(pipeline, settings), settings.prompt_cache or None, ready=self._encoders_ready
        )

    @classmethod
    def from_pretrained(cls, settings: ModelSettings, device: str | torch.device = "cpu") -> "SD3Backbone":
        """Load ``settings.name``, a hub id or a folder; for errors see :func:`load_pipeline`."""
        device = torch.device(device)
        return cls(load_pipeline(settings, device), settings, device)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of one sample's latents: channels, height, width."""
        return self._latent_shape

    def encode(self, prompts: Sequence[Prompt]) -> Conditioning:
        embeddings = self.cache([prompt.text for prompt in prompts])
        return {name: tensor.to(self.device) for name, tensor in embeddings.items()}

    def velocity(self, x: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            v = self.transformer(
                hidden_states=x.to(self.dtype),
                timestep=1000 * t,
                encoder_hidden_states=conditioning["sequence"],
                pooled_projections=conditioning["pooled"],
                return_dict=False,
            )[0]
        return v.float()

    def decode(self, latents: Tensor) -> Tensor:
        """Images of ``latents``, ``settings.decode_batch`` at a time; see :func:`decode_images`."""
        return decode_images(self.vae, latents, self.settings.decode_batch)

    def save_lora(self, folder: Path, adapter: str, write: bool = True) -> None:
        save_lora(StableDiffusion3Pipeline, self.transformer, folder, adapter, write)

    def _encoders_ready(self) -> AbstractContextManager:
        if not self.settings.offload_text_encoders:
            return nullcontext()
        return visiting(encoders(self.pipeline), self.device)

    @torch.no_grad()
    def _encode(self, texts: list[str]) -> dict[str, Tensor]:
        sequence, _, pooled, _ = self.pipeline.encode_prompt(
            texts,
            None,
            None,
            device=self.device,
            do_classifier_free_guidance=False,
            max_sequence_length=self.settings.max_tokens,
        )
        return {"sequence": sequence, "pooled": pooled}
