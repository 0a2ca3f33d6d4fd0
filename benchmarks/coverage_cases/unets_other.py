"""Other UNets: Kandinsky 3, DreamLite, Stable Cascade, aMUSEd."""

from typing import Any

from .case import Batch, Registry

CASES = Registry("unet")
CHANNELS, SIDE, TEXT, WIDTH = 4, 8, 4, 8


def _image(batch: Batch) -> dict[str, Any]:
    return {
        "sample": batch.normal(CHANNELS, SIDE, SIDE),
        "timestep": batch.steps(),
        "encoder_hidden_states": batch.normal(TEXT, WIDTH),
    }


def _stable_cascade(batch: Batch) -> dict[str, Any]:
    return {
        "sample": batch.normal(CHANNELS, SIDE, SIDE),
        "timestep_ratio": batch.times(),
        "clip_text_pooled": batch.normal(1, WIDTH),
        "clip_text": batch.normal(TEXT, WIDTH),
        "clip_img": batch.normal(1, WIDTH),
    }


CASES.add(
    "Kandinsky3UNet",
    {
        "in_channels": CHANNELS,
        "time_embedding_dim": WIDTH,
        "groups": 4,
        "attention_head_dim": 4,
        "layers_per_block": 2,
        "block_out_channels": (8, 16, 16, 16),
        "cross_attention_dim": WIDTH,
        "encoder_hid_dim": WIDTH,
    },
    # Four levels: fewer pixels would leave group norms a single one.
    lambda batch: (
        _image(batch)
        | {"sample": batch.normal(CHANNELS, 2 * SIDE, 2 * SIDE), "encoder_attention_mask": batch.ones(TEXT)}
    ),
)
CASES.add(
    "DreamLiteUNetModel",
    {
        "in_channels": CHANNELS,
        "out_channels": CHANNELS,
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "cross_attention_dim": WIDTH,
        "attention_head_dim": 4,
        "sample_size": SIDE,
        "block_out_channels": (8, 16, 16),
        "down_block_types": (
            "DreamLiteCrossAttnNoSelfAttnDownBlock2D",
            "DreamLiteCrossAttnNoSelfAttnDownBlock2D",
            "DreamLiteCrossAttnDownBlock2D",
        ),
        "ff_mult": 2,
    },
    _image,
)
CASES.add(
    "StableCascadeUNet",
    {
        "in_channels": CHANNELS,
        "out_channels": CHANNELS,
        "timestep_ratio_embedding_dim": 8,
        "conditioning_dim": WIDTH,
        "block_out_channels": (16, 16),
        "num_attention_heads": (2, 2),
        "down_num_layers_per_block": (1, 1),
        "up_num_layers_per_block": (1, 1),
        "clip_text_in_channels": WIDTH,
        "clip_text_pooled_in_channels": WIDTH,
        "clip_image_in_channels": WIDTH,
        "clip_seq": 2,
    },
    _stable_cascade,
)
CASES.add(
    "UVit2DModel",
    {
        "hidden_size": 16,
        "cond_embed_dim": WIDTH,
        "micro_cond_encode_dim": 4,
        "micro_cond_embed_dim": 20,
        "encoder_hidden_size": WIDTH,
        "vocab_size": 12,
        "codebook_size": 8,
        "in_channels": 16,
        "block_out_channels": 16,
        "num_res_blocks": 1,
        "downsample": True,
        "upsample": True,
        "block_num_heads": 2,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "sample_size": SIDE,
    },
    lambda batch: {
        "input_ids": batch.integers(8, SIDE, SIDE),
        "encoder_hidden_states": batch.normal(TEXT, WIDTH),
        "pooled_text_emb": batch.normal(WIDTH),
        "micro_conds": 100 * batch.times().unsqueeze(1).repeat(1, 5),
    },
)
