"""Write a folder with a Stable Diffusion 3.5 pipeline of random weights, offline.

    python examples/make_sd3.py runs/tiny-sd3                    a few MB, images of 64 pixels: tests, dry runs
    python examples/make_sd3.py runs/medium-sd3 --size medium    SD3.5 Medium's shapes, 7 GB in bf16: timing on a GPU

What is written loads as the real weights do, through `StableDiffusion3Pipeline.from_pretrained`. The images mean
nothing, but they vary with the noise and the prompt. `medium` has the transformer and the VAE of SD3.5 Medium and text
encoders of the real widths, the T5 with 2 of its 24 layers; its tokenizers are the small ones. Parts are made and
written one after the other: `medium` needs some 9 GB of memory.
"""

import argparse
import json
import math
from pathlib import Path

import torch
from diffusers.models.embeddings import PatchEmbed
from torch import nn

from backbones.sd3_shapes import MEDIUM, TINY, parts
from quiet import quiet

SIZES = {"tiny": (TINY, torch.float32), "medium": (MEDIUM, torch.bfloat16)}
MODULES = {
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["transformers", "CLIPTextModelWithProjection"],
    "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
    "text_encoder_3": ["transformers", "T5EncoderModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "tokenizer_2": ["transformers", "CLIPTokenizer"],
    "tokenizer_3": ["transformers", "T5TokenizerFast"],
    "transformer": ["diffusers", "SD3Transformer2DModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


def make(folder: Path, size: str = "tiny", t5: bool = True, seed: int = 0) -> Path:
    """Write the pipeline to ``folder`` and return it; without ``t5`` as one that was saved without its T5.

    Raises ``ValueError`` for an unknown size and for a folder that holds something else.
    """
    if size not in SIZES:
        raise ValueError(f"size must be one of {tuple(SIZES)}, got {size!r}")
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()) and not (folder / "model_index.json").is_file():
        raise ValueError(f"{folder} holds other files: give an empty or a new folder")
    spec, dtype = SIZES[size]
    generator = torch.Generator().manual_seed(seed)
    left_out = () if t5 else ("text_encoder_3", "tokenizer_3")
    for name, build in parts(spec).items():
        if name in left_out:
            continue
        part = build()
        if isinstance(part, nn.Module):
            part = materialise(part, dtype, generator)
        with quiet():
            part.save_pretrained(folder / name)
        del part
    index = {name: [None, None] if name in left_out else kind for name, kind in MODULES.items()}
    index |= {"image_encoder": [None, None], "feature_extractor": [None, None]}
    text = json.dumps({"_class_name": "StableDiffusion3Pipeline", **index}, indent=2)
    # Written last: a folder with an index is complete.
    (folder / "model_index.json").write_text(text + "\n", encoding="utf-8")
    return folder


@torch.no_grad()
def materialise(model: nn.Module, dtype: torch.dtype, generator: torch.Generator) -> nn.Module:
    """Give a model on the meta device weights of ``dtype``: matrices and tables normal with variance 1 / inputs,
    norms 1, biases small, positions as their class computes them."""
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
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", choices=list(SIZES), default="tiny")
    parser.add_argument("--no-t5", action="store_true", help="as a pipeline that was saved without its T5")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    try:
        folder = make(arguments.folder, arguments.size, not arguments.no_t5, arguments.seed)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"{folder}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
