"""Small transformers with LoRA and conditionings whose last layers are no longer zero."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import transformer_families
from factored_cases import move
from marble_opt.preferences import PreferenceConditioning
from transformer_families import FRAMES, MAKERS, SIDE, WIDTH, family_of, inputs_for

REWARDS = ["photo", "sketch", "colour"]
BATCH = 4
TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"]


def new_transformer(dtype: torch.dtype = torch.float32, family: str = "sd3") -> Any:
    # diffusers' RMSNorm rounds to fp32 in a model in fp64.
    options = {"qk_norm": None} if family == "sd3" and dtype is torch.float64 else {}
    model = MAKERS[family](**options).to(dtype).eval()
    model.requires_grad_(False)
    return model


def add_lora(model: Any, *names: str, targets: list[str] = TARGETS) -> None:
    from peft import LoraConfig

    dtype = model.dtype
    torch.manual_seed(1)
    for name in names:
        model.add_adapter(LoraConfig(r=2, target_modules=targets, init_lora_weights=False), name)
    model.to(dtype)
    model.set_adapter(names[0])


def new_conditioning(
    dtype: torch.dtype = torch.float32, moved: int | None = 0, size: int = 3
) -> PreferenceConditioning:
    """``moved``: the seed of a change of all weights, or ``None`` for the state before training."""
    torch.manual_seed(2)
    conditioning = PreferenceConditioning(REWARDS[:size], width=WIDTH, frequencies=3).to(dtype)
    if moved is not None:
        move(conditioning.parameters(), moved)
    return conditioning


def preferences_for(count: int = BATCH, size: int = 3, seed: int = 0) -> Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed)).softmax(-1)


def inputs(
    dtype: torch.dtype = torch.float32, count: int = BATCH, seed: int = 0, family: str = "sd3"
) -> dict[str, Any]:
    return inputs_for(family, dtype, count, seed)


def by_hand(model: Any, conditioning: PreferenceConditioning, omega: Tensor, given: dict[str, Any]) -> Tensor:
    """The conditioned velocity, block by block, from ParetoSlider's formulas: e(ω) into the time embedding, and after
    each block's feed-forward residual h ← h + gate_mlp ⊙ m(ω).
    """
    time, vector = conditioning(omega)
    return HANDS[family_of(model)](model, time.unsqueeze(1), vector.unsqueeze(1), given)


def _sd3_by_hand(model: Any, time: Tensor, vector: Tensor, given: dict[str, Any]) -> Tensor:
    h = model.pos_embed(given["hidden_states"])
    temb = model.time_text_embed(given["timestep"], given["pooled_projections"]) + time.squeeze(1)
    context = model.context_embedder(given["encoder_hidden_states"])
    for block in model.transformer_blocks:
        gate = block.norm1(h, emb=temb)[4]
        context, h = block(hidden_states=h, encoder_hidden_states=context, temb=temb)
        h = h + gate.unsqueeze(1) * vector
    h = model.proj_out(model.norm_out(h, temb))
    patches = h.view(len(h), 4, 4, 2, 2, 4)
    return torch.einsum("nhwpqc->nchpwq", patches).reshape(len(h), 4, 8, 8)


def _flux_by_hand(model: Any, time: Tensor, vector: Tensor, given: dict[str, Any]) -> Tensor:
    h, context = model.x_embedder(given["hidden_states"]), model.context_embedder(given["encoder_hidden_states"])
    times, guidance = 1000 * given["timestep"], 1000 * given["guidance"]
    temb = model.time_text_embed(times, guidance, given["pooled_projections"]) + time.squeeze(1)
    places = model.pos_embed(torch.cat([given["txt_ids"], given["img_ids"]]))
    for block in model.transformer_blocks:
        gate = block.norm1(h, emb=temb)[4]
        context, h = block(h, context, temb, places)
        h = h + gate.unsqueeze(1) * vector
    for block in model.single_transformer_blocks:
        gate = block.norm(torch.cat([context, h], 1), emb=temb)[1]
        context, h = block(h, context, temb, places)
        h = h + gate.unsqueeze(1) * vector
    found: Tensor = model.proj_out(model.norm_out(h, temb))
    return found


def _ltx2_by_hand(model: Any, time: Tensor, vector: Tensor, given: dict[str, Any]) -> Tensor:
    batch, size = len(given["hidden_states"]), given["hidden_states"].dtype
    h, sound = model.proj_in(given["hidden_states"]), model.audio_proj_in(given["audio_hidden_states"])
    text = model.caption_projection(given["encoder_hidden_states"])
    said = model.audio_caption_projection(given["audio_encoder_hidden_states"])
    seen = model.rope.prepare_video_coords(batch, FRAMES, SIDE, SIDE, h.device, fps=24.0)
    heard = model.audio_rope.prepare_audio_coords(batch, given["audio_num_frames"], h.device)

    def modulation(part: Any) -> tuple[Tensor, Tensor]:
        each = part(given["timestep"].flatten(), batch_size=batch, hidden_dtype=size)
        return each[0].view(batch, -1, each[0].shape[-1]), each[1].view(batch, -1, each[1].shape[-1])

    embedded = modulation(model.time_embed)[1] + time
    temb = model.time_embed.linear(F.silu(embedded))
    temb_audio, embedded_audio = modulation(model.audio_time_embed)
    between = [model.av_cross_attn_video_scale_shift, model.av_cross_attn_audio_scale_shift]
    between += [model.av_cross_attn_video_a2v_gate, model.av_cross_attn_audio_v2a_gate]
    crossing = [modulation(part)[0] for part in between]
    ropes = model.rope(seen), model.audio_rope(heard)
    ropes += model.cross_attn_rope(seen[:, :1]), model.cross_attn_audio_rope(heard[:, :1])
    for block in model.transformer_blocks:
        gate = block.scale_shift_table[5] + temb.view(batch, -1, 6, WIDTH)[:, :, 5]
        h, sound = block(h, sound, text, said, temb, temb_audio, *crossing, None, None, *ropes)
        h = h + gate * vector

    def last(tokens: Tensor, norm: Any, table: Tensor, embedding: Tensor, layer: Any) -> Tensor:
        shift, scale = table[0] + embedding, table[1] + embedding
        found: Tensor = layer(norm(tokens) * (1 + scale) + shift)
        return found.flatten(1)

    video = last(h, model.norm_out, model.scale_shift_table, embedded, model.proj_out)
    tones = last(sound, model.audio_norm_out, model.audio_scale_shift_table, embedded_audio, model.audio_proj_out)
    return torch.cat([video, tones], 1)


HANDS: dict[str, Callable[..., Tensor]] = {"sd3": _sd3_by_hand, "flux": _flux_by_hand, "ltx2": _ltx2_by_hand}


def run(model: Any, given: dict[str, Any] | None = None) -> Tensor:
    given = inputs(model.dtype, family=family_of(model)) if given is None else given
    return transformer_families.run(model, given)


def conditioned(model: Any, conditioning: PreferenceConditioning, omega: Any) -> Tensor:
    with conditioning.preference(omega):
        return run(model)
