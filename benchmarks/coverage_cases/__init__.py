"""The cases of ``benchmarks/coverage.py``: small models with inputs, how they are trained, and how a case is run."""

from . import (
    flux,
    image_language,
    image_latents,
    image_tokens,
    sequences,
    sound,
    tuners,
    unets,
    unets_other,
    video_hunyuan,
    video_latents,
    video_sound,
    video_wan,
)
from .case import Case

_MODULES = (
    flux,
    image_tokens,
    image_latents,
    image_language,
    video_wan,
    video_latents,
    video_hunyuan,
    video_sound,
    sound,
    sequences,
    unets,
    unets_other,
    tuners,
)
CASES: dict[str, Case] = {name: case for module in _MODULES for name, case in module.CASES.items()}
# Family and reason of what has no case.
WITHOUT: dict[str, tuple[str, str]] = {
    name: (module.CASES.family, reason) for module in _MODULES for name, reason in module.CASES.without.items()
}
