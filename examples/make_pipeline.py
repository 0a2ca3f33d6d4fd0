"""Write a folder with a pipeline of random weights, offline: SD3.5, Flux Kontext or LTX-2.

    python examples/make_pipeline.py sd3 runs/tiny-sd3                    a few MB, images of 64 pixels: tests, dry runs
    python examples/make_pipeline.py sd3 runs/medium-sd3 --size medium    SD3.5 Medium's shapes, 7 GB in bf16: a GPU
    python examples/make_pipeline.py kontext runs/tiny-kontext            an image editor; --size full has 25 GB
    python examples/make_pipeline.py ltx2 runs/tiny-ltx2                  2 MB, videos of 64 pixels; full: 45 GB

What is written loads as the real weights do, through the pipeline's own ``from_pretrained``. The images mean nothing,
but they vary with the noise and the prompt. The large sizes have the transformer and the VAE of the published models,
and text encoders of the real widths with a few of their layers; their tokenizers are the small ones. Parts are made and
written one after the other: `sd3 --size medium` needs some 9 GB of memory, `ltx2 --size full` 40 GB.
"""

import argparse
import json
import math
from importlib import import_module
from pathlib import Path
from types import ModuleType

import torch
from diffusers.models.embeddings import PatchEmbed
from torch import nn

from quiet import quiet

# Modules with PIPELINE, the class; MODULES, its parts' classes; SIZES, specs and dtypes; EXTRA, the rest of the index;
# and parts(spec), what makes each part.
KINDS = {"sd3": "backbones.sd3_shapes", "kontext": "backbones.flux_shapes", "ltx2": "backbones.ltx2_shapes"}


def make(folder: Path, kind: str = "sd3", size: str = "tiny", seed: int = 0, left_out: tuple[str, ...] = ()) -> Path:
    """Write the pipeline to ``folder`` and return it, as one that was saved without the parts ``left_out``.

    Raises ``ValueError`` for an unknown kind or size and for a folder that holds something else.
    """
    shapes = shapes_of(kind)
    if size not in shapes.SIZES:
        raise ValueError(f"size must be one of {tuple(shapes.SIZES)}, got {size!r}")
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()) and not (folder / "model_index.json").is_file():
        raise ValueError(f"{folder} holds other files: give an empty or a new folder")
    spec, dtype = shapes.SIZES[size]
    generator = torch.Generator().manual_seed(seed)
    for name, build in shapes.parts(spec).items():
        if name in left_out:
            continue
        part = build()
        if isinstance(part, nn.Module):
            part = materialise(part, dtype, generator)
        with quiet("diffusers", "transformers"):
            part.save_pretrained(folder / name)
        del part
    write_index(folder, shapes, left_out)
    return folder


def write_index(folder: Path, shapes: ModuleType, left_out: tuple[str, ...] = ()) -> None:
    """model_index.json, written last: a folder with an index is complete."""
    modules = {name: [None, None] if name in left_out else kind for name, kind in shapes.MODULES.items()}
    text = json.dumps({"_class_name": shapes.PIPELINE, **modules, **shapes.EXTRA}, indent=2)
    (folder / "model_index.json").write_text(text + "\n", encoding="utf-8")


def shapes_of(kind: str) -> ModuleType:
    """The module that knows the parts of a kind of pipeline."""
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {tuple(KINDS)}, got {kind!r}")
    return import_module(KINDS[kind])


@torch.no_grad()
def materialise(model: nn.Module, dtype: torch.dtype, generator: torch.Generator) -> nn.Module:
    """Give a model on the meta device weights of ``dtype``: matrices and tables normal with variance 1 / inputs,
    norms 1, biases small, positions as their class computes them, latents' means small and deviations near 1."""
    # Not the classes' own ``to``, which warns about parts that they load in fp32.
    nn.Module.to(model, dtype).to_empty(device="cpu")
    if hasattr(model, "tie_weights"):
        model.tie_weights()
    for module in model.modules():
        for name, weight in module.named_parameters(recurse=False):
            if weight.ndim > 1:
                inputs = 1 if isinstance(module, nn.Embedding) else weight[0].numel()
                weight.normal_(0, 1 / math.sqrt(inputs), generator=generator)
            elif name == "bias":
                weight.normal_(0, 0.1, generator=generator)
            else:
                weight.fill_(1)
        for name, buffer in module.named_buffers(recurse=False):
            if name in ("latents_mean", "latents_std"):
                buffer.normal_(float(name == "latents_std"), 0.1, generator=generator)
    patches = getattr(model, "pos_embed", None)
    if isinstance(patches, PatchEmbed):
        config = model.config
        width, size = config.num_attention_heads * config.attention_head_dim, config.sample_size
        own = PatchEmbed(size, size, config.patch_size, 1, width, pos_embed_max_size=config.pos_embed_max_size)
        patches.pos_embed.copy_(own.pos_embed)
    return model


def main() -> None:
    """Parse the command line and write the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=list(KINDS))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", default="tiny")
    parser.add_argument("--without", nargs="+", default=[], help="as a pipeline that was saved without these parts")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    try:
        folder = make(arguments.folder, arguments.kind, arguments.size, arguments.seed, tuple(arguments.without))
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"{folder}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
