"""Loading an LTX-2 pipeline: what is checked first, and what its parts say about latents, sound and times."""

import math

import torch
from diffusers import LTX2Pipeline
from diffusers.pipelines.ltx2.pipeline_ltx2 import calculate_shift
from torch import nn

from . import saved_pipeline
from .ltx2_latents import Grid, VideoShape
from .settings import ModelSettings
from .solvers import Schedule

RESOLUTION = 512
_ENCODERS = ("text_encoder", "connectors")
_NEEDED = ("transformer", "vae", "audio_vae", "vocoder", "scheduler", "tokenizer", *_ENCODERS)
_MOST_TOKENS = 1024
_OTHER_SIGMAS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "invert_sigmas")
_PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")
_VIDEO, _HEARING = ("attn1", "attn2"), ("audio_to_video_attn",)
_SOUND = ("audio_attn1", "audio_attn2", "video_to_audio_attn")


def load_pipeline(settings: ModelSettings, device: torch.device) -> LTX2Pipeline:
    """The pipeline ``settings.name``, a hub id or a folder, on the CPU: frozen, in evaluation mode, in
    ``settings.precision``; the video VAE in fp32.

    Raises:
        ValueError: settings that this model or device cannot serve, a folder that lacks a part, a part of another kind,
            parts that do not fit.
        ImportError: a missing package, with the command that installs it.
    """
    saved_pipeline.check_settings(settings, device, _MOST_TOKENS)
    saved_pipeline.check_parts(settings.name, _NEEDED, saved_pipeline.parts_of(settings.name, _NEEDED))
    pipeline = saved_pipeline.load_frozen(LTX2Pipeline, settings)
    _check_parts(pipeline)
    _check_tokens(pipeline, settings.max_tokens)
    return pipeline


def encoders(pipeline: LTX2Pipeline) -> list[nn.Module]:
    """What a prompt goes through: Gemma, then the connectors."""
    return [getattr(pipeline, name) for name in _ENCODERS]


def fingerprint(pipeline: LTX2Pipeline, settings: ModelSettings) -> str:
    """What a prompt's entry depends on beside its text; see :func:`saved_pipeline.fingerprint`."""
    own = saved_pipeline.fingerprint(pipeline, settings, ("tokenizer",), _ENCODERS)
    return f"{own} {settings.audio == 'isolated'}"


def lora_targets(audio: str) -> tuple[str, ...]:
    """Attention projections that take part: of the video, of its hearing unless ``audio`` is "isolated", and of the
    sound where it is "trained". They are matched from a dot on: "attn1.to_q" is not "audio_attn1.to_q"."""
    kinds = {"isolated": _VIDEO, "frozen": (*_VIDEO, *_HEARING), "trained": (*_VIDEO, *_HEARING, *_SOUND)}[audio]
    return tuple(f"{kind}.{name}" for kind in kinds for name in _PROJECTIONS)


def grid_of(pipeline: LTX2Pipeline) -> Grid:
    """How the pipeline's VAE divides videos. Where it pads by reflection, it needs two latents per side."""
    return Grid(
        channels=pipeline.transformer.config.in_channels,
        space=pipeline.vae_spatial_compression_ratio,
        time=pipeline.vae_temporal_compression_ratio,
        least=2 if pipeline.vae.config.decoder_spatial_padding_mode == "reflect" else 1,
    )


def audio_shape(pipeline: LTX2Pipeline, frames: int, frame_rate: float) -> tuple[int, int]:
    """Tokens and values per token of the sound of ``frames`` frames, as the pipeline has them.

    Raises ``ValueError`` for a video that is shorter than a token.
    """
    spectra_per_second = pipeline.audio_sampling_rate / pipeline.audio_hop_length
    length = round(frames / frame_rate * (spectra_per_second / pipeline.audio_vae_temporal_compression_ratio))
    if length < 1:
        raise ValueError(
            f"model.frames = {frames} at model.frame_rate = {frame_rate:g} are too short for any sound: take more "
            "frames, a lower frame rate, or model.audio=isolated"
        )
    return length, pipeline.transformer.config.audio_in_channels


def schedule_of(pipeline: LTX2Pipeline, video: VideoShape) -> Schedule:
    """The times of the pipeline's scheduler for videos of this shape, sound included.

    Raises ``ValueError`` for a scheduler whose times are of another kind.
    """
    config = pipeline.scheduler.config
    others = [name for name in _OTHER_SIGMAS if config.get(name)]
    dynamic = config.get("use_dynamic_shifting")
    if config.get("shift") is None or others or (dynamic and config.get("time_shift_type") != "exponential"):
        raise ValueError(
            f"the times of {type(pipeline.scheduler).__name__} ({', '.join(others) or 'its shift'}) are not of LTX-2's "
            "kind: give the pipeline a FlowMatchEulerDiscreteScheduler with use_dynamic_shifting=True and "
            "time_shift_type='exponential'"
        )
    shift = config.shift
    if dynamic:
        length = config.get("base_image_seq_len", 1024), config.get("max_image_seq_len", 4096)
        ends = config.get("base_shift", 0.95), config.get("max_shift", 2.05)
        shift = math.exp(calculate_shift(math.prod(video[1:]), *length, *ends))
    return Schedule(shift, whole=True, terminal=config.get("shift_terminal"))


def _check_parts(pipeline: LTX2Pipeline) -> None:
    config = pipeline.transformer.config
    if (config.patch_size, config.patch_size_t) != (1, 1):
        raise ValueError(f"the transformer has patches of {config.patch_size}: only one latent per token is supported")
    if pipeline.vae.config.timestep_conditioning:
        raise ValueError("the VAE decodes with a time of its own (timestep_conditioning): LTX-2's has none, take that")
    audio, bins = (
        pipeline.audio_vae.config,
        pipeline.audio_vae.config.mel_bins // pipeline.audio_vae_mel_compression_ratio,
    )
    for kind, inputs, made in (
        ("", config.in_channels, pipeline.vae.config.latent_channels),
        ("audio ", config.audio_in_channels, audio.latent_channels * bins),
    ):
        if inputs != made:
            raise ValueError(
                f"the transformer takes {inputs} {kind}channels, and the latents of the {kind}VAE have {made}: the two "
                "do not belong together"
            )


def _check_tokens(pipeline: LTX2Pipeline, tokens: int) -> None:
    """The connectors fill a prompt up with a fixed number of registers, repeated."""
    config = pipeline.connectors.config
    registers = [config.video_connector_num_learnable_registers, config.audio_connector_num_learnable_registers]
    step = math.lcm(*(number for number in registers if number))
    if tokens % step:
        below = tokens // step * step
        fitting = f"{below} or {below + step}" if below else str(step)
        raise ValueError(f"model.max_tokens = {tokens}: its connectors need multiples of {step}, take {fitting}")
