"""Prompts of LTX-2, its VAE's tiles, and the pipeline of random weights that tests run."""

from pathlib import Path

import pytest
import torch
from ltx2_cases import PROMPTS, TEXTS, TOKENS, load, load_plain, noise
from safetensors.torch import load_file

from backbones import offload
from backbones.ltx2 import LTX2Backbone
from backbones.ltx2_latents import Grid, Joint, pack, tile_stride, unpack
from make_pipeline import make


@pytest.fixture(scope="module")
def backbone(tiny_ltx2: Path) -> LTX2Backbone:
    return load(tiny_ltx2, decode_batch=2)


def test_tokens_are_in_the_pipelines_order(tiny_ltx2: Path) -> None:
    x = torch.randn(2, 8, 3, 2, 4)
    assert torch.equal(pack(x), load_plain(tiny_ltx2)._pack_latents(x))
    assert torch.equal(unpack(pack(x), x), x)
    joint = Joint((8, 3, 2, 4), (5, 6))
    video, audio = joint.split(torch.randn(2, *joint.shape))
    assert video.shape == (2, 8, 3, 2, 4)
    assert audio.shape == (2, 5, 6)


def test_encoding_is_the_pipelines_and_does_not_depend_on_what_it_goes_with(
    tiny_ltx2: Path, backbone: LTX2Backbone
) -> None:
    pipeline = load_plain(tiny_ltx2)
    states, mask, _, _ = pipeline.encode_prompt(TEXTS, do_classifier_free_guidance=False, max_sequence_length=TOKENS)
    sequence, audio, mask = pipeline.connectors(states, mask)
    found = load(tiny_ltx2, audio="trained").encode(PROMPTS)
    torch.testing.assert_close(found["sequence"], sequence, rtol=0, atol=1e-5)
    torch.testing.assert_close(found["audio"], audio, rtol=0, atol=1e-5)
    assert mask.all(), "registers fill up what a prompt leaves, so that no mask is needed"
    together = backbone.encode(PROMPTS)
    alone = load(tiny_ltx2).encode(PROMPTS[1:])
    assert all(torch.equal(alone[name][0], together[name][1]) for name in together)


def test_a_mask_hides_what_is_under_it(tiny_ltx2: Path) -> None:
    """That of connectors without registers; what they return hides nothing in diffusers 0.42."""
    backbone = load(tiny_ltx2, audio="frozen")
    connectors = backbone.pipeline.connectors
    connectors.register_to_config(video_connector_num_learnable_registers=None)
    for connector in (connectors.video_connector, connectors.audio_connector):
        connector.learnable_registers = None
    conditioning = backbone.encode(PROMPTS)
    assert conditioning["mask"].shape == (2, TOKENS)
    x, t = noise(backbone), torch.full((2,), 0.5)
    mask = (torch.arange(TOKENS) < torch.tensor([[4], [9]])).long()
    masked = {**conditioning, "mask": mask}
    other = {name: torch.where(mask.unsqueeze(-1) > 0, masked[name], 5.0) for name in ("sequence", "audio")}
    found = backbone.velocity(x, t, masked)
    torch.testing.assert_close(backbone.velocity(x, t, {**masked, **other}), found)
    assert not torch.allclose(backbone.velocity(x, t, conditioning), found, atol=1e-4)


def test_text_encoder_and_connectors_visit_the_device_only_while_prompts_are_encoded(
    tiny_ltx2: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = load(tiny_ltx2)
    encoders = [backbone.pipeline.text_encoder, backbone.pipeline.connectors]
    homes = [weight.data_ptr() for encoder in encoders for weight in encoder.parameters()]
    used: list[bool] = []
    monkeypatch.setattr(offload, "copy", lambda tensor, device: tensor.clone())
    for encoder in encoders:
        encoder.register_forward_pre_hook(
            lambda module, _: used.append(all(weight.data_ptr() not in homes for weight in module.parameters()))
        )
    backbone.encode(PROMPTS)
    assert used == [True] * 2
    assert [weight.data_ptr() for encoder in encoders for weight in encoder.parameters()] == homes
    backbone.encode(PROMPTS)
    assert len(used) == 2, "known prompts move nothing"


def test_a_prompt_cache_on_disk_serves_another_backbone_of_the_same_model_only(
    tiny_ltx2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = load(tiny_ltx2, prompt_cache=str(tmp_path)).encode(PROMPTS)
    second = load(tiny_ltx2, prompt_cache=str(tmp_path))
    monkeypatch.setattr(second.pipeline, "encode_prompt", lambda *args, **kwargs: 1 / 0)
    assert torch.equal(second.encode(PROMPTS)["sequence"], expected["sequence"])
    for options in ({"audio": "frozen"}, {"max_tokens": 24}):
        load(tiny_ltx2, prompt_cache=str(tmp_path), **options).encode(PROMPTS)
    assert len(list(tmp_path.rglob("*.safetensors"))) == 6


def test_decoding_in_slices_changes_nothing(tiny_ltx2: Path, backbone: LTX2Backbone) -> None:
    latents = noise(backbone, 3)
    whole = load(tiny_ltx2, decode_batch=3).decode(latents)
    torch.testing.assert_close(backbone.decode(latents), whole, rtol=0, atol=1e-5)
    assert whole.is_contiguous()
    assert whole.min() >= 0
    assert whole.max() <= 1


def test_of_longer_videos_fewer_are_decoded_at_once(
    tiny_ltx2: Path, monkeypatch: pytest.MonkeyPatch, backbone: LTX2Backbone
) -> None:
    """Two of 25 frames of 512 x 512 pixels, one of 49 frames."""
    found: list[int] = []
    monkeypatch.setattr(backbone, "pixels", lambda latents: found.append(len(latents)) or latents[:, :1, :1])
    for frames in (4, 7):
        backbone.decode(torch.zeros(3, 8, frames, 16, 16))
    assert found == [2, 1, 1, 1, 1]


def test_tiled_decoding_is_close_to_the_whole(tiny_ltx2: Path, backbone: LTX2Backbone) -> None:
    tiled = load(tiny_ltx2, tiling=True)
    assert tiled.vae.tile_sample_min_height == tiled.vae.tile_sample_min_width == 512, "as ModelSettings says"
    tiled.vae.enable_tiling(tile_sample_min_height=128, tile_sample_min_width=128)
    latents = torch.randn(1, 8, 1, 3, 5, generator=torch.Generator().manual_seed(0))
    sizes = []
    tiled.vae.decoder.register_forward_pre_hook(lambda module, args: sizes.append(tuple(args[0].shape[3:])))
    found, whole = tiled.decode(latents), backbone.decode(latents)
    assert found.shape == whole.shape == (1, 1, 3, 96, 160)
    assert sizes == [(3, 4), (3, 2)], "a side of five latents in steps of four would leave one"
    difference = (found - whole).abs() / whole.std()
    assert difference[..., :32].mean() < 0.12, "far from the seam"
    assert difference[..., 64:].mean() < 0.7


@pytest.mark.parametrize(("side", "expected"), [(15, 16), (16, 16), (17, 14), (26, 14), (29, 13), (43, 13)])
def test_no_last_tile_is_a_single_latent(side: int, expected: int) -> None:
    assert tile_stride(side, tile=16, stride=14) == expected


def test_a_grid_names_the_numbers_next_to_a_wrong_one() -> None:
    grid = Grid(channels=128, space=32, time=8, least=2)
    assert grid.shape(25, 768, 512, ("frames", "size")) == (128, 4, 16, 24)
    for frames, side, message in [
        (24, 512, "frames = 24: take 17 or 25"),
        (0, 512, "frames = 0: take 1"),
        (True, 512, "frames = True: take a whole number such as 25"),
        (25, 100, "size = 100: take 96 or 128"),
        (25, 32, "size = 32: take 64"),
        (25, 64.0, "size = 64.0: take a whole number"),
    ]:
        with pytest.raises(ValueError, match=message):
            grid.shape(frames, side, side, ("frames", "size"))


def test_the_generated_pipeline_is_a_function_of_its_seed_and_finite(tiny_ltx2: Path, tmp_path: Path) -> None:
    again = make(tmp_path / "again", "ltx2")
    files = [path for path in tiny_ltx2.rglob("*") if path.is_file()]
    for path in files:
        assert (again / path.relative_to(tiny_ltx2)).read_bytes() == path.read_bytes(), path
        if path.suffix == ".safetensors":
            assert all(tensor.isfinite().all() for tensor in load_file(path).values()), path
    assert sum(path.stat().st_size for path in files) < 4e6
    statistics = load_file(tiny_ltx2 / "vae" / "diffusion_pytorch_model.safetensors")
    assert (statistics["latents_std"] > 0.5).all()
    assert statistics["latents_mean"].any()


def test_two_loads_are_equal_and_finite(tiny_ltx2: Path) -> None:
    """Rotary frequencies are not in the files: they are computed, whatever memory holds."""
    first, second = load(tiny_ltx2), load(tiny_ltx2)
    for one, two in zip(first.pipeline.components.values(), second.pipeline.components.values(), strict=True):
        if isinstance(one, torch.nn.Module):
            tensors = [[*part.parameters(), *part.buffers()] for part in (one, two)]
            assert all(torch.equal(a, b) and a.isfinite().all() for a, b in zip(*tensors, strict=True))
    x, t = noise(first), torch.full((2,), 0.5)
    outputs = [each.velocity(x, t, each.encode(PROMPTS)) for each in (first, second)]
    assert torch.equal(*outputs)


def test_the_full_size_is_ltx2_19b() -> None:
    from backbones.ltx2_shapes import FULL, parts

    made = parts(FULL)
    count = {name: sum(p.numel() for p in made[name]().parameters()) for name in ("transformer", "vae")}
    assert count == {"transformer": 18876174592, "vae": 1222479601}
