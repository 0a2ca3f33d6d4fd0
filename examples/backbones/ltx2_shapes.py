"""The parts of an LTX-2 pipeline in two sizes, without weights."""

from collections.abc import Callable

import torch
from diffusers import (
    AutoencoderKLLTX2Audio,
    AutoencoderKLLTX2Video,
    FlowMatchEulerDiscreteScheduler,
    LTX2VideoTransformer3DModel,
)
from diffusers.pipelines.ltx2 import LTX2TextConnectors, LTX2Vocoder
from torch import nn
from transformers import Gemma3Config, Gemma3ForConditionalGeneration

from .random_networks import on_meta
from .tokenizers import gemma_tokenizer

# The video transformer, the VAEs, the connectors and the vocoder are the published ones (19 B), whose values are their
# classes' defaults but for these; the text encoder has Gemma 3 12B's width and two of its 48 layers.
FULL: dict[str, dict] = {
    "transformer": {"rope_type": "split"},
    "connectors": {"text_proj_in_factor": 3, "rope_type": "split"},
    "vae": {},
    "audio_vae": {},
    "vocoder": {},
    "text": {
        "hidden_size": 3840,
        "intermediate_size": 15360,
        "num_hidden_layers": 2,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "sliding_window": 1024,
    },
    "vision": {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 2, "num_attention_heads": 16},
    "tokens": {"mm_tokens_per_image": 4},
}
TINY: dict[str, dict] = {
    "transformer": {
        "in_channels": 8,
        "out_channels": 8,
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "cross_attention_dim": 32,
        "audio_in_channels": 8,
        "audio_out_channels": 8,
        "audio_num_attention_heads": 2,
        "audio_attention_head_dim": 8,
        "audio_cross_attention_dim": 16,
        "num_layers": 2,
        "caption_channels": 24,
        "rope_type": "split",
    },
    "connectors": {
        "caption_channels": 24,
        "text_proj_in_factor": 3,
        "video_connector_num_attention_heads": 2,
        "video_connector_attention_head_dim": 12,
        "video_connector_num_layers": 1,
        "video_connector_num_learnable_registers": 8,
        "audio_connector_num_attention_heads": 2,
        "audio_connector_attention_head_dim": 12,
        "audio_connector_num_layers": 1,
        "audio_connector_num_learnable_registers": 8,
        "rope_type": "split",
    },
    "vae": {
        "latent_channels": 8,
        "block_out_channels": (8, 8, 16, 16),
        "layers_per_block": (1, 1, 1, 1, 1),
        "decoder_block_out_channels": (8, 16, 32),
        "decoder_layers_per_block": (1, 1, 1, 1),
    },
    # Latents of 2 channels and 4 bins: 8 values per token, as many as there are statistics.
    "audio_vae": {"base_channels": 8, "ch_mult": (1, 1, 1), "num_res_blocks": 1, "latent_channels": 2, "mel_bins": 16},
    "vocoder": {
        "in_channels": 32,
        "hidden_channels": 16,
        "upsample_kernel_sizes": [4, 4],
        "upsample_factors": [2, 2],
        "resnet_kernel_sizes": [3],
        "resnet_dilations": [[1]],
    },
    "text": {
        "vocab_size": 768,
        "hidden_size": 24,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "query_pre_attn_scalar": 16,
        "sliding_window": 16,
        "sliding_window_pattern": 2,
    },
    "vision": {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
    "tokens": {"boi_token_index": 765, "eoi_token_index": 766, "image_token_index": 767, "mm_tokens_per_image": 4},
}
VIDEO_VAE = {"decoder_causal": False, "spatial_compression_ratio": 32, "temporal_compression_ratio": 8}
SCHEDULER = {
    "use_dynamic_shifting": True,
    "base_shift": 0.95,
    "max_shift": 2.05,
    "base_image_seq_len": 1024,
    "max_image_seq_len": 4096,
    "shift_terminal": 0.1,
}

SIZES = {"tiny": (TINY, torch.float32), "full": (FULL, torch.bfloat16)}
PIPELINE = "LTX2Pipeline"
MODULES = {
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "vae": ["diffusers", "AutoencoderKLLTX2Video"],
    "audio_vae": ["diffusers", "AutoencoderKLLTX2Audio"],
    "text_encoder": ["transformers", "Gemma3ForConditionalGeneration"],
    "tokenizer": ["transformers", "GemmaTokenizerFast"],
    "connectors": ["ltx2", "LTX2TextConnectors"],
    "transformer": ["diffusers", "LTX2VideoTransformer3DModel"],
    "vocoder": ["ltx2", "LTX2Vocoder"],
}
EXTRA = {"processor": [None, None], "prompt_enhancer": [None, None], "duration_head": [None, None]}


def parts(spec: dict) -> dict[str, Callable[[], object]]:
    """What makes each part of :data:`FULL` or :data:`TINY`; networks are made on the meta device."""
    return {
        "tokenizer": lambda: gemma_tokenizer(768),
        "scheduler": lambda: FlowMatchEulerDiscreteScheduler(**SCHEDULER),
        "text_encoder": lambda: _gemma(spec["text"], spec["vision"], spec["tokens"]),
        "connectors": lambda: on_meta(lambda: LTX2TextConnectors(**spec["connectors"])),
        "vae": lambda: on_meta(lambda: AutoencoderKLLTX2Video(**VIDEO_VAE, **spec["vae"])),
        "audio_vae": lambda: on_meta(lambda: AutoencoderKLLTX2Audio(**spec["audio_vae"])),
        "vocoder": lambda: on_meta(lambda: LTX2Vocoder(**spec["vocoder"])),
        "transformer": lambda: on_meta(lambda: LTX2VideoTransformer3DModel(**spec["transformer"])),
    }


def _gemma(text: dict, vision: dict, tokens: dict) -> nn.Module:
    config = Gemma3Config(
        text_config=text,
        vision_config={"model_type": "siglip_vision_model", "image_size": 28, "patch_size": 14, **vision},
        **tokens,
    )
    return on_meta(lambda: Gemma3ForConditionalGeneration(config))
