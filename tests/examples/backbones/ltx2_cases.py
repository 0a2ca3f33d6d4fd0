"""What the tests of the LTX-2 backbone share."""

from pathlib import Path
from typing import Any

import torch
from diffusers import LTX2Pipeline

from backbones.load import load_backbone
from backbones.ltx2 import LTX2Backbone
from backbones.settings import ModelSettings
from prompts.prompt import Prompt

TEXTS = ["two red circles above a blue square", "a white horse"]
PROMPTS = [Prompt(text) for text in TEXTS]
TOKENS, SIDE, FRAMES = 16, 64, 9


def load(folder: Path, **options: Any) -> LTX2Backbone:
    defaults = {"resolution": SIDE, "frames": FRAMES, "max_tokens": TOKENS}
    backbone = load_backbone(ModelSettings(str(folder), **{**defaults, **options}))
    assert isinstance(backbone, LTX2Backbone)
    return backbone


def noise(backbone: LTX2Backbone, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, *backbone.latent_shape, generator=torch.Generator().manual_seed(0))


def load_plain(folder: Path) -> LTX2Pipeline:
    pipeline = LTX2Pipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def call(pipeline: LTX2Pipeline, video: torch.Tensor, audio: torch.Tensor, guidance: float = 1, **options: Any) -> Any:
    """The pipeline's own video and sound from the noise ``video`` [B, C, F, H, W] and ``audio`` [B, L, D].

    It normalises what it is given, so that it is given noise that is not.
    """
    vae, audio_vae = pipeline.vae, pipeline.audio_vae
    return pipeline(
        TEXTS, height=SIDE, width=SIDE, num_frames=FRAMES, max_sequence_length=TOKENS, num_inference_steps=3,
        guidance_scale=guidance, audio_guidance_scale=guidance, stg_scale=0.0, audio_stg_scale=0.0, modality_scale=1.0,
        audio_modality_scale=1.0, guidance_rescale=0.0, audio_guidance_rescale=0.0,
        latents=pipeline._denormalize_latents(video, vae.latents_mean, vae.latents_std),
        audio_latents=pipeline._denormalize_audio_latents(audio, audio_vae.latents_mean, audio_vae.latents_std),
        return_dict=False, **options,
    )  # fmt: skip
