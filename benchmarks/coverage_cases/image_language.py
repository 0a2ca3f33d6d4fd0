"""Image transformers that read a language model's states, or are one; latents [B, C, H, W]."""

from typing import Any

import torch

from .case import Batch, Registry

CASES = Registry("transformer")
SIDE, TEXT = 8, 5


def _latents(batch: Batch, width: int = 8) -> dict[str, Any]:
    return {
        "hidden_states": batch.normal(4, SIDE, SIDE),
        "encoder_hidden_states": batch.normal(TEXT, width),
        "timestep": batch.steps(),
    }


def _hidream(batch: Batch) -> dict[str, Any]:
    return {
        "hidden_states": batch.normal(4, SIDE, SIDE),
        "encoder_hidden_states_t5": batch.normal(TEXT, 8),
        # Layers of the language model come first.
        "encoder_hidden_states_llama3": batch.normal(2, TEXT, 4).transpose(0, 1),
        "pooled_embeds": batch.normal(8),
        "timesteps": batch.steps(),
    }


def _omnigen(batch: Batch) -> dict[str, Any]:
    image, length = (SIDE // 2) ** 2, TEXT + 1 + (SIDE // 2) ** 2
    return {
        "hidden_states": batch.normal(4, SIDE, SIDE),
        "timestep": batch.times(),
        "input_ids": batch.integers(10, TEXT + image),
        "input_img_latents": [latent.unsqueeze(0) for latent in batch.normals(4, SIDE, SIDE)],
        "input_image_sizes": {index: [[0, image]] for index in range(batch.size)},
        "attention_mask": batch.ones(length + image, length + image),
        "position_ids": torch.arange(length + image).expand(batch.size, -1),
    }


def _z_image(batch: Batch) -> dict[str, Any]:
    return {"x": batch.normals(16, 1, SIDE, SIDE), "cap_feats": batch.normals(16, 16), "t": batch.times()}


_LUMINA: dict[str, Any] = {
    "sample_size": SIDE,
    "patch_size": 2,
    "in_channels": 4,
    "hidden_size": 24,
    "num_layers": 2,
    "num_attention_heads": 3,
    "num_kv_heads": 1,
    "multiple_of": 16,
    "norm_eps": 1e-5,
}
CASES.add(
    "LuminaNextDiT2DModel",
    {**_LUMINA, "learn_sigma": False, "qk_norm": True, "cross_attention_dim": 32},
    lambda batch: {
        "hidden_states": batch.normal(4, SIDE, SIDE),
        "encoder_hidden_states": batch.normal(TEXT, 32),
        "timestep": batch.times(),
        "encoder_mask": batch.ones(TEXT),
        "image_rotary_emb": torch.randn(384, 384, 4, generator=torch.Generator().manual_seed(0)),
        "cross_attention_kwargs": {},
    },
)
CASES.add(
    "Lumina2Transformer2DModel",
    {**_LUMINA, "num_refiner_layers": 1, "axes_dim_rope": (4, 2, 2), "axes_lens": (32,) * 3, "cap_feat_dim": 32},
    lambda batch: (
        _latents(batch, 32) | {"timestep": batch.times(), "encoder_attention_mask": batch.ones(TEXT, dtype=torch.bool)}
    ),
)
CASES.add(
    "ErnieImageTransformer2DModel",
    {
        "hidden_size": 16,
        "num_attention_heads": 1,
        "num_layers": 2,
        "ffn_hidden_size": 16,
        "in_channels": 4,
        "out_channels": 4,
        "patch_size": 1,
        "text_in_dim": 8,
        "rope_axes_dim": (8, 4, 4),
        "qk_layernorm": True,
    },
    lambda batch: {
        "hidden_states": batch.normal(4, SIDE, SIDE),
        "timestep": batch.times(),
        "text_bth": batch.normal(TEXT, 8),
        "text_lens": batch.ones(dtype=torch.long) * TEXT,
    },
)
CASES.add(
    "PRXTransformer2DModel",
    {
        "in_channels": 4,
        "patch_size": 2,
        "context_in_dim": 8,
        "hidden_size": 16,
        "mlp_ratio": 2.0,
        "num_heads": 2,
        "depth": 2,
        "axes_dim": [4, 4],
    },
    lambda batch: _latents(batch) | {"timestep": batch.times()},
)
CASES.add(
    "HiDreamImageTransformer2DModel",
    {
        "patch_size": 2,
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 1,
        "num_single_layers": 1,
        "attention_head_dim": 8,
        "num_attention_heads": 4,
        "caption_channels": [8, 4],
        "text_emb_dim": 8,
        "num_routed_experts": 2,
        "num_activated_experts": 1,
        "axes_dims_rope": (4, 2, 2),
        "max_resolution": (32, 32),
        "llama_layers": (0, 1),
        "force_inference_output": True,
    },
    _hidream,
)
CASES.add(
    "HunyuanImageTransformer2DModel",
    {
        "in_channels": 4,
        "out_channels": 4,
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "num_layers": 1,
        "num_single_layers": 1,
        "num_refiner_layers": 1,
        "text_embed_dim": 8,
        "rope_axes_dim": (4, 4),
    },
    lambda batch: _latents(batch) | {"timestep": 1000 * batch.times(), "encoder_attention_mask": batch.ones(TEXT)},
)
CASES.add(
    "OmniGenTransformer2DModel",
    {
        "hidden_size": 16,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "intermediate_size": 32,
        "num_layers": 2,
        "pad_token_id": 0,
        "vocab_size": 100,
        "in_channels": 4,
        "time_step_dim": 4,
        "rope_scaling": {"long_factor": [1, 2], "short_factor": [1, 2]},
    },
    _omnigen,
)
CASES.add(
    "ZImageTransformer2DModel",
    {
        "all_patch_size": (2,),
        "all_f_patch_size": (1,),
        "in_channels": 16,
        "dim": 16,
        "n_layers": 1,
        "n_refiner_layers": 1,
        "n_heads": 1,
        "n_kv_heads": 2,
        "qk_norm": True,
        "cap_feat_dim": 16,
        "axes_dims": [8, 4, 4],
        "axes_lens": [256, 32, 32],
    },
    _z_image,
)
CASES.add(
    "BriaFibo2Transformer2DModel",
    {
        "in_channels": 4,
        "patch_size": 2,
        # Narrower ones round the feed-forward layers to nothing.
        "dim": 96,
        "n_layers": 2,
        "n_refiner_layers": 1,
        "n_heads": 2,
        "cap_feat_dim": 8,
        "injection_layer_ids": (0,),
        "perceiver_num_layers": 1,
        "min_num_gist_tokens": 4,
        "max_num_gist_tokens": 4,
        "gist_step": 1,
        "gist_min_text_len": 4,
        "gist_max_text_len": 8,
        "axes_dims": (16, 16, 16),
        "axes_lens": (64, 32, 32),
    },
    lambda batch: {
        "hidden_states": batch.normal(4, SIDE, SIDE),
        "timestep": batch.times(),
        "encoder_hidden_states": batch.normal(2, TEXT, 8),
    },
)
