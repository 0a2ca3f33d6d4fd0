"""Networks that pipelines have in common, without weights: for pipelines of random weights."""

from collections.abc import Callable
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import nn
from transformers import CLIPTextConfig, T5Config, T5EncoderModel

from .tokenizers import clip_tokenizer

# vae/config.json and text_encoder*/config.json of the published SD3.5 and Flux pipelines; the T5 has two of 24 layers.
REAL_VAE = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "norm_num_groups": 32}
REAL_CLIP = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "hidden_act": "quick_gelu"}
REAL_T5 = {"d_model": 4096, "d_ff": 10240, "num_layers": 2, "num_heads": 64, "d_kv": 64, "vocab_size": 32128}
CLIP_VOCABULARY = 49408


def on_meta(build: Callable[[], nn.Module]) -> nn.Module:
    """What ``build`` makes, on the meta device."""
    with torch.device("meta"):
        return build()


def clip(
    kind: Callable[[CLIPTextConfig], nn.Module], vocabulary: int, hidden_size: int, **options: object
) -> nn.Module:
    """A CLIP text encoder of the class ``kind`` that takes the tokens of ``clip_tokenizer(1024)``."""
    tokenizer = clip_tokenizer(1024)
    config = CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=hidden_size,
        intermediate_size=4 * hidden_size,
        projection_dim=hidden_size,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **options,
    )
    return on_meta(lambda: kind(config))


def t5(**options: Any) -> nn.Module:
    """A T5 v1.1 encoder."""
    return on_meta(lambda: T5EncoderModel(T5Config(feed_forward_proj="gated-gelu", dropout_rate=0.0, **options)))


def vae(sample_size: int, scaling_factor: float, shift_factor: float, **options: Any) -> nn.Module:
    """An ``AutoencoderKL`` of 16 latent channels and four levels, for images of ``sample_size`` pixels."""
    return on_meta(
        lambda: AutoencoderKL(
            latent_channels=16,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            sample_size=sample_size,
            scaling_factor=scaling_factor,
            shift_factor=shift_factor,
            force_upcast=True,
            use_quant_conv=False,
            use_post_quant_conv=False,
            **options,
        )
    )
