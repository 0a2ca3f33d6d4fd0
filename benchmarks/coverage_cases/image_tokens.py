"""Image transformers that take packed tokens [B, T, C] in other ways: Qwen-Image, Ideogram, Krea, JoyImage."""

from typing import Any

import torch

from .case import Batch, Registry, grid

CASES = Registry("transformer")
SIDE, TEXT = 3, 5
TOKENS = SIDE * SIDE
_HEADS: dict[str, Any] = {"attention_head_dim": 16, "num_attention_heads": 2}


def _qwen(batch: Batch) -> dict[str, Any]:
    return {
        "hidden_states": batch.normal(TOKENS, 16),
        "encoder_hidden_states": batch.normal(TEXT, 16),
        "encoder_hidden_states_mask": batch.ones(TEXT, dtype=torch.long),
        "timestep": batch.times(),
        "img_shapes": [(1, SIDE, SIDE)] * batch.size,
    }


def _qwen21(batch: Batch) -> dict[str, Any]:
    # Four tokens of the target share one slot of the language model's sequence.
    slots = 4
    mask = torch.zeros(batch.size, TEXT + slots, dtype=torch.bool)
    mask[:, TEXT:] = True
    return {
        "hidden_states": batch.normal(4 * slots, 16),
        "encoder_hidden_states": batch.normal(TEXT, 16),
        "timestep": batch.times(),
        "img_shapes": [[(1, 4, 4)]] * batch.size,
        "img_mask": mask,
    }


def _ideogram(batch: Batch) -> dict[str, Any]:
    from diffusers.models.transformers import transformer_ideogram4 as module

    image = 4
    latent, text = torch.zeros(batch.size, TEXT + image, 16), torch.zeros(batch.size, TEXT + image, 24)
    latent[:, TEXT:], text[:, :TEXT] = batch.normal(image, 16), batch.normal(TEXT, 24)
    places = torch.zeros(batch.size, TEXT + image, 3, dtype=torch.long)
    places[:, :TEXT] = torch.arange(TEXT).unsqueeze(-1)
    places[:, TEXT:] = module.IMAGE_POSITION_OFFSET
    places[:, TEXT:, 1:] += grid(2, 2).long()
    kind = torch.full((batch.size, TEXT + image), module.OUTPUT_IMAGE_INDICATOR)
    kind[:, :TEXT] = module.LLM_TOKEN_INDICATOR
    return {
        "hidden_states": latent,
        "encoder_hidden_states": text,
        "timestep": batch.times(),
        "position_ids": places,
        "segment_ids": torch.ones_like(kind),
        "indicator": kind,
    }


def _krea(batch: Batch) -> dict[str, Any]:
    places = torch.zeros(TEXT + 4, 3)
    places[TEXT:, 1:] = grid(2, 2)
    return {
        "hidden_states": batch.normal(4, 16),
        "encoder_hidden_states": batch.normal(TEXT, 3, 16),
        "timestep": batch.times(),
        "position_ids": places,
        "encoder_attention_mask": batch.ones(TEXT, dtype=torch.bool),
    }


def _joy_plus(batch: Batch) -> dict[str, Any]:
    return {
        "hidden_states": batch.normal(2, 16, 1, 2, 2),
        "encoder_hidden_states": batch.normal(TEXT, 16),
        "timestep": batch.times(),
        "shape_list": [[(1, 1, 1), (1, 1, 1)]] * batch.size,
    }


_QWEN: dict[str, Any] = {
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 4,
    "num_layers": 2,
    "joint_attention_dim": 16,
    "axes_dims_rope": (8, 4, 4),
    **_HEADS,
}
CASES.add("QwenImageTransformer2DModel", _QWEN, _qwen)
CASES.add(
    "QwenImage21Transformer2DModel",
    {
        "in_channels": 16,
        "out_channels": 16,
        "num_layers": 2,
        "context_in_dim": 16,
        "axes_dims_rope": (8, 4, 4),
        **_HEADS,
    },
    _qwen21,
    # The text comes first.
    lambda model, inputs: model(**inputs)[0][:, TEXT:],
)
CASES.add(
    "NucleusMoEImageTransformer2DModel",
    {
        **_QWEN,
        # Narrower ones round the dense layers to nothing.
        "num_attention_heads": 4,
        "moe_enabled": True,
        "dense_moe_strategy": "leave_first_block_dense",
        "num_experts": 2,
        "moe_intermediate_dim": 16,
        "capacity_factors": [2.0, 2.0],
    },
    _qwen,
)
CASES.add(
    "Ideogram4Transformer2DModel",
    {
        "in_channels": 16,
        "num_layers": 2,
        "attention_head_dim": 8,
        "num_attention_heads": 4,
        "intermediate_size": 32,
        "adaln_dim": 16,
        "llm_features_dim": 24,
        "rope_theta": 10_000,
        "mrope_section": (2, 1, 1),
    },
    _ideogram,
)
CASES.add(
    "Krea2Transformer2DModel",
    {
        "in_channels": 16,
        "num_layers": 2,
        "attention_head_dim": 8,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 32,
        "timestep_embed_dim": 8,
        "text_hidden_dim": 16,
        "num_text_layers": 3,
        "text_num_attention_heads": 2,
        "text_num_key_value_heads": 1,
        "text_intermediate_size": 16,
        "num_layerwise_text_blocks": 1,
        "num_refiner_text_blocks": 1,
        "axes_dims_rope": (4, 2, 2),
    },
    _krea,
)
_JOY: dict[str, Any] = {
    "patch_size": [1, 2, 2],
    "in_channels": 16,
    "hidden_size": 32,
    "num_attention_heads": 2,
    "text_dim": 16,
    "num_layers": 2,
    "rope_dim_list": [4, 6, 6],
    "theta": 256,
}
CASES.add(
    "JoyImageEditTransformer3DModel",
    _JOY,
    lambda batch: {
        "hidden_states": batch.normal(16, 1, 4, 4),
        "encoder_hidden_states": batch.normal(TEXT, 16),
        "timestep": batch.times(),
    },
)
CASES.add("JoyImageEditPlusTransformer3DModel", _JOY, _joy_plus)
