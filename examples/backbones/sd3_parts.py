"""Loading a Stable Diffusion 3 pipeline: what is checked first, and how its parts are stored."""

import hashlib
from pathlib import Path

import torch
from diffusers import DiffusionPipeline, StableDiffusion3Pipeline
from torch import nn

from quiet import quiet

from .settings import ModelSettings

DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
TOKENIZERS = ("tokenizer", "tokenizer_2", "tokenizer_3")
_NEEDED = ("transformer", "vae", "scheduler", *ENCODERS[:2], *TOKENIZERS[:2])
_INSTALL = "pip install diffusers transformers tokenizers sentencepiece"
_MOST_TOKENS = 512


def load_pipeline(settings: ModelSettings, device: torch.device) -> StableDiffusion3Pipeline:
    """The pipeline ``settings.name``, a hub id or a folder, on the CPU: frozen, in evaluation mode, in
    ``settings.precision``; the VAE in fp32.

    The VAE's configuration asks for fp32 (``force_upcast``; the pipeline itself does not look at it) and DiffusionNFT's
    code keeps its weights so. At 84 M parameters and one pass per image that costs little, and nothing can overflow.

    Raises:
        ValueError: settings that this model or device cannot serve, a folder that lacks a part.
        ImportError: a missing package, with the command that installs it.
    """
    _check_settings(settings, device)
    left_out = dict.fromkeys(_check_parts(settings.name))
    try:
        with quiet():
            pipeline = StableDiffusion3Pipeline.from_pretrained(
                settings.name,
                torch_dtype={"default": DTYPES[settings.precision], "vae": torch.float32},
                # diffusers wants to be told what a saved pipeline was saved without.
                **left_out,
            )
    except ImportError as error:
        raise ImportError(f"loading {settings.name} needs a package that is missing: {_INSTALL} ({error})") from error
    except ValueError as error:
        # How transformers says that it found no tokenizer.json and cannot read the sentencepiece model instead.
        if "sentencepiece" not in str(error):
            raise
        raise ImportError(f"the tokenizers of {settings.name} need a package: {_INSTALL} ({error})") from error
    pipeline.set_progress_bar_config(disable=True)
    for part in pipeline.components.values():
        if isinstance(part, nn.Module):
            part.requires_grad_(False).eval()
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
    if resolution % step:
        below = resolution // step * step
        fitting = f"{below} or {below + step}" if below else str(step)
        raise ValueError(
            f"model.resolution must be a multiple of {step} for this model, got {resolution}: use {fitting}"
        )
    most = config.pos_embed_max_size * step
    if resolution > most:
        raise ValueError(f"model.resolution must be at most {most}, where this model's positions end, got {resolution}")
    return resolution // factor


def fingerprint(pipeline: StableDiffusion3Pipeline, settings: ModelSettings) -> str:
    """What embeddings depend on beside the text: a digest of the tokenizers, of the encoders' shapes and of up to 64
    values of each of their weights, of the precision and of ``max_tokens``.

    Taken from what was loaded, it tells models and their revisions apart wherever they lie.
    """
    digest = hashlib.sha256(f"{settings.precision} {settings.max_tokens}".encode())
    for name in TOKENIZERS:
        tokenizer = getattr(pipeline, name)
        if tokenizer is not None:
            digest.update(f"{name} {tokenizer.model_max_length} {sorted(tokenizer.get_vocab().items())}".encode())
    for name in ENCODERS:
        encoder = getattr(pipeline, name)
        for key, weight in () if encoder is None else encoder.state_dict().items():
            values = weight.flatten()
            values = values[:: max(1, values.numel() // 64)][:64].double()
            digest.update(f"{name}.{key} {tuple(weight.shape)} {weight.dtype} {values.tolist()}".encode())
    return digest.hexdigest()


def encoders(pipeline: StableDiffusion3Pipeline) -> list[nn.Module]:
    """The text encoders that there are."""
    return [encoder for name in ENCODERS if (encoder := getattr(pipeline, name)) is not None]


def _check_settings(settings: ModelSettings, device: torch.device) -> None:
    if settings.precision == "fp16" and device.type == "cpu":
        raise ValueError("model.precision fp16 needs a GPU: on a CPU use bf16 or no")
    if settings.max_tokens > _MOST_TOKENS:
        raise ValueError(f"model.max_tokens must be at most {_MOST_TOKENS}, got {settings.max_tokens}")


def _check_parts(name: str) -> set[str]:
    """The parts of a T5 that the pipeline was saved without."""
    index = DiffusionPipeline.load_config(name)
    known = {*_NEEDED, *ENCODERS, *TOKENIZERS}
    present = {part for part in known if (index.get(part) or [None])[0] is not None}
    missing = set(_NEEDED) - present
    if "text_encoder_3" in present:
        missing |= {"tokenizer_3"} - present
    if Path(name).is_dir():
        missing |= {part for part in present if not (Path(name) / part).is_dir()}
    if missing:
        raise ValueError(
            f"{name} lacks {', '.join(sorted(missing))}: save the whole pipeline there with save_pretrained (only "
            "text_encoder_3 with tokenizer_3, the T5, may be left out, as null in model_index.json)"
        )
    return known - present


def _check_schedule(pipeline: StableDiffusion3Pipeline) -> None:
    config = pipeline.scheduler.config
    if config.get("shift") is None or config.get("use_dynamic_shifting"):
        raise ValueError(
            f"the scheduler {type(pipeline.scheduler).__name__} has no fixed shift: give the pipeline a "
            "FlowMatchEulerDiscreteScheduler with shift=3.0 and use_dynamic_shifting=False, as SD3 has"
        )
