"""The parts of the small LTX-2 pipeline, newly made: every kind of part of the published one, a thousandth of the size.

The audio stream is there but as narrow as it can be; nothing trains it. What it would add to the video is set to zero,
so that the pipeline makes the same video whether it runs the two streams isolated or not.
"""

import string

import torch
from diffusers import (
    AutoencoderKLLTX2Audio,
    AutoencoderKLLTX2Video,
    FlowMatchEulerDiscreteScheduler,
    LTX2VideoTransformer3DModel,
)
from diffusers.pipelines.ltx2 import LTX2TextConnectors, LTX2Vocoder
from tokenizers import processors
from torch import nn
from transformers import Gemma3Config, Gemma3ForConditionalGeneration, GemmaTokenizer

from .captions import split
from .render import SIZE

# Tokens of a caption, the first one a mark of its beginning: the connectors have as many registers.
MAX_TOKENS = 8
LATENT_CHANNELS = 72
RATIOS = (4, 16, 16)
_TEXT_WIDTH = 48
# Of what the encoder gives as its uncertainty at first; nothing trains it.
_LOG_VARIANCE = -6.0
_SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<boi>", "<eoi>", "<image>")

VAE = {
    "latent_channels": LATENT_CHANNELS,
    "patch_size": 4,
    "block_out_channels": (96, 96),
    "down_block_types": ("LTX2VideoDownBlock3D",) * 2,
    "downsample_type": ("spatiotemporal", "spatiotemporal"),
    "spatio_temporal_scaling": (True, True),
    "layers_per_block": (0, 0, 0),
    "decoder_block_out_channels": (48, 48, 48, 96),
    "decoder_layers_per_block": (1, 0, 0, 0, 0),
    "decoder_spatio_temporal_scaling": (True,) * 4,
    "decoder_inject_noise": (False,) * 5,
    "upsample_type": ("temporal", "spatial", "temporal", "spatial"),
    "upsample_residual": (True,) * 4,
    "upsample_factor": (1, 1, 1, 2),
    "decoder_causal": False,
    "decoder_spatial_padding_mode": "zeros",
    "spatial_compression_ratio": RATIOS[1],
    "temporal_compression_ratio": RATIOS[0],
}
AUDIO_VAE = {"base_channels": 8, "ch_mult": (1, 1, 1), "num_res_blocks": 1, "latent_channels": 2, "mel_bins": 16}
VOCODER = {"in_channels": 32, "hidden_channels": 32, "resnet_kernel_sizes": [3], "resnet_dilations": [[1, 3]]}
TRANSFORMER = {
    "in_channels": LATENT_CHANNELS,
    "out_channels": LATENT_CHANNELS,
    "num_layers": 3,
    "num_attention_heads": 4,
    "attention_head_dim": 36,
    "cross_attention_dim": 144,
    "caption_channels": _TEXT_WIDTH,
    "vae_scale_factors": RATIOS,
    # Positions span a second and the picture, and few of their frequencies are told apart on 3 x 2 x 2 of them.
    "pos_embed_max_pos": 1,
    "base_height": SIZE,
    "base_width": SIZE,
    "rope_theta": 30.0,
    "rope_type": "split",
    "audio_in_channels": AUDIO_VAE["base_channels"],
    "audio_out_channels": AUDIO_VAE["base_channels"],
    "audio_num_attention_heads": 4,
    "audio_attention_head_dim": 4,
    "audio_cross_attention_dim": 16,
}


def tokenizer() -> GemmaTokenizer:
    """Gemma's tokenizer with the characters and the words of the world's captions, each word one token."""
    words = sorted({word for held_out in (False, True) for m in split(held_out) for word in m.text.split()[1:]})
    tokens = dict.fromkeys([*_SPECIAL, "▁", *string.printable.strip()])
    merges: dict[tuple[str, str], None] = {}
    for word in words:
        pieces = ["▁" + word[:i] for i in range(len(word) + 1)]
        tokens |= dict.fromkeys(pieces)
        merges |= dict.fromkeys(zip(pieces, word, strict=False))
    made = GemmaTokenizer({token: i for i, token in enumerate(tokens)}, list(merges), model_max_length=1024)
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", _SPECIAL.index("<bos>"))]
    )
    return made


def text_encoder() -> Gemma3ForConditionalGeneration:
    """A Gemma 3 of two layers with random weights: the connectors learn to read its states."""
    text = {
        "vocab_size": len(tokenizer()),
        "hidden_size": _TEXT_WIDTH,
        "intermediate_size": 2 * _TEXT_WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 24,
        "max_position_embeddings": 1024,
        "query_pre_attn_scalar": 24,
        "initializer_range": _TEXT_WIDTH**-0.5,
    }
    vision = {
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "image_size": 16,
        "patch_size": 8,
    }
    places = [_SPECIAL.index(token) for token in ("<boi>", "<eoi>", "<image>")]
    return Gemma3ForConditionalGeneration(
        Gemma3Config(
            text_config=text,
            vision_config=vision,
            mm_tokens_per_image=4,
            boi_token_index=places[0],
            eoi_token_index=places[1],
            image_token_index=places[2],
        )
    )


def connectors() -> LTX2TextConnectors:
    """One layer for the video, one for the audio."""
    heads = {"num_attention_heads": 4, "attention_head_dim": 12, "num_layers": 1, "num_learnable_registers": MAX_TOKENS}
    streams = {f"{stream}_connector_{name}": value for stream in ("video", "audio") for name, value in heads.items()}
    return LTX2TextConnectors(
        caption_channels=_TEXT_WIDTH,
        text_proj_in_factor=3,
        connector_rope_base_seq_len=MAX_TOKENS,
        rope_theta=30.0,
        rope_type="split",
        **streams,
    )


def vae() -> AutoencoderKLLTX2Video:
    """16 x 16 pixels of 4 frames to 72 channels, 1.6 M parameters."""
    made = AutoencoderKLLTX2Video(**VAE)
    nn.init.constant_(made.encoder.conv_out.conv.bias[-1:], _LOG_VARIANCE)
    return made


def transformer() -> LTX2VideoTransformer3DModel:
    """The velocity network, 1.5 M parameters and 12 tokens; its video does not hear the audio."""
    made = LTX2VideoTransformer3DModel(**TRANSFORMER)
    for block in made.transformer_blocks:
        for weight in block.audio_to_video_attn.to_out.parameters():
            nn.init.zeros_(weight)
    return made


def scheduler() -> FlowMatchEulerDiscreteScheduler:
    """LTX-2's: the shift depends on the number of tokens, and the last step is at σ = 0.1."""
    return FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True,
        base_image_seq_len=1024,
        max_image_seq_len=4096,
        base_shift=0.95,
        max_shift=2.05,
        shift_terminal=0.1,
    )


def new_pipeline(seed: int = 0) -> dict[str, object]:
    """All parts by their names in the pipeline, with weights from ``seed``."""
    torch.manual_seed(seed)
    return {
        "scheduler": scheduler(),
        "vae": vae(),
        "audio_vae": AutoencoderKLLTX2Audio(**AUDIO_VAE),
        "text_encoder": text_encoder(),
        "tokenizer": tokenizer(),
        "connectors": connectors(),
        "transformer": transformer(),
        "vocoder": LTX2Vocoder(**VOCODER),
    }
