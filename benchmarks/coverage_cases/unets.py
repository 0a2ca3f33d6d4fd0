"""UNets of Stable Diffusion's kind, for images and videos, two levels each."""

from typing import Any

import torch

from .case import Batch, Registry

CASES = Registry("unet")
CHANNELS, SIDE, FRAMES, TEXT, WIDTH = 4, 8, 2, 4, 8
_LEVELS: dict[str, Any] = {
    "in_channels": CHANNELS,
    "out_channels": CHANNELS,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
}
_CROSS: dict[str, Any] = {**_LEVELS, "cross_attention_dim": WIDTH, "attention_head_dim": 4, "sample_size": SIDE}


def _image(batch: Batch) -> dict[str, Any]:
    return {
        "sample": batch.normal(CHANNELS, SIDE, SIDE),
        "timestep": batch.steps(),
        "encoder_hidden_states": batch.normal(TEXT, WIDTH),
    }


def _video(batch: Batch) -> dict[str, Any]:
    return _image(batch) | {"sample": batch.normal(CHANNELS, FRAMES, SIDE, SIDE)}


def _motion(batch: Batch) -> dict[str, Any]:
    # One text per frame, the frames of a sample side by side.
    return _video(batch) | {"encoder_hidden_states": batch.normal(TEXT, WIDTH).repeat_interleave(FRAMES, 0)}


CASES.add(
    "UNet1DModel",
    {
        "block_out_channels": (8, 8),
        "in_channels": CHANNELS,
        "out_channels": CHANNELS,
        "time_embedding_type": "positional",
        "use_timestep_embedding": True,
        "flip_sin_to_cos": False,
        "freq_shift": 1.0,
        "out_block_type": "OutConv1DBlock",
        "mid_block_type": "MidResTemporalBlock1D",
        "down_block_types": ("DownResnetBlock1D", "DownResnetBlock1D"),
        "up_block_types": ("UpResnetBlock1D",),
        "act_fn": "swish",
    },
    lambda batch: {"sample": batch.normal(CHANNELS, 16), "timestep": batch.steps()},
)
CASES.add(
    "UNet2DModel",
    {
        **_LEVELS,
        "sample_size": SIDE,
        "attention_head_dim": 4,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    },
    lambda batch: {"sample": batch.normal(CHANNELS, SIDE, SIDE), "timestep": batch.steps()},
)
CASES.add(
    "UNet2DConditionModel",
    {
        **_CROSS,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    },
    _image,
)
CASES.add(
    "UNet3DConditionModel",
    {
        **_CROSS,
        "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
        "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
    },
    _video,
)
CASES.add(
    "UNetMotionModel",
    {
        **{name: value for name, value in _CROSS.items() if name != "attention_head_dim"},
        "num_attention_heads": 2,
        "motion_num_attention_heads": 2,
        "motion_max_seq_length": FRAMES,
        "down_block_types": ("CrossAttnDownBlockMotion", "DownBlockMotion"),
        "up_block_types": ("UpBlockMotion", "CrossAttnUpBlockMotion"),
    },
    _motion,
)
CASES.add(
    "UNetSpatioTemporalConditionModel",
    {
        "in_channels": CHANNELS,
        "out_channels": CHANNELS,
        "block_out_channels": (32, 64),
        "layers_per_block": 1,
        "cross_attention_dim": WIDTH,
        "num_attention_heads": 2,
        "sample_size": SIDE,
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 24,
        "down_block_types": ("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        "up_block_types": ("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
    },
    lambda batch: (
        _image(batch)
        | {
            "sample": batch.normal(FRAMES, CHANNELS, SIDE, SIDE),
            "encoder_hidden_states": batch.normal(1, WIDTH),
            "added_time_ids": batch.times().unsqueeze(1) * torch.tensor([6.0, 127.0, 1.0]),
        }
    ),
)
CASES.add(
    "I2VGenXLUNet",
    {
        **_CROSS,
        "attention_head_dim": 4,
        "num_attention_heads": 2,
        "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
        "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
    },
    lambda batch: (
        _video(batch)
        | {
            "fps": batch.integers(16),
            "image_latents": batch.normal(CHANNELS, FRAMES, SIDE, SIDE),
            "image_embeddings": batch.normal(WIDTH),
        }
    ),
)
CASES.without["MotionAdapter"] = "holds motion modules for UNetMotionModel, where they are covered; has no forward"
