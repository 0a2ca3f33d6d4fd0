"""The parts of a Stable Diffusion 3.5 pipeline in two sizes, without weights."""

from collections.abc import Callable

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from transformers import CLIPTextModelWithProjection

from .random_networks import CLIP_VOCABULARY, REAL_CLIP, REAL_T5, REAL_VAE, clip, on_meta, t5, vae
from .tokenizers import clip_tokenizer, t5_tokenizer

# transformer/config.json and text_encoder*/config.json of stabilityai/stable-diffusion-3.5-medium.
MEDIUM = {
    "transformer": {
        "sample_size": 128,
        "num_layers": 24,
        "attention_head_dim": 64,
        "num_attention_heads": 24,
        "joint_attention_dim": 4096,
        "caption_projection_dim": 1536,
        "pooled_projection_dim": 2048,
        "pos_embed_max_size": 384,
        "dual_attention_layers": tuple(range(13)),
    },
    "vae": REAL_VAE,
    "clip": REAL_CLIP,
    "clip_2": {"hidden_size": 1280, "num_hidden_layers": 32, "num_attention_heads": 20, "hidden_act": "gelu"},
    "clip_vocabulary": CLIP_VOCABULARY,
    "t5": REAL_T5,
}
TINY = {
    "transformer": {
        "sample_size": 8,
        "num_layers": 3,
        "attention_head_dim": 16,
        "num_attention_heads": 4,
        "joint_attention_dim": 80,
        "caption_projection_dim": 64,
        "pooled_projection_dim": 56,
        "pos_embed_max_size": 8,
        "dual_attention_layers": (0, 1),
    },
    "vae": {"block_out_channels": (16, 16, 32, 32), "layers_per_block": 1, "norm_num_groups": 8},
    "clip": {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "hidden_act": "quick_gelu"},
    "clip_2": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "hidden_act": "gelu"},
    "clip_vocabulary": 1024,
    "t5": {"d_model": 80, "d_ff": 96, "num_layers": 2, "num_heads": 2, "d_kv": 16, "vocab_size": 512},
}

SIZES = {"tiny": (TINY, torch.float32), "medium": (MEDIUM, torch.bfloat16)}
PIPELINE = "StableDiffusion3Pipeline"
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
EXTRA = {"image_encoder": [None, None], "feature_extractor": [None, None]}


def parts(spec: dict) -> dict[str, Callable[[], object]]:
    """What makes each part of :data:`MEDIUM` or :data:`TINY`; networks are made on the meta device."""
    words = spec["clip_vocabulary"]
    return {
        "tokenizer": lambda: clip_tokenizer(1024),
        "tokenizer_2": lambda: clip_tokenizer(1024),
        "tokenizer_3": lambda: t5_tokenizer(512),
        "scheduler": lambda: FlowMatchEulerDiscreteScheduler(shift=3.0),
        "text_encoder": lambda: clip(CLIPTextModelWithProjection, words, **spec["clip"]),
        "text_encoder_2": lambda: clip(CLIPTextModelWithProjection, words, **spec["clip_2"]),
        "text_encoder_3": lambda: t5(**spec["t5"]),
        "vae": lambda: vae(8 * spec["transformer"]["sample_size"], 1.5305, 0.0609, **spec["vae"]),
        "transformer": lambda: on_meta(
            lambda: SD3Transformer2DModel(
                patch_size=2, in_channels=16, out_channels=16, qk_norm="rms_norm", **spec["transformer"]
            )
        ),
    }
