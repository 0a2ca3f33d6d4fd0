"""The tiny text-to-image model: diffusers' SD3 transformer on pixels, with its text encoder.

Rectified flow: x_t = (1 - t) x_0 + t eps, the network predicts the velocity v = eps - x_0, its
timestep input is 1000 t. Images are [-1, 1] inside the model and [0, 1] outside.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import SD3Transformer2DModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .render import SIZE
from .text_encoder import TextEncoder

CHECKPOINT = Path(__file__).parent / "checkpoint"


def new_transformer(width: int = 128, layers: int = 4, patch: int = 3) -> SD3Transformer2DModel:
    """A small, randomly initialised SD3 transformer for RGB pixels."""
    return SD3Transformer2DModel(
        sample_size=SIZE,
        patch_size=patch,
        in_channels=3,
        out_channels=3,
        num_layers=layers,
        attention_head_dim=width // 4,
        num_attention_heads=4,
        joint_attention_dim=width,
        caption_projection_dim=width,
        pooled_projection_dim=width,
        pos_embed_max_size=SIZE // patch,
        qk_norm="rms_norm",
    )


class TinyModel(nn.Module):
    """Text encoder and velocity network.

    Args:
        transformer: the velocity network; adapters are added to it.
        text_encoder: captions to embeddings.
    """

    def __init__(self, transformer: SD3Transformer2DModel, text_encoder: TextEncoder) -> None:
        super().__init__()
        self.transformer = transformer
        self.text_encoder = text_encoder

    @classmethod
    def new(cls, width: int = 128) -> "TinyModel":
        """A randomly initialised model."""
        return cls(new_transformer(width), TextEncoder(width))

    @classmethod
    def from_pretrained(cls, folder: str | Path = CHECKPOINT) -> "TinyModel":
        """Load a folder written by :meth:`save_pretrained`; the default is the shipped checkpoint."""
        folder = Path(folder)
        if not (folder / "transformer").is_dir():
            raise ValueError(f"{folder} holds no tiny model: run `python examples/pretrain.py --output {folder}`")
        transformer = SD3Transformer2DModel.from_pretrained(folder / "transformer", torch_dtype=torch.float32)
        encoder = TextEncoder(json.loads((folder / "text_encoder.json").read_text())["width"])
        weights = load_file(folder / "text_encoder.safetensors")
        encoder.load_state_dict({name: weight.float() for name, weight in weights.items()})
        return cls(transformer, encoder).eval()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write both networks as fp16 safetensors, which halves the shipped checkpoint."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        half = new_transformer(self.transformer.config.joint_attention_dim, self.transformer.config.num_layers)
        half.load_state_dict(self.transformer.state_dict())
        half.half().save_pretrained(folder / "transformer")
        weights = {name: weight.half().contiguous() for name, weight in self.text_encoder.state_dict().items()}
        save_file(weights, folder / "text_encoder.safetensors")
        width = self.text_encoder.position.shape[1]
        (folder / "text_encoder.json").write_text(json.dumps({"width": width}) + "\n")

    def velocity(self, x: Tensor, t: Tensor, embeddings: tuple[Tensor, Tensor]) -> Tensor:
        """Velocity [B, 3, 24, 24] at ``x`` and time ``t`` [B] in [0, 1]."""
        sequence, pooled = embeddings
        return self.transformer(
            hidden_states=x,
            timestep=t * 1000,
            encoder_hidden_states=sequence,
            pooled_projections=pooled,
            return_dict=False,
        )[0]

    @torch.no_grad()
    def encode(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Embeddings of captions, without gradient."""
        return self.text_encoder(captions)

    @staticmethod
    def decode(latents: Tensor) -> Tensor:
        """Latents to images in [0, 1]."""
        return (latents / 2 + 0.5).clamp(0, 1)
