"""A small SD3 transformer with LoRA and conditionings whose last layers are no longer zero."""

from typing import Any

import torch
from torch import Tensor

from factored_cases import move
from marble_opt.preferences import PreferenceConditioning
from test_factored_diffusion import sd3

REWARDS = ["photo", "sketch", "colour"]
BATCH = 4
TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"]


def new_transformer(dtype: torch.dtype = torch.float32) -> Any:
    """Two blocks: the first with dual attention, the last without a text stream after its attention."""
    # diffusers' RMSNorm rounds to fp32 in a model in fp64.
    model = sd3("rms_norm" if dtype is not torch.float64 else None).to(dtype).eval()
    model.requires_grad_(False)
    return model


def add_lora(model: Any, *names: str) -> None:
    from peft import LoraConfig

    dtype = model.dtype
    torch.manual_seed(1)
    for name in names:
        model.add_adapter(LoraConfig(r=2, target_modules=TARGETS, init_lora_weights=False), name)
    model.to(dtype)
    model.set_adapter(names[0])


def new_conditioning(
    dtype: torch.dtype = torch.float32, moved: int | None = 0, size: int = 3
) -> PreferenceConditioning:
    """``moved``: the seed of a change of all weights, or ``None`` for the state before training."""
    torch.manual_seed(2)
    conditioning = PreferenceConditioning(REWARDS[:size], width=16, frequencies=3).to(dtype)
    if moved is not None:
        move(conditioning.parameters(), moved)
    return conditioning


def preferences_for(count: int = BATCH, size: int = 3, seed: int = 0) -> Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed)).softmax(-1)


def inputs(dtype: torch.dtype = torch.float32, count: int = BATCH, seed: int = 0) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random).to(dtype)

    return {
        "hidden_states": normal(count, 4, 8, 8),
        "timestep": 1000 * torch.rand(count, generator=random).to(dtype),
        "encoder_hidden_states": normal(count, 5, 12),
        "pooled_projections": normal(count, 10),
    }


def by_hand(model: Any, conditioning: PreferenceConditioning, omega: Tensor, given: dict[str, Tensor]) -> Tensor:
    """The conditioned velocity, block by block, from ParetoSlider's formulas: e(ω) into the time embedding, and after
    each block's feed-forward residual h ← h + gate_mlp ⊙ m(ω).
    """
    time, vector = conditioning(omega)
    h = model.pos_embed(given["hidden_states"])
    temb = model.time_text_embed(given["timestep"], given["pooled_projections"]) + time
    context = model.context_embedder(given["encoder_hidden_states"])
    for block in model.transformer_blocks:
        gate = block.norm1(h, emb=temb)[4]
        context, h = block(hidden_states=h, encoder_hidden_states=context, temb=temb)
        h = h + gate.unsqueeze(1) * vector.unsqueeze(1)
    h = model.proj_out(model.norm_out(h, temb))
    patches = h.view(len(h), 4, 4, 2, 2, 4)
    return torch.einsum("nhwpqc->nchpwq", patches).reshape(len(h), 4, 8, 8)


def run(model: Any, given: dict[str, Tensor] | None = None) -> Tensor:
    output: Tensor = model(**(inputs(model.dtype) if given is None else given)).sample
    return output


def conditioned(model: Any, conditioning: PreferenceConditioning, omega: Any) -> Tensor:
    with conditioning.preference(omega):
        return run(model)
