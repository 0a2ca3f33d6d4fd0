"""Transformers of sound."""

from typing import Any

import torch

from .case import Batch, Registry

CASES = Registry("transformer")
LENGTH, TEXT, WIDTH = 8, 5, 16


def _sound(batch: Batch, channels: int = 8, text: int = WIDTH) -> dict[str, Any]:
    return {
        "hidden_states": batch.normal(channels, LENGTH),
        "encoder_hidden_states": batch.normal(TEXT, text),
        "timestep": batch.times(),
    }


CASES.add(
    "AceStepTransformer1DModel",
    {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "in_channels": 24,
        "audio_acoustic_hidden_dim": 8,
        "patch_size": 2,
        "sliding_window": 16,
    },
    lambda batch: {
        "hidden_states": batch.normal(LENGTH, 8),
        "timestep": batch.times(),
        "timestep_r": batch.times(),
        "encoder_hidden_states": batch.normal(TEXT, 32),
        "context_latents": batch.normal(LENGTH, 16),
    },
)
CASES.add(
    "LongCatAudioDiTTransformer",
    {"dit_dim": 32, "dit_depth": 2, "dit_heads": 2, "dit_text_dim": WIDTH, "latent_dim": 8, "text_conv": True},
    lambda batch: {
        "hidden_states": batch.normal(LENGTH, 8),
        "encoder_hidden_states": batch.normal(TEXT, WIDTH),
        "encoder_attention_mask": batch.ones(TEXT, dtype=torch.bool),
        "attention_mask": batch.ones(LENGTH, dtype=torch.bool),
        "timestep": batch.times(),
    },
)
CASES.add(
    "MiniMaxMusic3Transformer1DModel",
    {
        "in_channels": 8,
        "condition_dim": WIDTH,
        "num_layers": 2,
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "ff_inner_dim": 32,
        "rotary_dim": 4,
        "fourier_embedding_dim": 8,
    },
    lambda batch: _sound(batch) | {"encoder_hidden_states": batch.normal(LENGTH, WIDTH)},
)
CASES.add(
    "MiniMaxMusic3RVQDepthDecoder",
    {"hidden_size": 16, "num_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "audio_vocab_size": 8},
    lambda batch: {"inputs_embeds": batch.normal(LENGTH, 16)},
)
CASES.add(
    "StableAudioDiTModel",
    {
        "sample_size": LENGTH,
        "in_channels": 8,
        "num_layers": 2,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "num_key_value_attention_heads": 1,
        "out_channels": 8,
        "cross_attention_dim": 16,
        "time_proj_dim": 8,
        "global_states_input_dim": 12,
        "cross_attention_input_dim": WIDTH,
    },
    lambda batch: _sound(batch) | {"global_hidden_states": batch.normal(1, 12)},
)
CASES.add(
    "StableAudio3DiTModel",
    {
        "io_channels": 8,
        "embed_dim": 32,
        "depth": 2,
        "num_heads": 4,
        "cond_token_dim": WIDTH,
        "global_cond_dim": 12,
        "local_add_cond_dim": 5,
        "timestep_features_dim": 16,
        "ff_mult": 2,
        "num_memory_tokens": 3,
    },
    lambda batch: _sound(batch) | {"global_hidden_states": batch.normal(12)},
)
CASES.add(
    "T5FilmDecoder",
    {
        "input_dims": 8,
        "targets_length": LENGTH,
        "d_model": 16,
        "num_layers": 2,
        "num_heads": 2,
        "d_kv": 8,
        "d_ff": 32,
    },
    lambda batch: {
        "encodings_and_masks": [(batch.normal(TEXT, 16), batch.ones(TEXT))],
        "decoder_input_tokens": batch.normal(LENGTH, 8),
        "decoder_noise_time": batch.times(),
    },
)
