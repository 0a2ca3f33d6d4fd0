"""Where a diffusion transformer takes the two paths of a conditioning: SD3, Flux and LTX-2."""

import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(eq=False)
class Stage:
    """One block. m(ω) joins the output of ``spot``, which the block multiplies by its gate and adds to its tokens; of
    ``joint`` blocks, whose tokens are the text's followed by the image's, only to the latter.
    """

    block: nn.Module
    spot: nn.Module
    joint: bool = False


@dataclass(eq=False)
class Anatomy:
    """What :func:`marble_opt.preferences.install` puts its hooks on.

    Args:
        width: D.
        source: the module whose output [N, D] takes e(ω). N = B, or B · T for one time per token.
        carrier: the module whose output (the first, if it has several) is the blocks' ``temb`` and takes m(ω) along.
        plain: the size of ``temb`` without m(ω): D, or several D of modulations.
        place: where a block has ``temb`` among its arguments, if it is not called with its name.
        stages: the blocks.
        last: the norm after the blocks if it gets ``temb`` too.
    """

    width: int
    source: nn.Module
    carrier: nn.Module
    plain: int
    place: int
    stages: list[Stage]
    last: nn.Module | None


def find_anatomy(transformer: Any) -> Anatomy:
    """Of diffusers' ``SD3Transformer2DModel``, ``FluxTransformer2DModel`` or ``LTX2VideoTransformer3DModel``, told
    apart by their parts, or of a model with the same.

    Raises:
        ValueError: a part that is missing; single-stream blocks of diffusers < 0.35.
    """
    if hasattr(transformer, "single_transformer_blocks"):
        return _flux(transformer)
    if hasattr(transformer, "time_embed") or hasattr(transformer, "audio_time_embed"):
        return _ltx2(transformer)
    return _sd3(transformer)


def conditioning_width(transformer: nn.Module) -> int:
    """D, the ``width`` of a :class:`PreferenceConditioning` for this transformer: 1536 for SD3.5-M, 3072 for Flux, 4096
    for LTX-2 (the video's width).

    Raises:
        ValueError: a transformer that :func:`install` does not know.
    """
    return find_anatomy(transformer).width


def _sd3(transformer: Any) -> Anatomy:
    _check(transformer, "SD3", ["time_text_embed", "transformer_blocks", "norm_out"], {"transformer_blocks": ["ff"]})
    _need(transformer, "SD3", ["transformer_blocks.0.norm1.linear.weight"])
    return _adaptive(transformer, [Stage(block, block.ff) for block in transformer.transformer_blocks])


def _flux(transformer: Any) -> Anatomy:
    # Linear embedders: models for video with blocks of these names have other ones, and their text comes last.
    own = ["time_text_embed", "transformer_blocks", "norm_out", "x_embedder.weight", "context_embedder.weight"]
    _check(transformer, "Flux", own, {"transformer_blocks": ["ff"], "single_transformer_blocks": ["proj_out"]})
    _need(transformer, "Flux", ["transformer_blocks.0.norm1.linear.weight"])
    double = [Stage(block, block.ff) for block in transformer.transformer_blocks]
    single = [Stage(block, _innermost(block.proj_out), joint=True) for block in transformer.single_transformer_blocks]
    for stage in single:
        names = inspect.signature(type(stage.block).forward).parameters
        if "temb" in names and "encoder_hidden_states" not in names:
            raise ValueError(
                f"{type(stage.block).__name__} takes no encoder_hidden_states, so nothing tells its text tokens from "
                "the image's: install diffusers>=0.35"
            )
    return _adaptive(transformer, double + single)


def _adaptive(transformer: Any, stages: list[Stage]) -> Anatomy:
    """Blocks and the last norm have the time embedding [B, D] as their third and second argument."""
    width = int(transformer.transformer_blocks[0].norm1.linear.weight.shape[1])
    embedding = transformer.time_text_embed
    return Anatomy(width, embedding, embedding, width, 2, stages, transformer.norm_out)


def _ltx2(transformer: Any) -> Anatomy:
    own = ["time_embed.emb", "time_embed.linear.weight", "audio_time_embed", "transformer_blocks", "scale_shift_table"]
    _check(transformer, "LTX-2", own, {"transformer_blocks": ["ff", "audio_ff", "scale_shift_table"]})
    modulation = transformer.time_embed
    plain, width = modulation.linear.weight.shape
    stages = [Stage(block, block.ff) for block in transformer.transformer_blocks]
    return Anatomy(int(width), modulation.emb, modulation, int(plain), 4, stages, None)


def _check(transformer: Any, family: str, own: Iterable[str], blocks: dict[str, list[str]]) -> None:
    _need(transformer, family, own)
    _need(
        transformer,
        family,
        [f"{each}.{i}.{p}" for each in blocks for i in _indices(transformer, each) for p in blocks[each]],
    )
    if not len(transformer.transformer_blocks):
        raise ValueError(f"{_told(transformer, family)} has no blocks")


def _need(transformer: Any, family: str, paths: Iterable[str]) -> None:
    missing = [path for path in paths if _at(transformer, path) is None]
    if missing:
        raise ValueError(f"{_told(transformer, family)} has no {', '.join(missing)}")


def _told(transformer: Any, family: str) -> str:
    return f"{type(transformer).__name__} is not a transformer of SD3, Flux or LTX-2: as {family} it"


def _indices(transformer: Any, name: str) -> range:
    return range(len(getattr(transformer, name)))


def _at(module: Any, path: str) -> Any:
    for name in path.split("."):
        module = getattr(module, name, None)
    return module


def _innermost(module: Any) -> nn.Module:
    """The layer itself under peft's: then adapters may come before or after the hooks."""
    while isinstance(getattr(module, "base_layer", None), nn.Module):
        module = module.base_layer
    found: nn.Module = module
    return found
