"""What LTX-2's configurations say: of sizes, sound and times, and which layers get LoRA."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from diffusers.models.autoencoders.autoencoder_kl_ltx2_audio import LATENT_DOWNSAMPLE_FACTOR

from prompts.prompt import Prompt

from .ltx2_latents import Grid, Joint, VideoShape
from .plan import Part, Parts, Plan, schedule_by_tokens
from .settings import ModelSettings
from .solvers import Schedule

RESOLUTION = 512
# Of a prompt's metadata: the number of frames and [width, height] in pixels, in place of the settings'. Plain "frames"
# and "size" may be in people's data and mean something else.
FRAMES, SIZE = "video_frames", "video_size"
_SCHEDULER = (
    "FlowMatchEulerDiscreteScheduler with use_dynamic_shifting=True and time_shift_type='exponential', as LTX-2 has"
)
_PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")
_VIDEO, _HEARING = ("attn1", "attn2"), ("audio_to_video_attn",)
_SOUND = ("audio_attn1", "audio_attn2", "video_to_audio_attn")


@dataclass(frozen=True)
class LTX2Plan(Plan):
    """``latent_shape`` is that of the settings' videos; where there is sound, the length of the vector.

    Attributes:
        settings: of the model; ``resolution`` is the side of a square video, 0: 512 pixels.
        grid: how the VAE divides videos.
        joint: video and sound, where that is sampled.
    """

    settings: ModelSettings
    grid: Grid
    joint: Joint | None

    def latent_shape_of(self, prompt: Prompt) -> tuple[int, ...]:
        facts = prompt.metadata
        if FRAMES not in facts and SIZE not in facts:
            return self.latent_shape
        side = self.settings.resolution or RESOLUTION
        size, where = facts.get(SIZE, [side, side]), f"the prompt {prompt.text[:60]!r} has "
        if isinstance(size, str) or not isinstance(size, Sequence) or len(size) != 2:
            raise ValueError(f"{where}{SIZE} = {size!r}: give [width, height] in pixels")
        names = (f"{where}{FRAMES}", f"{where}{SIZE} {[*size]}, a side")
        shape = self.grid.shape(facts.get(FRAMES, self.settings.frames), size[0], size[1], names)
        if self.joint is not None and shape != self.joint.video:
            raise ValueError(
                f"{where}{FRAMES} or a {SIZE} of its own, which model.audio={self.settings.audio} cannot serve: set "
                "model.audio=isolated, or the same size for all by model.frames and model.resolution"
            )
        return self.latent_shape if self.joint is not None else shape


def plan(parts: Parts, settings: ModelSettings) -> LTX2Plan:
    """For videos of the settings' frames and resolution.

    Raises ``ValueError`` for frames, a resolution or ``max_tokens`` that the model cannot serve, a video too short for
    sound, parts of another kind or that do not fit.
    """
    _check_parts(parts)
    _check_tokens(parts["connectors"], settings.max_tokens)
    grid, side = grid_of(parts), settings.resolution or RESOLUTION
    video = grid.shape(settings.frames, side, side, ("model.frames", "model.resolution"))
    joint = None if settings.audio == "isolated" else Joint(video, audio_shape(parts, settings))
    shape = video if joint is None else joint.shape
    return LTX2Plan(shape, _schedule(parts["scheduler"], video), settings, grid, joint)


def lora_targets(audio: str) -> tuple[str, ...]:
    """Attention projections that take part: of the video, of its hearing unless ``audio`` is "isolated", and of the
    sound where it is "trained". They are matched from a dot on: "attn1.to_q" is not "audio_attn1.to_q"."""
    kinds = {"isolated": _VIDEO, "frozen": (*_VIDEO, *_HEARING), "trained": (*_VIDEO, *_HEARING, *_SOUND)}[audio]
    return tuple(f"{kind}.{name}" for kind in kinds for name in _PROJECTIONS)


def grid_of(parts: Parts) -> Grid:
    """How the VAE divides videos. Where it pads by reflection, it needs two latents per side."""
    vae = parts["vae"].config

    def ratio(name: str, patch: str) -> int:
        return vae[f"{name}_compression_ratio"] or vae[patch] * 2 ** sum(vae["spatio_temporal_scaling"])

    return Grid(
        channels=parts["transformer"].config["in_channels"],
        space=ratio("spatial", "patch_size"),
        time=ratio("temporal", "patch_size_t"),
        least=2 if vae["decoder_spatial_padding_mode"] == "reflect" else 1,
    )


def audio_shape(parts: Parts, settings: ModelSettings) -> tuple[int, int]:
    """Tokens and values per token of the sound of the settings' videos, as the pipeline has them.

    Raises ``ValueError`` for a video that is shorter than a token.
    """
    audio = parts["audio_vae"].config
    per_second = audio["sample_rate"] / audio["mel_hop_length"] / LATENT_DOWNSAMPLE_FACTOR
    length = round(settings.frames / settings.frame_rate * per_second)
    if length < 1:
        raise ValueError(
            f"model.frames = {settings.frames} at model.frame_rate = {settings.frame_rate:g} are too short for any "
            "sound: take more frames, a lower frame rate, or model.audio=isolated"
        )
    return length, parts["transformer"].config["audio_in_channels"]


def _schedule(scheduler: Part, video: VideoShape) -> Schedule:
    """The times of the pipeline's scheduler for videos of this shape, sound included."""
    kind = scheduler.config.get("time_shift_type")
    if scheduler.config.get("use_dynamic_shifting") and kind != "exponential":
        raise ValueError(f"LTX-2's times are not shifted by {kind!r}: give the pipeline a {_SCHEDULER}")
    return schedule_by_tokens(scheduler, math.prod(video[1:]), _SCHEDULER)


def _check_parts(parts: Parts) -> None:
    transformer, vae, audio = (parts[name].config for name in ("transformer", "vae", "audio_vae"))
    if (transformer["patch_size"], transformer["patch_size_t"]) != (1, 1):
        raise ValueError(
            f"the transformer has patches of {transformer['patch_size']}: only one latent per token is supported"
        )
    if vae["timestep_conditioning"]:
        raise ValueError("the VAE decodes with a time of its own (timestep_conditioning): LTX-2's has none, take that")
    for kind, inputs, made in (
        ("", transformer["in_channels"], vae["latent_channels"]),
        (
            "audio ",
            transformer["audio_in_channels"],
            audio["latent_channels"] * (audio["mel_bins"] // LATENT_DOWNSAMPLE_FACTOR),
        ),
    ):
        if inputs != made:
            raise ValueError(
                f"the transformer takes {inputs} {kind}channels, and the latents of the {kind}VAE have {made}: the two "
                "do not belong together"
            )


def _check_tokens(connectors: Part, tokens: int) -> None:
    """The connectors fill a prompt up with a fixed number of registers, repeated."""
    registers = (connectors.config[f"{stream}_connector_num_learnable_registers"] for stream in ("video", "audio"))
    step = math.lcm(*(number for number in registers if number))
    if tokens % step:
        below = tokens // step * step
        fitting = f"{below} or {below + step}" if below else str(step)
        raise ValueError(f"model.max_tokens = {tokens}: its connectors need multiples of {step}, take {fitting}")
