"""Transformers of embeddings, molecules and packed sequences, and those that are parts of UNets."""

from typing import Any

import torch
from torch import Tensor, nn

from .case import Batch, Registry, grid

CASES = Registry("transformer")
LENGTH, TEXT, WIDTH, SIDE = 8, 5, 16, 4


def _cosmos3(model: nn.Module, inputs: dict[str, Any]) -> Tensor:
    """One call per sample: a call takes one packed sequence [T, C] without a batch."""
    tokens, text = SIDE * SIDE, inputs["input_ids"].shape[1]
    vision = torch.arange(text, text + tokens)
    places = torch.zeros(3, text + tokens, dtype=torch.long)
    places[:, :text] = torch.arange(text)
    places[1:, text:] = grid(SIDE, SIDE).long().T
    found = []
    for latent, ids, step in zip(inputs["latents"], inputs["input_ids"], inputs["timestep"], strict=True):
        output = model(
            input_ids=ids,
            text_indexes=torch.arange(text),
            position_ids=places,
            und_len=text,
            sequence_length=text + tokens,
            vision_tokens=[latent.unsqueeze(0)],
            vision_token_shapes=[(1, SIDE, SIDE)],
            vision_sequence_indexes=vision,
            vision_mse_loss_indexes=vision,
            vision_timesteps=step.expand(tokens),
            vision_noisy_frame_indexes=[torch.tensor([0])],
        )
        found.append(output[0][0].flatten())
    return torch.stack(found)


def _molecule(model: nn.Module, inputs: dict[str, Any]) -> Tensor:
    output = model(**inputs)
    return torch.cat([output.backbone, output.local_latents], -1)


def _molecule_inputs(batch: Batch) -> dict[str, Any]:
    flags = batch.ones(LENGTH, dtype=torch.bool)
    return {
        "bb_ca": batch.normal(LENGTH, 3),
        "local_latents": batch.normal(LENGTH, 4),
        "bb_ca_time": batch.times(),
        "local_latents_time": batch.times(),
        "padding_mask": flags,
        "conditioning": {"is_in_context_conditioning": ~flags, "supports_local_latent": flags},
    }


CASES.add(
    "PriorTransformer",
    {
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "num_layers": 2,
        "embedding_dim": 8,
        "num_embeddings": 7,
        "additional_embeddings": 4,
    },
    lambda batch: {
        "hidden_states": batch.normal(8),
        "timestep": batch.steps(),
        "proj_embedding": batch.normal(8),
        "encoder_hidden_states": batch.normal(7, 8),
    },
)
CASES.add(
    "RFD4ProteinaTransformer",
    {
        "nlayers": 2,
        "token_dim": 16,
        "nheads": 2,
        "dim_cond": 8,
        "pair_repr_dim": 8,
        "latent_dim": 4,
        "t_emb_dim": 8,
        "tri_mult_c": 8,
        "feats_seq": ("xt_bb_ca", "xt_local_latents"),
        "feats_cond_seq": ("time_emb_bb_ca", "time_emb_local_latents"),
        "feats_pair_repr": ("xt_bb_ca_pair_dists",),
    },
    _molecule_inputs,
    _molecule,
)
CASES.add(
    "Cosmos3OmniTransformer",
    {
        "head_dim": 12,
        "hidden_size": 24,
        "intermediate_size": 24,
        "latent_channel": 2,
        "latent_patch_size": 1,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "num_key_value_heads": 1,
        "patch_latent_dim": 2,
        "rope_axes_dim": [2, 2, 2],
        "vocab_size": 32,
    },
    lambda batch: {
        "latents": batch.normal(2, 1, SIDE, SIDE),
        "input_ids": batch.integers(32, TEXT),
        "timestep": 1000 * batch.times(),
    },
    _cosmos3,
)
_UNET_PART: dict[str, Any] = {
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "in_channels": 8,
    "norm_num_groups": 4,
}
CASES.add(
    "Transformer2DModel",
    {**_UNET_PART, "cross_attention_dim": WIDTH},
    lambda batch: {"hidden_states": batch.normal(8, SIDE, SIDE), "encoder_hidden_states": batch.normal(TEXT, WIDTH)},
)
CASES.add(
    "DreamLiteTransformer2DModel",
    {**_UNET_PART, "in_channels": 16, "cross_attention_dim": WIDTH, "qk_norm": "rms_norm", "num_kv_heads": 2},
    lambda batch: {"hidden_states": batch.normal(16, SIDE, SIDE), "encoder_hidden_states": batch.normal(TEXT, WIDTH)},
)
CASES.add(
    "TransformerTemporalModel",
    {**_UNET_PART},
    # The frames of one video are neighbours in the leading dimension, so a sample is a video of two frames.
    lambda batch: {"hidden_states": batch.normal(2, 8, SIDE, SIDE).flatten(0, 1), "num_frames": 2},
    lambda model, inputs: model(**inputs)[0].unflatten(0, (-1, 2)),
)
CASES.add(
    "SanaWMTransformer3DModel",
    {
        "in_channels": 4,
        "num_layers": 2,
        "hidden_size": 24,
        "num_attention_heads": 2,
        "linear_head_dim": 12,
        "softmax_every_n": 2,
        "chunk_plucker_channels": 6,
        "caption_channels": WIDTH,
    },
    lambda batch: {
        "hidden_states": batch.normal(4, 3, SIDE, SIDE),
        "timestep": batch.integers(1000, 1, 3),
        "encoder_hidden_states": batch.normal(1, TEXT, WIDTH),
        "encoder_attention_mask": batch.ones(TEXT),
        "chunk_plucker": batch.normal(6, 3, SIDE, SIDE),
    },
)
