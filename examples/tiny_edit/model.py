"""A Flux Kontext pipeline of 1.4 million parameters, to be pretrained on the world of edits."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxKontextPipeline, FluxTransformer2DModel
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from backbones.tokenizers import clip_tokenizer, t5_tokenizer

from .world import SIZE

CHECKPOINT = Path(__file__).parent / "checkpoint"
# As FLUX.1 Kontext's scheduler/scheduler_config.json.
_SCHEDULE = {
    "shift": 3.0,
    "use_dynamic_shifting": True,
    "base_shift": 0.5,
    "max_shift": 1.15,
    "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
}


def new_pipeline(seed: int = 0) -> FluxKontextPipeline:
    """Random weights. The text encoders stay so: of a dozen words, random features tell enough."""
    clip = clip_tokenizer(1024)
    words = {"bos_token_id": clip.bos_token_id, "eos_token_id": clip.eos_token_id, "pad_token_id": clip.pad_token_id}
    clip_size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    t5_size = {"d_model": 64, "d_ff": 64, "num_layers": 1, "num_heads": 2, "d_kv": 16}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return FluxKontextPipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(**_SCHEDULE),
            vae=new_vae(),
            text_encoder=CLIPTextModel(CLIPTextConfig(vocab_size=1024, **clip_size, **words)).eval(),
            tokenizer=clip,
            text_encoder_2=T5EncoderModel(T5Config(vocab_size=512, dropout_rate=0.0, **t5_size)).eval(),
            tokenizer_2=t5_tokenizer(512),
            transformer=new_transformer(),
        )


def new_vae() -> AutoencoderKL:
    """24 x 24 pixels to 16 channels of 12 x 12."""
    return AutoencoderKL(
        latent_channels=16,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=8,
        sample_size=SIZE,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
        shift_factor=0.0,
        scaling_factor=1.0,
    )


def new_transformer() -> FluxTransformer2DModel:
    """36 tokens for the result and 36 for its source."""
    return FluxTransformer2DModel(
        in_channels=64,
        num_layers=2,
        num_single_layers=3,
        attention_head_dim=24,
        num_attention_heads=4,
        joint_attention_dim=64,
        pooled_projection_dim=32,
        guidance_embeds=True,
        axes_dims_rope=(8, 8, 8),
    )
