"""Video transformers of the Wan architecture and what was made of it; latents [B, C, T, H, W]."""

from typing import Any

import torch
from torch import Tensor, nn

from .case import Batch, Registry

CASES = Registry("transformer")
CHANNELS, FRAMES, SIDE, TEXT, WIDTH = 4, 2, 8, 5, 16
_WAN: dict[str, Any] = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "in_channels": CHANNELS,
    "out_channels": CHANNELS,
    "text_dim": WIDTH,
    "freq_dim": 32,
    "ffn_dim": 32,
    "num_layers": 2,
    "cross_attn_norm": True,
    "rope_max_seq_len": 32,
}
_NORM = {"qk_norm": "rms_norm_across_heads"}


def _wan(batch: Batch, channels: int = CHANNELS, frames: int = FRAMES) -> dict[str, Any]:
    return {
        "hidden_states": batch.normal(channels, frames, SIDE, SIDE),
        "timestep": batch.steps(),
        "encoder_hidden_states": batch.normal(TEXT, WIDTH),
    }


def _frames_first(batch: Batch) -> dict[str, Any]:
    """AnyFlow: a start and an end time for every frame, and frames before channels."""
    start = 1000 * batch.times().unsqueeze(1).repeat(1, FRAMES)
    return _wan(batch) | {
        "hidden_states": batch.normal(FRAMES, CHANNELS, SIDE, SIDE),
        "timestep": start,
        "r_timestep": start / 2,
    }


def _helios(batch: Batch) -> dict[str, Any]:
    history = {"short": 1, "mid": 2, "long": 4}
    return (
        _wan(batch)
        | {"indices_hidden_states": torch.arange(FRAMES).float().repeat(batch.size, 1)}
        | {f"indices_latents_history_{name}": batch.ones(count) for name, count in history.items()}
        | {f"latents_history_{name}": batch.normal(CHANNELS, count, SIDE, SIDE) for name, count in history.items()}
    )


def _animate(batch: Batch) -> dict[str, Any]:
    frames, face = 4, 16
    return _wan(batch, 2 * CHANNELS + 4, frames + 1) | {
        "encoder_hidden_states_image": batch.normal(TEXT, WIDTH),
        "pose_hidden_states": batch.normal(CHANNELS, frames, SIDE, SIDE),
        "face_pixel_values": batch.normal(3, 13, face, face),
    }


def _animate2(model: nn.Module, inputs: dict[str, Any]) -> Tensor:
    """The reference pass of one sample at a time: lists of one video are what the model takes."""
    from diffusers.models.transformers.transformer_wan_animate_2 import WanAnimate2KVCache

    count = len(inputs["hidden_states"])
    output = model(
        **inputs,
        kv_cache=WanAnimate2KVCache(2),
        kv_cache_mode="extract",
        seq_len=FRAMES * 4,
        offset_grid_sizes=torch.tensor([[FRAMES, 2, 2]] * count),
    )
    return torch.stack(list(output[0]))


def _animate2_inputs(batch: Batch) -> dict[str, Any]:
    return {
        "hidden_states": batch.normals(16, FRAMES, 4, 4),
        "timestep": 1000 * batch.times(),
        "encoder_hidden_states": batch.normals(TEXT, 32),
        "condition_latents": batch.normals(20, FRAMES, 4, 4),
        "encoder_hidden_states_image": batch.normal(4, 1280),
    }


CASES.add("WanTransformer3DModel", {**_WAN, **_NORM}, _wan)
CASES.add("SkyReelsV2Transformer3DModel", {**_WAN, **_NORM}, _wan)
CASES.add("ChronoEditTransformer3DModel", {**_WAN, **_NORM, "rope_temporal_skip_len": 8}, _wan)
CASES.add(
    "WanVACETransformer3DModel",
    {**_WAN, **_NORM, "vace_layers": [0], "vace_in_channels": 3 * CHANNELS},
    lambda batch: _wan(batch) | {"control_hidden_states": batch.normal(3 * CHANNELS, FRAMES, SIDE, SIDE)},
)
CASES.add(
    "WanAnimateTransformer3DModel",
    {
        **_WAN,
        **_NORM,
        "in_channels": 2 * CHANNELS + 4,
        "latent_channels": CHANNELS,
        "image_dim": WIDTH,
        "motion_encoder_channel_sizes": {"4": 16, "8": 16, "16": 16},
        "motion_encoder_size": 16,
        "motion_style_dim": 8,
        "motion_dim": 4,
        "motion_encoder_dim": 16,
        "face_encoder_hidden_dim": 16,
        "face_encoder_num_heads": 2,
        "inject_face_latents_blocks": 2,
    },
    _animate,
)
CASES.add(
    "WanAnimate2Transformer3DModel",
    {
        "text_len": 16,
        "in_dim": 36,
        "dim": 32,
        "ffn_dim": 32,
        "freq_dim": 32,
        "text_dim": 32,
        "out_dim": 16,
        "num_heads": 2,
        "num_layers": 2,
        "use_img_emb": True,
    },
    _animate2_inputs,
    _animate2,
)
CASES.add("AnyFlowTransformer3DModel", {**_WAN, "gate_value": 0.25, "deltatime_type": "r"}, _frames_first)
CASES.add(
    "HeliosTransformer3DModel",
    {
        **{name: value for name, value in _WAN.items() if name != "rope_max_seq_len"},
        **_NORM,
        "rope_dim": (4, 4, 4),
        "has_multi_term_memory_patch": True,
        "guidance_cross_attn": True,
        "zero_history_timestep": True,
        "is_amplify_history": False,
    },
    _helios,
)
CASES.add(
    "SanaVideoTransformer3DModel",
    {
        "in_channels": CHANNELS,
        "out_channels": CHANNELS,
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "num_layers": 2,
        "num_cross_attention_heads": 2,
        "cross_attention_head_dim": 12,
        "cross_attention_dim": 24,
        "caption_channels": WIDTH,
        "sample_size": SIDE,
        "patch_size": (1, 2, 2),
        "rope_max_seq_len": 32,
        **_NORM,
    },
    _wan,
)
CASES.without["AnyFlowFARTransformer3DModel"] = "its FlexAttention has no backward on a CPU"
