"""What the configurations of a pipeline's parts say of its samples; no weight is needed for it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from diffusers.configuration_utils import ConfigMixin
from diffusers.pipelines.flux.pipeline_flux_kontext import calculate_shift

from prompts.prompt import Prompt

from .solvers import Schedule

# Options of the scheduler that Schedule has no name for.
_OTHER_TIMES = (
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
    "invert_sigmas",
    "stochastic_sampling",
)


@dataclass(frozen=True)
class Part:
    """A part of a pipeline that diffusers defines: its class, and its configuration with the class's defaults."""

    kind: type
    config: Mapping[str, Any]


# By their names in the pipeline: "transformer", "vae", "scheduler".
Parts = Mapping[str, Part]


@dataclass(frozen=True)
class Plan:
    """What a model makes under some settings; subclasses know which sizes single prompts have.

    Attributes:
        latent_shape: of one sample, without the batch.
        schedule: where the times of a rollout lie.
    """

    latent_shape: tuple[int, ...]
    schedule: Schedule

    def latent_shape_of(self, prompt: Prompt) -> tuple[int, ...]:
        """The shape of this prompt's samples; ``ValueError`` for a prompt that the model cannot serve."""
        return self.latent_shape


def loaded_parts(pipeline: DiffusionPipeline) -> Parts:
    """The parts of a loaded pipeline."""
    return {
        name: Part(type(part), part.config)
        for name, part in pipeline.components.items()
        if isinstance(part, ConfigMixin)
    }


def image_factor(parts: Parts) -> int:
    """Pixels per latent along a side, of a VAE of images (8 where it has four blocks)."""
    return 2 ** (len(parts["vae"].config["block_out_channels"]) - 1)


def schedule_by_tokens(scheduler: Part, tokens: int, advice: str) -> Schedule:
    """The schedule of calls of Flux's and LTX-2's pipelines for samples of ``tokens`` tokens.

    With ``use_dynamic_shifting`` μ grows linearly with the tokens between the ends that the scheduler gives, and the
    shift is e^μ (μ itself if ``time_shift_type`` is "linear"); else it is the scheduler's.

    Raises ``ValueError`` for a scheduler of another kind, whose message ends in ``advice``: the scheduler to take.
    """
    config = scheduler.config
    other = [name for name in _OTHER_TIMES if config.get(name)]
    if not issubclass(scheduler.kind, FlowMatchEulerDiscreteScheduler) or other or config["shift"] is None:
        raise ValueError(
            f"the scheduler {scheduler.kind.__name__}{' with ' + ', '.join(other) if other else ''} has times that are "
            f"not known here: give the pipeline a {advice}"
        )
    shift = config["shift"]
    if config["use_dynamic_shifting"]:
        ends = (config[name] for name in ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift"))
        mu = calculate_shift(tokens, *ends)
        shift = mu if config["time_shift_type"] == "linear" else math.exp(mu)
    return Schedule(shift, whole=True, terminal=config["shift_terminal"])
