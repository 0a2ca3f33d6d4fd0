"""Small transformers of random weights of the families that a trainer has, all of width 16, and inputs for them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

FAMILIES = ("sd3", "flux", "ltx2")
WIDTH = 16
# Flux: 6 tokens of the latent, then 4 of the source image.
TARGET, SOURCE = 6, 4
# LTX-2: 3 latent frames of 2 × 2 tokens, 5 tokens of sound.
FRAMES, SIDE, SOUND = 3, 2, 5


def sd3(qk_norm: str | None = "rms_norm") -> Any:
    """Two blocks: the first with dual attention, the last without a text stream after its attention."""
    from diffusers import SD3Transformer2DModel

    torch.manual_seed(0)
    return SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=12,
        caption_projection_dim=16,
        pooled_projection_dim=10,
        out_channels=4,
        pos_embed_max_size=8,
        dual_attention_layers=(0,),
        qk_norm=qk_norm,
    )


def flux() -> Any:
    """Guidance-distilled, with two blocks of each kind."""
    from diffusers import FluxTransformer2DModel

    torch.manual_seed(0)
    return FluxTransformer2DModel(
        in_channels=4,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=12,
        pooled_projection_dim=10,
        guidance_embeds=True,
        axes_dims_rope=(2, 2, 4),
    )


def ltx2(newer: bool = False) -> Any:
    """Two blocks; ``newer``: gates in the attention and modulated attention to the text, as in LTX-2.3."""
    from diffusers import LTX2VideoTransformer3DModel

    torch.manual_seed(0)
    sizes = {"num_attention_heads": 2, "attention_head_dim": 8, "cross_attention_dim": 16}
    sound = {"num_attention_heads": 2, "attention_head_dim": 4, "cross_attention_dim": 8}
    newest = {"gated_attn": newer, "cross_attn_mod": newer}
    return LTX2VideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        audio_in_channels=3,
        audio_out_channels=3,
        num_layers=2,
        caption_channels=6,
        rope_type="split" if newer else "interleaved",
        **sizes,
        **newest,
        **{f"audio_{name}": value for name, value in {**sound, **newest}.items()},
    )


MAKERS = {"sd3": sd3, "flux": flux, "ltx2": ltx2}


def family_of(model: Any) -> str:
    names = {"SD3Transformer2DModel": "sd3", "FluxTransformer2DModel": "flux", "LTX2VideoTransformer3DModel": "ltx2"}
    return names[type(model).__name__]


def inputs_for(family: str, dtype: torch.dtype, count: int, seed: int = 0) -> dict[str, Any]:
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random).to(dtype)

    def times() -> Tensor:
        return torch.rand(count, generator=random).to(dtype)

    if family == "sd3":
        return {
            "hidden_states": normal(count, 4, 8, 8),
            "timestep": 1000 * times(),
            "encoder_hidden_states": normal(count, 5, 12),
            "pooled_projections": normal(count, 10),
        }
    if family == "flux":
        return {
            "hidden_states": normal(count, TARGET + SOURCE, 4),
            "timestep": times(),
            "encoder_hidden_states": normal(count, 5, 12),
            "pooled_projections": normal(count, 10),
            "guidance": 1 + times(),
            "img_ids": places(),
            "txt_ids": torch.zeros(5, 3),
        }
    return {
        "hidden_states": normal(count, FRAMES * SIDE * SIDE, 4),
        "audio_hidden_states": normal(count, SOUND, 3),
        "encoder_hidden_states": normal(count, 4, 6),
        "audio_encoder_hidden_states": normal(count, 4, 6),
        "timestep": (time := 1000 * times()),
        "sigma": time,
        "num_frames": FRAMES,
        "height": SIDE,
        "width": SIDE,
        "audio_num_frames": SOUND,
    }


def places(target: tuple[int, int] = (2, 3)) -> Tensor:
    """Flux: [T, 3], of the latent and, marked by a first entry of 1, of a source of 2 × 2 tokens."""
    grids = [torch.cartesian_prod(torch.arange(h), torch.arange(w)) for h, w in (target, (2, 2))]
    marked = [torch.cat([torch.full((len(grid), 1), mark), grid], 1) for mark, grid in enumerate(grids)]
    return torch.cat(marked).float()


def rows(given: dict[str, Any], index: Any) -> dict[str, Any]:
    """The same inputs for some of the samples."""
    return {
        name: value[index] if isinstance(value, Tensor) and not name.endswith("_ids") else value
        for name, value in given.items()
    }


def run(model: Any, given: dict[str, Any]) -> Tensor:
    """What the transformer returns; of LTX-2 video and sound side by side, [B, -1]."""
    output = model(**given)
    found: Tensor = output.sample
    return torch.cat([found.flatten(1), output.audio_sample.flatten(1)], 1) if "audio_sample" in output else found


@contextmanager
def in_fp64(model: nn.Module) -> Iterator[None]:
    """Without the roundings to fp32 that diffusers' norms and rotary embeddings have in a model in fp64."""
    for module in list(model.modules()):
        for name, norm in list(module.named_children()):
            if f"{type(norm).__module__}.{type(norm).__name__}" == "diffusers.models.normalization.RMSNorm":
                twin = nn.RMSNorm(norm.dim, norm.eps, norm.weight is not None).double()
                if norm.weight is not None:
                    twin.weight = norm.weight
                setattr(module, name, twin)
    fp32 = torch.Tensor.float
    with mock.patch.object(torch.Tensor, "float", lambda x: x if x.dtype is torch.float64 else fp32(x)):
        yield
