"""HunyuanVideo and Kandinsky 5: text and video in one attention, or in turns."""

from typing import Any

import torch

from .case import Batch, Registry

CASES = Registry("transformer")
CHANNELS, FRAMES, SIDE, TEXT, WIDTH = 4, 2, 8, 8, 16


def _video(batch: Batch, width: int = WIDTH, channels: int = CHANNELS, frames: int = FRAMES) -> dict[str, Any]:
    return {
        "hidden_states": batch.normal(channels, frames, SIDE, SIDE),
        "encoder_hidden_states": batch.normal(TEXT, width),
        "timestep": batch.steps(),
    }


def _hunyuan(batch: Batch, frames: int = FRAMES) -> dict[str, Any]:
    return _video(batch, frames=frames) | {
        "pooled_projections": batch.normal(8),
        "encoder_attention_mask": batch.ones(TEXT),
        "guidance": 1000 * batch.times(),
    }


def _framepack(batch: Batch) -> dict[str, Any]:
    frames, history = 3, {"clean": 2, "history_2x": 2, "history_4x": 8}
    return (
        _hunyuan(batch, frames)
        | {"image_embeds": batch.normal(TEXT, WIDTH), "indices_latents": torch.ones(frames)}
        | {f"latents_{name}": batch.normal(CHANNELS, count, SIDE, SIDE) for name, count in history.items()}
        | {f"indices_latents_{name}": torch.ones(count) for name, count in history.items()}
    )


def _hunyuan15(batch: Batch) -> dict[str, Any]:
    return _video(batch) | {
        "timestep": 1000 * batch.times(),
        "encoder_hidden_states_2": batch.normal(4, 8),
        "encoder_attention_mask": batch.ones(TEXT),
        "encoder_attention_mask_2": batch.ones(4),
        "image_embeds": batch.normal(3, 12),
    }


def _kandinsky5(batch: Batch) -> dict[str, Any]:
    return {
        "hidden_states": batch.normal(FRAMES, SIDE, SIDE, CHANNELS),
        "encoder_hidden_states": batch.normal(TEXT, WIDTH),
        "timestep": 1000 * batch.times(),
        "pooled_projections": batch.normal(8),
        "visual_rope_pos": [torch.arange(FRAMES), torch.arange(SIDE // 2), torch.arange(SIDE // 2)],
        "text_rope_pos": torch.arange(TEXT),
    }


_HUNYUAN: dict[str, Any] = {
    "in_channels": CHANNELS,
    "out_channels": CHANNELS,
    "num_attention_heads": 2,
    "attention_head_dim": 10,
    "num_layers": 1,
    "num_single_layers": 1,
    "num_refiner_layers": 1,
    "patch_size": 2,
    "patch_size_t": 1,
    "guidance_embeds": True,
    "text_embed_dim": WIDTH,
    "pooled_projection_dim": 8,
    "rope_axes_dim": (2, 4, 4),
}
CASES.add("HunyuanVideoTransformer3DModel", _HUNYUAN, _hunyuan)
CASES.add(
    "HunyuanVideoFramepackTransformer3DModel",
    {**_HUNYUAN, "has_image_proj": True, "image_proj_dim": WIDTH, "has_clean_x_embedder": True},
    _framepack,
)
CASES.add(
    "HunyuanVideo15Transformer3DModel",
    {
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "in_channels": CHANNELS,
        "out_channels": CHANNELS,
        "num_layers": 2,
        "num_refiner_layers": 1,
        "mlp_ratio": 2.0,
        "patch_size": 1,
        "text_embed_dim": WIDTH,
        "text_embed_2_dim": 8,
        "image_embed_dim": 12,
        "rope_axes_dim": (2, 2, 4),
        "target_size": 16,
        "task_type": "t2v",
    },
    _hunyuan15,
)
_KANDINSKY: dict[str, Any] = {
    "in_visual_dim": CHANNELS,
    "out_visual_dim": CHANNELS,
    "in_text_dim": WIDTH,
    "in_text_dim2": 8,
    "time_dim": 16,
    "model_dim": 32,
    "ff_dim": 32,
    "num_text_blocks": 1,
    "num_visual_blocks": 2,
    "axes_dims": (4, 6, 6),
}
CASES.add("Kandinsky5Transformer3DModel", _KANDINSKY, _kandinsky5)
