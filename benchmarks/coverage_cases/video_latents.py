"""Video transformers on latents [B, C, T, H, W]: CogVideoX, Latte, Cosmos, Mochi and others."""

from typing import Any

import torch

from .case import Batch, Registry

CASES = Registry("transformer")
CHANNELS, FRAMES, SIDE, TEXT, WIDTH = 4, 2, 8, 8, 16
_HEADS: dict[str, Any] = {"num_attention_heads": 2, "attention_head_dim": 8}
_SAME: dict[str, Any] = {"in_channels": CHANNELS, "out_channels": CHANNELS, "num_layers": 2}


def _video(batch: Batch, width: int = WIDTH, channels: int = CHANNELS, frames: int = FRAMES) -> dict[str, Any]:
    return {
        "hidden_states": batch.normal(channels, frames, SIDE, SIDE),
        "encoder_hidden_states": batch.normal(TEXT, width),
        "timestep": batch.steps(),
    }


def _frames_first(batch: Batch) -> dict[str, Any]:
    return _video(batch, 8) | {"hidden_states": batch.normal(FRAMES, CHANNELS, SIDE, SIDE)}


_COGVIDEO: dict[str, Any] = {
    **_HEADS,
    **_SAME,
    "time_embed_dim": 4,
    "text_embed_dim": 8,
    "sample_width": SIDE,
    "sample_height": SIDE,
    "sample_frames": 5,
    "patch_size": 2,
    "temporal_compression_ratio": 4,
    "max_text_seq_length": TEXT,
}
CASES.add("CogVideoXTransformer3DModel", _COGVIDEO, _frames_first)
CASES.add(
    "ConsisIDTransformer3DModel",
    {
        **_COGVIDEO,
        "cross_attn_interval": 1,
        "is_train_face": True,
        "cross_attn_dim_head": 4,
        "cross_attn_num_heads": 1,
        "LFE_id_dim": 2,
        "LFE_vit_dim": 2,
        "LFE_depth": 5,
        "LFE_dim_head": 8,
        "LFE_num_heads": 2,
        "LFE_num_id_token": 1,
        "LFE_num_querie": 1,
        "LFE_output_dim": 10,
        "LFE_ff_mult": 1,
        "LFE_num_scale": 1,
    },
    lambda batch: _frames_first(batch) | {"id_vit_hidden": [batch.normal(2, 2)], "id_cond": batch.normal(2)},
)
CASES.add(
    "AllegroTransformer3DModel",
    {
        **_HEADS,
        **_SAME,
        "cross_attention_dim": 16,
        "sample_width": SIDE,
        "sample_height": SIDE,
        "sample_frames": FRAMES,
        "caption_channels": 8,
    },
    lambda batch: _video(batch, 8),
)
CASES.add(
    "LatteTransformer3DModel",
    {
        **_HEADS,
        **_SAME,
        "sample_size": SIDE,
        "patch_size": 2,
        "caption_channels": 8,
        "cross_attention_dim": 16,
        "attention_bias": True,
        "activation_fn": "gelu-approximate",
        "num_embeds_ada_norm": 1000,
        "norm_type": "ada_norm_single",
        "norm_elementwise_affine": False,
        "video_length": FRAMES,
    },
    lambda batch: _video(batch, 8) | {"enable_temporal_attentions": True},
)
CASES.add(
    "CosmosTransformer3DModel",
    {
        **_SAME,
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "mlp_ratio": 2,
        "text_embed_dim": WIDTH,
        "adaln_lora_dim": 4,
        "max_size": (4, 32, 32),
        "patch_size": (1, 2, 2),
        "rope_scale": (2.0, 1.0, 1.0),
        "concat_padding_mask": False,
        "extra_pos_embed_type": "learnable",
    },
    lambda batch: (
        _video(batch)
        | {
            "attention_mask": batch.ones(TEXT),
            "fps": 30,
        }
    ),
)
CASES.add(
    "EasyAnimateTransformer3DModel",
    {
        **_SAME,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "mmdit_layers": 1,
        "patch_size": 2,
        "sample_height": SIDE,
        "sample_width": SIDE,
        "text_embed_dim": WIDTH,
        "time_embed_dim": 8,
        "time_position_encoding_type": "3d_rope",
    },
    _video,
)
CASES.add(
    "MochiTransformer3DModel",
    {
        **_HEADS,
        "num_layers": 2,
        "patch_size": 2,
        "pooled_projection_dim": 16,
        "in_channels": CHANNELS,
        "text_embed_dim": WIDTH,
        "time_embed_dim": 4,
        "max_sequence_length": TEXT,
    },
    lambda batch: _video(batch) | {"encoder_attention_mask": batch.ones(TEXT, dtype=torch.bool)},
)
CASES.add(
    "MotifVideoTransformer3DModel",
    {
        "in_channels": 2 * CHANNELS + 1,
        "out_channels": CHANNELS,
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "num_layers": 1,
        "num_single_layers": 1,
        "num_decoder_layers": 1,
        "patch_size": 1,
        "patch_size_t": 1,
        "text_embed_dim": WIDTH,
        "image_embed_dim": 4,
        "rope_axes_dim": (4, 4, 4),
    },
    lambda batch: _video(batch, channels=2 * CHANNELS + 1),
)
