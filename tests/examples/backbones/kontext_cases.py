"""Source images and prompts for the Flux Kontext backbone."""

from pathlib import Path
from typing import Any

import torch
from PIL import Image

from backbones.flux_kontext import FluxKontextBackbone
from backbones.load import load_backbone
from backbones.settings import ModelSettings
from prompts.prompt import Prompt

TOKENS = 12
TEXTS = ("make the circle blue", "", "remove the red square")


def load(folder: Path, **options: Any) -> FluxKontextBackbone:
    backbone = load_backbone(ModelSettings(str(folder), max_tokens=TOKENS, **options))
    assert isinstance(backbone, FluxKontextBackbone)
    return backbone


def picture(folder: Path, width: int = 64, height: int = 64, seed: int = 0) -> str:
    """The path of a picture of coarse coloured noise."""
    path = folder / f"{width}-{height}-{seed}.png"
    coarse = torch.randint(256, (4, 4, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    Image.fromarray(coarse.numpy()).resize((width, height), Image.Resampling.BICUBIC).save(path)
    return str(path)


def prompts(folder: Path, width: int = 64, height: int = 64) -> list[Prompt]:
    """One per text, each with a picture of its own."""
    return [Prompt(text, "edits", {"image": picture(folder, width, height, seed)}) for seed, text in enumerate(TEXTS)]


def noise(backbone: FluxKontextBackbone, some: list[Prompt]) -> torch.Tensor:
    shape = backbone.latent_shape_of(some[0])
    return torch.randn(len(some), *shape, generator=torch.Generator().manual_seed(0))
