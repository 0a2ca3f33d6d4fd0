"""The parts of a Flux Kontext pipeline in two sizes, without weights."""

from collections.abc import Callable

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from transformers import CLIPTextModel

from .random_networks import CLIP_VOCABULARY, REAL_CLIP, REAL_T5, REAL_VAE, clip, on_meta, t5, vae
from .tokenizers import clip_tokenizer, t5_tokenizer

# transformer/config.json of black-forest-labs/FLUX.1-Kontext-dev.
FULL = {
    "sample_size": 1024,
    "transformer": {
        "num_layers": 19,
        "num_single_layers": 38,
        "attention_head_dim": 128,
        "num_attention_heads": 24,
        "joint_attention_dim": 4096,
        "pooled_projection_dim": 768,
        "axes_dims_rope": (16, 56, 56),
    },
    "vae": REAL_VAE,
    "clip": REAL_CLIP,
    "clip_vocabulary": CLIP_VOCABULARY,
    "t5": REAL_T5,
}
TINY = {
    "sample_size": 64,
    "transformer": {
        "num_layers": 2,
        "num_single_layers": 2,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 40,
        "pooled_projection_dim": 24,
        "axes_dims_rope": (4, 6, 6),
    },
    "vae": {"block_out_channels": (8, 8, 16, 16), "layers_per_block": 1, "norm_num_groups": 4},
    "clip": {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "hidden_act": "quick_gelu"},
    "clip_vocabulary": 1024,
    "t5": {"d_model": 40, "d_ff": 64, "num_layers": 2, "num_heads": 2, "d_kv": 16, "vocab_size": 512},
}

SIZES = {"tiny": (TINY, torch.float32), "full": (FULL, torch.bfloat16)}
PIPELINE = "FluxKontextPipeline"
MODULES = {
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "text_encoder_2": ["transformers", "T5EncoderModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "tokenizer_2": ["transformers", "T5TokenizerFast"],
    "transformer": ["diffusers", "FluxTransformer2DModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
EXTRA = {"image_encoder": [None, None], "feature_extractor": [None, None]}


def parts(spec: dict) -> dict[str, Callable[[], object]]:
    """What makes each part of :data:`FULL` or :data:`TINY`; networks are made on the meta device."""
    return {
        "tokenizer": lambda: clip_tokenizer(1024),
        "tokenizer_2": lambda: t5_tokenizer(512),
        "scheduler": lambda: FlowMatchEulerDiscreteScheduler(
            shift=3.0, use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15
        ),
        "text_encoder": lambda: clip(CLIPTextModel, spec["clip_vocabulary"], **spec["clip"]),
        "text_encoder_2": lambda: t5(**spec["t5"]),
        "vae": lambda: vae(spec["sample_size"], 0.3611, 0.1159, **spec["vae"]),
        "transformer": lambda: on_meta(
            lambda: FluxTransformer2DModel(patch_size=1, in_channels=64, guidance_embeds=True, **spec["transformer"])
        ),
    }
