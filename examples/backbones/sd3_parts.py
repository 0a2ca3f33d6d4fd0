"""Loading a Stable Diffusion 3 pipeline: what is checked first, and which sizes it can make."""

import torch
from diffusers import StableDiffusion3Pipeline
from torch import nn

from . import saved_pipeline
from .settings import ModelSettings

ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
TOKENIZERS = ("tokenizer", "tokenizer_2", "tokenizer_3")
_NEEDED = ("transformer", "vae", "scheduler", *ENCODERS[:2], *TOKENIZERS[:2])
_MOST_TOKENS = 512
_HINT = " (only text_encoder_3 with tokenizer_3, the T5, may be left out, as null in model_index.json)"


def load_pipeline(settings: ModelSettings, device: torch.device) -> StableDiffusion3Pipeline:
    """The pipeline ``settings.name``, a hub id or a folder, on the CPU, as :func:`saved_pipeline.load_frozen` has it.

    Raises:
        ValueError: settings that this model or device cannot serve, a folder that lacks a part.
        ImportError: a missing package, with the command that installs it.
    """
    saved_pipeline.check_settings(settings, device, _MOST_TOKENS)
    pipeline = saved_pipeline.load_frozen(StableDiffusion3Pipeline, settings, _check_parts(settings.name))
    _check_schedule(pipeline)
    return pipeline


def latent_side(pipeline: StableDiffusion3Pipeline, resolution: int) -> int:
    """Side of the latents for square images of ``resolution`` pixels, 0: the model's own.

    Raises ``ValueError`` where the patches do not fit, or where there are more of them than positions.
    """
    config, factor = pipeline.transformer.config, pipeline.vae_scale_factor
    if resolution == 0:
        return config.sample_size
    step = factor * config.patch_size
    saved_pipeline.check_multiple(resolution, step)
    most = config.pos_embed_max_size * step
    if resolution > most:
        raise ValueError(f"model.resolution must be at most {most}, where this model's positions end, got {resolution}")
    return resolution // factor


def fingerprint(pipeline: StableDiffusion3Pipeline, settings: ModelSettings) -> str:
    """What a prompt's embedding depends on beside its text; see :func:`saved_pipeline.fingerprint`."""
    return saved_pipeline.fingerprint(pipeline, settings, TOKENIZERS, ENCODERS)


def encoders(pipeline: StableDiffusion3Pipeline) -> list[nn.Module]:
    """The text encoders that there are."""
    return [encoder for name in ENCODERS if (encoder := getattr(pipeline, name)) is not None]


def _check_parts(name: str) -> set[str]:
    """The parts of a T5 that the pipeline was saved without."""
    known = {*_NEEDED, *ENCODERS, *TOKENIZERS}
    present = saved_pipeline.parts_of(name, known)
    needed = {*_NEEDED, "tokenizer_3"} if "text_encoder_3" in present else {*_NEEDED}
    saved_pipeline.check_parts(name, needed, present, _HINT)
    return known - present


def _check_schedule(pipeline: StableDiffusion3Pipeline) -> None:
    config = pipeline.scheduler.config
    if config.get("shift") is None or config.get("use_dynamic_shifting"):
        raise ValueError(
            f"the scheduler {type(pipeline.scheduler).__name__} has no fixed shift: give the pipeline a "
            "FlowMatchEulerDiscreteScheduler with shift=3.0 and use_dynamic_shifting=False, as SD3 has"
        )
