"""Transformers of video with sound, and what was made of them: LTX, Kandinsky 6, MiniMax H3."""

from typing import Any

import torch
from torch import Tensor, nn

from .case import Batch, Registry

CASES = Registry("transformer")
CHANNELS, FRAMES, SIDE, TEXT, WIDTH = 4, 2, 8, 8, 16
LENGTH = 8
_HEADS: dict[str, Any] = {"num_attention_heads": 2, "attention_head_dim": 8}
_SAME: dict[str, Any] = {"in_channels": CHANNELS, "out_channels": CHANNELS, "num_layers": 2}


def _ltx(batch: Batch) -> dict[str, Any]:
    return {
        "hidden_states": batch.normal(FRAMES * 4, CHANNELS),
        "encoder_hidden_states": batch.normal(TEXT, WIDTH),
        "timestep": 1000 * batch.times(),
        "encoder_attention_mask": batch.ones(TEXT, dtype=torch.bool),
        "num_frames": FRAMES,
        "height": 2,
        "width": 2,
    }


def _ltx2(batch: Batch) -> dict[str, Any]:
    return _ltx(batch) | {
        "audio_hidden_states": batch.normal(5, 3),
        "audio_encoder_hidden_states": batch.normal(TEXT, WIDTH),
        "audio_num_frames": 5,
        "fps": 25.0,
    }


def _kandinsky6(batch: Batch) -> dict[str, Any]:
    channels = 2 * CHANNELS + 1
    return {
        "hidden_states": batch.normal(FRAMES, SIDE, SIDE, channels),
        "encoder_hidden_states": batch.normal(TEXT, WIDTH),
        "pooled_projections": batch.normal(8),
        "timestep": 1000 * batch.times(),
        "audio_hidden_states": batch.normal(6, 3),
    }


def picture_and_sound(model: nn.Module, inputs: dict[str, Any]) -> Tensor:
    """Both outputs of a model of video and sound side by side, [B, -1]."""
    return torch.cat([part.flatten(1) for part in list(model(**inputs, return_dict=False))[:2]], 1)


def _minimax_h3(batch: Batch) -> dict[str, Any]:
    video, audio = 8, 6
    places = torch.zeros(TEXT + audio + video, 3)
    places[:, 0] = torch.arange(len(places))
    kinds = torch.tensor([1] * TEXT + [2] * audio + [0] * video)
    return {
        "hidden_states": batch.normal(video, 16),
        "audio_hidden_states": batch.normal(audio, 6),
        "encoder_hidden_states": batch.normal(TEXT, 8),
        # One time per kind of token, shared by all samples.
        "timestep": torch.rand(2, generator=torch.Generator().manual_seed(0)),
        "timestep_indices": (kinds == 2).long(),
        "token_tags": kinds,
        "position_ids": places,
        "video_indices": torch.arange(TEXT + audio, len(places)),
        "audio_indices": torch.arange(TEXT, TEXT + audio),
        "text_indices": torch.arange(TEXT),
    }


def _refiner(model: nn.Module, inputs: dict[str, Any]) -> Tensor:
    """With rotary embeddings of the right width: an angle of zero, which the caller would compute."""
    tokens = inputs["hidden_states"].shape[1]
    rotary = (torch.ones(1, tokens, WIDTH), torch.zeros(1, tokens, WIDTH))
    output: Tensor = model(**inputs, video_rotary_emb=rotary)[0]
    return output


CASES.add(
    "LTXVideoTransformer3DModel",
    {**_HEADS, **_SAME, "cross_attention_dim": 16, "caption_channels": WIDTH},
    _ltx,
)
CASES.add(
    "LTX2VideoTransformer3DModel",
    {
        **_HEADS,
        **_SAME,
        "cross_attention_dim": 16,
        "audio_in_channels": 3,
        "audio_out_channels": 3,
        "audio_num_attention_heads": 2,
        "audio_attention_head_dim": 4,
        "audio_cross_attention_dim": 8,
        "caption_channels": WIDTH,
        "rope_double_precision": False,
    },
    _ltx2,
    picture_and_sound,
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
CASES.add(
    "Kandinsky6Transformer3DModel",
    {**_KANDINSKY, "in_audio_dim": 3, "out_audio_dim": 3},
    _kandinsky6,
    picture_and_sound,
)
CASES.without["Kandinsky6SRTransformer3DModel"] = "its sparse FlexAttention has no backward on a CPU"
CASES.add(
    "MiniMaxH3Transformer3DModel",
    {
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "hidden_size": 24,
        "num_layers": 2,
        "num_refiner_layers": 1,
        "ffn_dim": 32,
        "in_channels": 4,
        "audio_in_channels": 6,
        "patch_size": (1, 2, 2),
        "text_dim": 8,
        "freq_dim": 8,
        "time_embed_hidden_dim": 24,
        "time_embed_dim": 16,
        "rope_freq_dim": 2,
    },
    _minimax_h3,
    picture_and_sound,
)
CASES.add(
    "SanaWMLTX2RefinerTransformer3DModel",
    {
        "in_channels": 4,
        "out_channels": 4,
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "cross_attention_dim": WIDTH,
        "audio_in_channels": 3,
        "audio_out_channels": 3,
        "audio_num_attention_heads": 2,
        "audio_attention_head_dim": 4,
        "audio_cross_attention_dim": 8,
        "num_layers": 2,
        "caption_channels": WIDTH,
    },
    lambda batch: {
        "hidden_states": batch.normal(LENGTH, 4),
        "encoder_hidden_states": batch.normal(TEXT, WIDTH),
        "timestep": 1000 * batch.times().unsqueeze(1).repeat(1, LENGTH),
        "encoder_attention_mask": batch.ones(TEXT),
    },
    _refiner,
)
