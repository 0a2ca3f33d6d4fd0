"""What is particular to the conditioning of Flux and of LTX-2, and transformers that are neither."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from marble_opt.preferences import PreferenceConditioning, conditioning_width, install
from preference_cases import (
    BATCH,
    REWARDS,
    TARGETS,
    add_lora,
    conditioned,
    inputs,
    new_conditioning,
    new_transformer,
    preferences_for,
    run,
)
from toys import close
from transformer_families import FAMILIES, FRAMES, SIDE, WIDTH, flux, ltx2, rows, sd3

TOKENS = FRAMES * SIDE * SIDE


@pytest.mark.parametrize("family", FAMILIES)
def test_the_width_is_told(family: str) -> None:
    model = new_transformer(family=family)
    assert conditioning_width(model) == WIDTH
    add_lora(model, "default", targets=[*TARGETS, "linear", "proj_out"])
    assert conditioning_width(model) == WIDTH
    with pytest.raises(ValueError, match=f"width 8, the transformer {WIDTH}"):
        install(model, PreferenceConditioning(REWARDS, 8))


def test_the_widths_in_the_docs_are_those_of_the_published_models() -> None:
    from diffusers import FluxTransformer2DModel, LTX2VideoTransformer3DModel, SD3Transformer2DModel

    with torch.device("meta"):
        assert conditioning_width(SD3Transformer2DModel(num_layers=1, num_attention_heads=24)) == 1536
        assert conditioning_width(FluxTransformer2DModel(num_layers=1, num_single_layers=1)) == 3072
        assert conditioning_width(LTX2VideoTransformer3DModel(num_layers=1)) == 4096


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("kind", ["transformer_blocks", "single_transformer_blocks"])
def test_one_block_of_flux_adds_to_the_image_tokens_alone(kind: str, named: bool) -> None:
    model, conditioning = new_transformer(torch.float64, "flux"), new_conditioning(torch.float64)
    block = getattr(model, kind)[0]
    random = torch.Generator().manual_seed(3)
    h, context, temb, vector = (
        torch.randn(2, *shape, generator=random, dtype=torch.float64) for shape in ([7, 16], [5, 16], [16], [16])
    )
    image = model.pos_embed(torch.arange(36.0).view(12, 3))

    def call(time: Tensor) -> tuple[Tensor, Tensor]:
        if named:
            found = block(hidden_states=h, encoder_hidden_states=context, temb=time, image_rotary_emb=image)
        else:
            found = block(h, context, time, image)
        return tuple(found)

    plain = call(temb)
    gate = block.norm1(h, emb=temb)[4] if kind == "transformer_blocks" else block.norm(h, emb=temb)[1]
    with install(model, conditioning):
        text, tokens = call(torch.cat([temb, vector], 1))
        assert all(torch.equal(a, b) for a, b in zip(call(temb), plain, strict=True))
    assert torch.equal(text, plain[0])
    assert close(tokens - plain[1], (gate * vector).unsqueeze(1).expand_as(tokens))


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_on_the_hooked_layers_may_come_before_or_after(family: str) -> None:
    targets, outputs = ["proj_out", "net.2", "linear", "linear_1"], []
    for first in (True, False):
        model, conditioning = new_transformer(family=family), new_conditioning()
        if first:
            add_lora(model, "default", targets=targets)
        handle = install(model, conditioning)
        if not first:
            add_lora(model, "default", targets=targets)
        outputs.append(conditioned(model, conditioning, preferences_for()))
        handle.remove()
        run(model)
    assert torch.equal(*outputs)


def test_one_time_per_token_of_a_video() -> None:
    model, conditioning = new_transformer(torch.float64, "ltx2"), new_conditioning(torch.float64)
    given, omega = inputs(torch.float64, family="ltx2"), preferences_for()
    apart = {**given, "audio_timestep": given["timestep"]}
    with install(model, conditioning), conditioning.preference(omega):
        same = run(model, {**apart, "timestep": given["timestep"].unsqueeze(1).expand(-1, TOKENS)})
        # The attention between video and sound has one modulation per token too.
        assert close(same, run(model, apart))
        apart["timestep"] = 1000 * torch.rand(BATCH, TOKENS, dtype=torch.float64)
        whole = run(model, apart)
        assert not close(whole, same, 1e-3)
        for i in range(BATCH):
            with conditioning.preference(omega[i]):
                assert close(run(model, rows(apart, slice(i, i + 1))), whole[i : i + 1], 1e-7)
        with conditioning.preference(omega[:3]), pytest.raises(ValueError, match="runs 4 samples with 3 preferences"):
            run(model, apart)


def test_the_sound_sees_the_preference_through_the_video_alone() -> None:
    model, conditioning, omega = new_transformer(family="ltx2"), new_conditioning(), preferences_for()
    given = inputs(family="ltx2")

    def both(isolated: bool) -> tuple[Tensor, Tensor]:
        output = model(**given, isolate_modalities=isolated)
        return output.sample, output.audio_sample

    for isolated in (True, False):
        video, sound = both(isolated)
        with install(model, conditioning), conditioning.preference(omega):
            seen, heard = both(isolated)
        assert not close(seen, video, 1e-2)
        assert torch.equal(heard, sound) == isolated


def test_the_newer_ltx2() -> None:
    """Nine modulations in place of six, gates, another rotary embedding."""
    model = ltx2(newer=True).eval().requires_grad_(False)
    given, omega = inputs(family="ltx2"), preferences_for()
    base = run(model, given)
    with install(model, start := new_conditioning(moved=None)), start.preference(omega):
        assert torch.equal(run(model, given), base)
    with install(model, moved := new_conditioning()), moved.preference(omega):
        whole = run(model, given)
        assert not close(whole, base, 1e-2)
        with moved.preference(omega[1]):
            assert close(run(model, rows(given, slice(1, 2))), whole[1:2], 1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_reloaded_with_a_lora_into_a_plain_transformer(family: str, tmp_path: Path) -> None:
    model, conditioning, omega = new_transformer(family=family), new_conditioning(), preferences_for()
    base = run(model)
    install(model, conditioning)
    add_lora(model, "default")
    expected = conditioned(model, conditioning, omega)
    model.save_lora_adapter(tmp_path, adapter_name="default")
    conditioning.save_pretrained(tmp_path)
    fresh, again = new_transformer(family=family), PreferenceConditioning.from_pretrained(tmp_path)
    fresh.load_lora_adapter(str(tmp_path), prefix=None, weight_name="pytorch_lora_weights.safetensors")
    install(fresh, again)
    found = conditioned(fresh, again, omega)
    assert close(found, expected, 1e-6)
    assert not close(found, base, 1e-2)
    assert not close(conditioned(fresh, again, None), found, 1e-3)
    assert not close(conditioned(fresh, again, omega[[1, 0, 2, 3]]), found, 1e-3)


class OldSingleBlock(nn.Module):
    """As in diffusers 0.34, which joins the streams before these blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.proj_out = nn.Linear(2, 2)

    def forward(self, hidden_states: Tensor, temb: Tensor, image_rotary_emb: Any = None) -> Tensor:
        return hidden_states


def test_single_blocks_that_do_not_know_the_text_are_refused() -> None:
    model = flux()
    model.single_transformer_blocks = nn.ModuleList([OldSingleBlock()])
    with pytest.raises(ValueError, match=r"OldSingleBlock takes no encoder_hidden_states.*diffusers>=0\.35"):
        install(model, new_conditioning())


def test_transformers_of_other_families_are_refused_with_what_they_lack() -> None:
    from diffusers import LTXVideoTransformer3DModel

    older = LTXVideoTransformer3DModel(num_layers=1, num_attention_heads=2, attention_head_dim=8)
    with pytest.raises(ValueError, match=r"LTXVideo.* not .* SD3, Flux or LTX-2: as LTX-2 it has no audio_time_embed"):
        conditioning_width(older)
    # Flux's names, but the text's tokens come last: models for video with embedders of their own kind.
    model = flux()
    model.x_embedder, model.context_embedder = nn.Identity(), nn.Identity()
    with pytest.raises(ValueError, match=r"as Flux it has no x_embedder\.weight, context_embedder\.weight"):
        conditioning_width(model)
    model = ltx2()
    del model.transformer_blocks[1].audio_ff
    with pytest.raises(ValueError, match=r"as LTX-2 it has no transformer_blocks\.1\.audio_ff"):
        conditioning_width(model)
    model = sd3()
    model.single_transformer_blocks = nn.ModuleList()
    with pytest.raises(ValueError, match=r"as Flux it has no x_embedder\.weight"):
        install(model, new_conditioning())
