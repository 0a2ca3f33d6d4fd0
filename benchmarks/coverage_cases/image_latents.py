"""Image transformers that take latents [B, C, H, W]: SD3, DiT, PixArt, Sana, CogView and others."""

from typing import Any

import torch

from .case import Batch, Registry

CASES = Registry("transformer")
SIDE, TEXT = 8, 5
_SMALL: dict[str, Any] = {
    "sample_size": SIDE,
    "patch_size": 2,
    "in_channels": 4,
    "num_layers": 2,
    "attention_head_dim": 8,
    "num_attention_heads": 2,
}
_ADA_NORM: dict[str, Any] = {
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "num_embeds_ada_norm": 8,
    "norm_elementwise_affine": False,
}


def _latents(batch: Batch, width: int = 8, channels: int = 4) -> dict[str, Any]:
    return {
        "hidden_states": batch.normal(channels, SIDE, SIDE),
        "encoder_hidden_states": batch.normal(TEXT, width),
        "timestep": batch.steps(),
    }


def _sizes(batch: Batch) -> dict[str, Any]:
    size = batch.rows(8.0 * SIDE, 8.0 * SIDE)
    return {"original_size": size, "target_size": size, "crop_coords": batch.rows(0.0, 0.0)}


def _hunyuan_dit(batch: Batch) -> dict[str, Any]:
    return {
        "hidden_states": batch.normal(4, SIDE, SIDE),
        "encoder_hidden_states": batch.normal(4, 8),
        "text_embedding_mask": batch.ones(4),
        "encoder_hidden_states_t5": batch.normal(4, 8),
        "text_embedding_mask_t5": batch.ones(4),
        "timestep": batch.steps().float(),
        "image_meta_size": batch.rows(1024.0, 1024.0, 16.0, 16.0, 0.0, 0.0),
        "style": torch.zeros(batch.size, dtype=torch.long),
        "image_rotary_emb": [torch.ones(1, 8), torch.zeros(1, 8)],
    }


CASES.add(
    "SD3Transformer2DModel",
    {
        **_SMALL,
        "caption_projection_dim": 16,
        "joint_attention_dim": 12,
        "pooled_projection_dim": 10,
        "out_channels": 4,
        "pos_embed_max_size": 8,
        "dual_attention_layers": (0,),
        "qk_norm": "rms_norm",
    },
    lambda batch: _latents(batch, 12) | {"pooled_projections": batch.normal(10)},
)
CASES.add(
    "AuraFlowTransformer2DModel",
    {
        "sample_size": SIDE,
        "patch_size": 2,
        "in_channels": 4,
        "num_mmdit_layers": 1,
        "num_single_dit_layers": 1,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "caption_projection_dim": 16,
        "joint_attention_dim": 12,
        "out_channels": 4,
        "pos_embed_max_size": 64,
    },
    lambda batch: _latents(batch, 12) | {"timestep": batch.times()},
)
CASES.add(
    "DiTTransformer2DModel",
    {**_SMALL, **_ADA_NORM, "out_channels": 4, "norm_type": "ada_norm_zero"},
    lambda batch: {
        "hidden_states": batch.normal(4, SIDE, SIDE),
        "timestep": batch.steps(),
        "class_labels": batch.integers(8),
    },
)
CASES.add(
    "PixArtTransformer2DModel",
    {
        **_SMALL,
        **_ADA_NORM,
        "out_channels": 4,
        "cross_attention_dim": 16,
        "caption_channels": 8,
        "norm_type": "ada_norm_single",
        "use_additional_conditions": False,
    },
    lambda batch: _latents(batch) | {"added_cond_kwargs": {"aspect_ratio": None, "resolution": None}},
)
CASES.add(
    "SanaTransformer2DModel",
    {
        **_SMALL,
        "patch_size": 1,
        "out_channels": 4,
        "num_cross_attention_heads": 2,
        "cross_attention_head_dim": 8,
        "cross_attention_dim": 16,
        "caption_channels": 8,
    },
    _latents,
)
CASES.add(
    "HunyuanDiT2DModel",
    {
        **_SMALL,
        "cross_attention_dim": 8,
        "cross_attention_dim_t5": 8,
        "pooled_projection_dim": 4,
        "hidden_size": 16,
        "text_len": 4,
        "text_len_t5": 4,
        "activation_fn": "gelu-approximate",
    },
    _hunyuan_dit,
)
_COGVIEW: dict[str, Any] = {
    "patch_size": 2,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 2,
    "attention_head_dim": 8,
    "num_attention_heads": 2,
    "text_embed_dim": 8,
    "time_embed_dim": 8,
    "condition_dim": 4,
}
CASES.add(
    "CogView3PlusTransformer2DModel",
    {**_COGVIEW, "pos_embed_max_size": 8, "sample_size": SIDE},
    lambda batch: _latents(batch) | _sizes(batch),
)
CASES.add("CogView4Transformer2DModel", _COGVIEW, lambda batch: _latents(batch) | _sizes(batch))
CASES.add(
    "GlmImageTransformer2DModel",
    {**_COGVIEW, "prior_vq_quantizer_codebook_size": 64},
    lambda batch: (
        _latents(batch)
        | {
            "prior_token_id": batch.integers(64, (SIDE // 2) ** 2),
            "prior_token_drop": torch.zeros(batch.size, dtype=torch.bool),
            "target_size": batch.rows(8.0 * SIDE, 8.0 * SIDE),
            "crop_coords": batch.rows(0.0, 0.0),
        }
    ),
)
