"""What Flux Kontext's configurations say: which sizes it edits, and where the times of its rollouts lie."""

from dataclasses import dataclass

from prompts.pictures import SOURCE, picture_size, shown
from prompts.prompt import Prompt

from .flux_sizes import Size, nearest, offered
from .plan import Parts, Plan, image_factor, schedule_by_tokens
from .saved_pipeline import check_multiple
from .settings import ModelSettings

_SCHEDULER = (
    "FlowMatchEulerDiscreteScheduler with use_dynamic_shifting=True, base_shift=0.5 and max_shift=1.15, as Flux "
    "Kontext has"
)


@dataclass(frozen=True)
class KontextPlan(Plan):
    """``latent_shape`` is the square's; a prompt's is that of its source image.

    Attributes:
        sizes: those that an image may have, in pixels.
        factor: pixels per latent along a side; a token has two.
    """

    sizes: tuple[Size, ...]
    factor: int

    def latent_shape_of(self, prompt: Prompt) -> tuple[int, ...]:
        """Channels, height, width for the prompt's source image; ``ValueError`` without one that can be served."""
        value = prompt.metadata.get(SOURCE)
        if not isinstance(value, str):
            raise ValueError(
                f"the prompt {prompt.text[:80]!r} has no source image: Flux Kontext edits images, so give it prompts "
                f'of a .jsonl file with {{"prompt": ..., "{SOURCE}": path}} on each line'
            )
        try:
            width, height = nearest(picture_size(value), self.sizes, 2 * self.factor)
        except ValueError as error:
            raise ValueError(f"the source image of {prompt.text[:80]!r}, {shown(value)}: {error}") from error
        return (self.latent_shape[0], height // self.factor, width // self.factor)


def plan(parts: Parts, settings: ModelSettings) -> KontextPlan:
    """For squares of ``settings.resolution`` pixels a side, 0: of the images that its VAE was trained on (1024).

    Raises ``ValueError`` for a resolution that the patches do not fit, a transformer and a VAE that do not belong
    together, a scheduler of another kind.
    """
    vae, factor = parts["vae"].config, image_factor(parts)
    inputs, channels = parts["transformer"].config["in_channels"], vae["latent_channels"]
    if inputs != 4 * channels:
        raise ValueError(
            f"the transformer of {settings.name} takes {inputs} channels, and 2 x 2 patches of its VAE's {channels} "
            f"have {4 * channels}: the two do not belong together"
        )
    side, step = settings.resolution or vae["sample_size"], 2 * factor
    check_multiple(side, step)
    return KontextPlan(
        latent_shape=(channels, side // factor, side // factor),
        # Those of the source do not count.
        schedule=schedule_by_tokens(parts["scheduler"], (side // step) ** 2, _SCHEDULER),
        sizes=tuple(offered(side, step)),
        factor=factor,
    )
