"""Flux and its relatives: image transformers that take packed tokens [B, T, C] with their places."""

from typing import Any

import torch

from .case import Batch, Registry, grid

CASES = Registry("transformer")
SIDE, TEXT = 3, 5
TOKENS = SIDE * SIDE
_HEADS: dict[str, Any] = {"attention_head_dim": 16, "num_attention_heads": 2}
_FLUX: dict[str, Any] = {
    "patch_size": 1,
    "in_channels": 4,
    "num_layers": 1,
    "num_single_layers": 1,
    "joint_attention_dim": 32,
    "axes_dims_rope": [4, 4, 8],
    **_HEADS,
}


def _flux(batch: Batch, axes: int = 3) -> dict[str, Any]:
    """Latent and text tokens with the places that rotary embeddings need, the same for all samples."""
    places = torch.zeros(TOKENS, axes)
    places[:, 1:3] = grid(SIDE, SIDE)
    return {
        "hidden_states": batch.normal(TOKENS, 4),
        "encoder_hidden_states": batch.normal(TEXT, 32),
        "img_ids": places,
        "txt_ids": torch.zeros(TEXT, axes),
        "timestep": batch.times(),
    }


def _fibo(batch: Batch) -> dict[str, Any]:
    text = batch.normal(TEXT, 32)
    return _flux(batch) | {"encoder_hidden_states": text, "text_encoder_layers": [text[..., :16], text[..., 16:]]}


def _batched_ids(given: dict[str, Any]) -> dict[str, Any]:
    return given | {name: given[name].long().expand(len(given["timestep"]), -1, -1) for name in ("img_ids", "txt_ids")}


CASES.add(
    "FluxTransformer2DModel",
    {**_FLUX, "pooled_projection_dim": 32, "guidance_embeds": True},
    lambda batch: _flux(batch) | {"pooled_projections": batch.normal(32), "guidance": 1 + batch.times()},
)
CASES.add(
    "Flux2Transformer2DModel",
    {**_FLUX, "axes_dims_rope": [4, 4, 4, 4], "timestep_guidance_channels": 32},
    lambda batch: _batched_ids(_flux(batch, axes=4)) | {"guidance": 1 + batch.times()},
)
CASES.add(
    "Flux3Transformer2DModel",
    {
        "in_channels": 4,
        "cond_in_channels": 4,
        "num_layers": 1,
        "num_single_layers": 1,
        "joint_attention_dim": 32,
        "timestep_channels": 32,
        "axes_dims_rope": (4, 4, 4, 4),
        **_HEADS,
    },
    lambda batch: _flux(batch, axes=4),
)
CASES.add(
    "ChromaTransformer2DModel",
    {**_FLUX, "approximator_num_channels": 8, "approximator_hidden_dim": 16, "approximator_layers": 1},
    _flux,
)
CASES.add("BriaTransformer2DModel", {**_FLUX, "pooled_projection_dim": None}, _flux)
CASES.add(
    "BriaFiboTransformer2DModel",
    {**_FLUX, "pooled_projection_dim": None, "text_encoder_dim": 16},
    _fibo,
)
CASES.add(
    "LongCatImageTransformer2DModel",
    {**_FLUX, "pooled_projection_dim": 32},
    lambda batch: _flux(batch) | {"guidance": 1 + batch.times()},
)
CASES.add("OvisImageTransformer2DModel", {**_FLUX, "out_channels": 4}, _flux)
