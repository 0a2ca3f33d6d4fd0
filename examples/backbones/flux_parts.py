"""Loading a Flux Kontext pipeline: what is checked first, and where the times of its rollouts lie."""

import math

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxKontextPipeline
from diffusers.pipelines.flux.pipeline_flux_kontext import calculate_shift
from torch import nn

from . import saved_pipeline
from .settings import ModelSettings
from .solvers import Schedule

ENCODERS = ("text_encoder", "text_encoder_2")
TOKENIZERS = ("tokenizer", "tokenizer_2")
_NEEDED = ("transformer", "vae", "scheduler", *ENCODERS, *TOKENIZERS)
_MOST_TOKENS = 512
# Options of the scheduler that Schedule has no name for.
_OTHER_SIGMAS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "invert_sigmas")


def load_pipeline(settings: ModelSettings, device: torch.device) -> FluxKontextPipeline:
    """The pipeline ``settings.name``, a hub id or a folder, on the CPU, as :func:`saved_pipeline.load_frozen` has it.

    Raises:
        ValueError: settings that this device cannot serve, a folder that lacks a part, parts that do not fit.
        ImportError: a missing package, with the command that installs it.
    """
    saved_pipeline.check_settings(settings, device, _MOST_TOKENS)
    saved_pipeline.check_parts(settings.name, _NEEDED, saved_pipeline.parts_of(settings.name, _NEEDED))
    pipeline = saved_pipeline.load_frozen(FluxKontextPipeline, settings)
    inputs, channels = pipeline.transformer.config.in_channels, pipeline.vae.config.latent_channels
    if inputs != 4 * channels:
        raise ValueError(
            f"the transformer of {settings.name} takes {inputs} channels, and 2 x 2 patches of its VAE's {channels} "
            f"have {4 * channels}: the two do not belong together"
        )
    return pipeline


def schedule_of(pipeline: FluxKontextPipeline, tokens: int) -> Schedule:
    """The schedule of the pipeline's own calls for images of ``tokens`` tokens (those of the source not counted).

    With ``use_dynamic_shifting`` μ grows linearly with the tokens, 1.15 at 4096, and the shift is e^μ (μ itself if
    ``time_shift_type`` is "linear"); else it is the scheduler's.

    Raises ``ValueError`` for a scheduler of another kind.
    """
    scheduler = pipeline.scheduler
    config = scheduler.config
    other = [name for name in (*_OTHER_SIGMAS, "stochastic_sampling") if config.get(name)]
    if not isinstance(scheduler, FlowMatchEulerDiscreteScheduler) or other:
        raise ValueError(
            f"the scheduler {type(scheduler).__name__}{' with ' + ', '.join(other) if other else ''} has times that "
            "are not known here: give the pipeline a FlowMatchEulerDiscreteScheduler with use_dynamic_shifting=True, "
            "base_shift=0.5 and max_shift=1.15, as Flux Kontext has"
        )
    if not config.use_dynamic_shifting:
        return Schedule(scheduler.shift, whole=True, terminal=config.shift_terminal)
    ends = (config.base_image_seq_len, config.max_image_seq_len, config.base_shift, config.max_shift)
    mu = calculate_shift(tokens, *ends)
    shift = mu if config.time_shift_type == "linear" else math.exp(mu)
    return Schedule(shift, whole=True, terminal=config.shift_terminal)


def fingerprint(pipeline: FluxKontextPipeline, settings: ModelSettings) -> str:
    """What a prompt's embedding depends on beside its text; see :func:`saved_pipeline.fingerprint`."""
    return saved_pipeline.fingerprint(pipeline, settings, TOKENIZERS, ENCODERS)


def encoders(pipeline: FluxKontextPipeline) -> list[nn.Module]:
    """The text encoders."""
    return [getattr(pipeline, name) for name in ENCODERS]
