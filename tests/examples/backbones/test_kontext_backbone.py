"""The Flux Kontext backbone against the pipeline that it wraps."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxKontextPipeline
from kontext_cases import TEXTS, TOKENS, load, noise, picture, prompts
from PIL import Image

from backbones.flux_kontext import FluxKontextBackbone
from backbones.flux_tokens import pack, positions, unpack
from backbones.interface import repeat
from prompts.prompt import Prompt


@pytest.fixture(scope="module")
def backbone(tiny_kontext: Path) -> FluxKontextBackbone:
    return load(tiny_kontext, decode_batch=2, guidance=2.0)


@pytest.fixture(scope="module")
def pipeline(tiny_kontext: Path) -> FluxKontextPipeline:
    pipeline = FluxKontextPipeline.from_pretrained(tiny_kontext)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def call(
    pipeline: FluxKontextPipeline, some: list[Prompt], start: torch.Tensor, steps: int, **options: Any
) -> torch.Tensor:
    """The pipeline's own images, of the size of the latents ``start``."""
    height, width = (8 * side for side in start.shape[-2:])
    images = [Image.open(prompt.metadata["image"]).resize((width, height), Image.Resampling.LANCZOS) for prompt in some]
    return pipeline(
        image=images, prompt=[prompt.text for prompt in some], latents=pack(start), height=height, width=width,
        max_area=height * width, num_inference_steps=steps, output_type="pt", max_sequence_length=TOKENS,
        _auto_resize=False, **options,
    ).images  # fmt: skip


@pytest.mark.parametrize(("size", "resolution"), [((64, 64), 0), ((75, 70), 64), ((33, 38), 32)])
def test_sampling_and_decoding_equal_the_pipelines_call(
    tiny_kontext: Path, tmp_path: Path, pipeline: FluxKontextPipeline, size: tuple[int, int], resolution: int
) -> None:
    """Pins encoding, the source's resizing, shift and scale, the tokens and their positions, guidance, and times."""
    backbone = load(tiny_kontext, resolution=resolution, guidance=4.0, decode_batch=2)
    some = prompts(tmp_path, *size)
    start = noise(backbone, some)
    expected = call(pipeline, some, start, 4, guidance_scale=4.0)
    images = backbone.decode(backbone.sample(backbone.encode(some), start, 4))
    assert images.shape == expected.shape
    assert images.dtype == torch.float32
    torch.testing.assert_close(images, expected, rtol=0, atol=1e-5)
    assert expected.std() > 0.1
    swapped = [Prompt(prompt.text, "edits", some[i].metadata) for i, prompt in zip((1, 0, 2), some, strict=True)]
    other = backbone.decode(backbone.sample(backbone.encode(swapped), start, 4))
    assert (other - images).abs()[:2].mean() > 1e-3, "the images depend on their sources"
    assert torch.equal(other[2], images[2])


def test_another_shape_equals_the_pipelines_call_at_the_shift_of_the_square(
    tiny_kontext: Path, tmp_path: Path, backbone: FluxKontextBackbone
) -> None:
    pipeline = FluxKontextPipeline.from_pretrained(tiny_kontext)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler.register_to_config(use_dynamic_shifting=False)
    pipeline.scheduler.set_shift(backbone.schedule.shift)
    some = prompts(tmp_path, 64, 130)
    start = noise(backbone, some)
    assert start.shape == (3, 16, 12, 6)
    images = backbone.decode(backbone.sample(backbone.encode(some), start, 3))
    torch.testing.assert_close(images, call(pipeline, some, start, 3, guidance_scale=2.0), rtol=0, atol=1e-5)


def test_guidance_goes_from_the_empty_prompt_with_the_same_source(
    backbone: FluxKontextBackbone, tmp_path: Path, pipeline: FluxKontextPipeline
) -> None:
    some = prompts(tmp_path)
    start, conditioning = noise(backbone, some), backbone.encode(some)
    options = {"guidance_scale": 2.0, "true_cfg_scale": 3.0, "negative_prompt": [""] * len(some)}
    expected = call(pipeline, some, start, 3, **options)
    images = backbone.decode(backbone.sample(conditioning, start, 3, guidance=3.0))
    torch.testing.assert_close(images, expected, rtol=0, atol=1e-5)
    plain = backbone.decode(backbone.sample(conditioning, start, 3))
    difference = (images - plain).abs().flatten(1).mean(1)
    assert difference[1] < 1e-5, "guidance changes nothing where the prompt is the empty one"
    assert difference[[0, 2]].min() > 1e-3


def test_times_are_those_of_the_pipelines_scheduler(
    backbone: FluxKontextBackbone, tmp_path: Path, pipeline: FluxKontextPipeline
) -> None:
    some = prompts(tmp_path)[:1]
    call(pipeline, some, noise(backbone, some), 5)
    torch.testing.assert_close(backbone.times(5, "euler"), pipeline.scheduler.sigmas[:-1], rtol=0, atol=1e-6)


def test_only_the_targets_tokens_come_out(backbone: FluxKontextBackbone, tmp_path: Path) -> None:
    """What the network puts out for the source's tokens reaches neither the velocity nor a gradient."""
    some = prompts(tmp_path)
    x, t, conditioning = noise(backbone, some), torch.tensor([0.2, 0.5, 1.0]), backbone.encode(some)
    seen: list[torch.Tensor] = []

    def spoil(module: torch.nn.Module, inputs: object, output: torch.Tensor) -> torch.Tensor:
        seen.append(output)
        return torch.cat(
            [output[:, : output.shape[1] // 2], torch.full_like(output[:, output.shape[1] // 2 :], 7.0)], 1
        )

    expected = backbone.velocity(x, t, conditioning)
    handle = backbone.transformer.proj_out.register_forward_hook(spoil)
    v = backbone.velocity(x, t, conditioning)
    handle.remove()
    assert seen[0].shape[1] == backbone.tokens == 32
    assert v.shape == x.shape
    assert torch.equal(v, expected)
    moved = backbone.velocity(x, t, {**conditioning, "source": conditioning["source"].flip(0)})
    assert (moved - v).abs().mean() > 1e-3, "the source is read"


def test_tokens_are_patches_row_by_row_and_know_their_place() -> None:
    latents = torch.randn(2, 3, 4, 6)
    tokens = pack(latents)
    assert tokens.shape == (2, 6, 12)
    torch.testing.assert_close(tokens[1, 4], latents[1, :, 2:4, 2:4].flatten())
    assert torch.equal(unpack(tokens, (4, 6)), latents)
    expected = FluxKontextPipeline._pack_latents(latents, 2, 3, 4, 6)
    assert torch.equal(tokens, expected)
    ids = positions(latents, latents[..., :2])
    assert torch.equal(ids[4], torch.tensor([0.0, 1.0, 1.0]))
    assert ids[6:].tolist() == [[1, 0, 0], [1, 1, 0]]


def test_a_source_is_encoded_once_and_alone(
    tiny_kontext: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit the same whatever it is encoded with: a resumed run continues as the unbroken one."""
    backbone = load(tiny_kontext)
    first, second = picture(tmp_path, seed=1), picture(tmp_path, seed=2)
    some = [
        Prompt(text, "edits", {"image": path}) for text, path in zip("abca", (first, second, first, first), strict=True)
    ]
    batches: list[int] = []
    encode = backbone.vae.encode

    def counted(images: torch.Tensor) -> object:
        batches.append(len(images))
        return encode(images)

    monkeypatch.setattr(backbone.vae, "encode", counted)
    together = backbone.encode(some)
    assert batches == [1, 1]
    assert torch.equal(together["source"][0], together["source"][2])
    assert not torch.equal(together["source"][0], together["source"][1])
    for i, prompt in enumerate(some):
        alone = backbone.encode([prompt])
        assert all(torch.equal(alone[name][0], together[name][i]) for name in together)
    assert not together["source"].requires_grad


def test_prompts_are_cached_on_disk(tiny_kontext: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, some = tmp_path / "cache", prompts(tmp_path)
    expected = load(tiny_kontext, prompt_cache=str(cache)).encode(some)
    assert len(list(cache.rglob("*.safetensors"))) == len(TEXTS)
    second = load(tiny_kontext, prompt_cache=str(cache))
    monkeypatch.setattr(second.pipeline, "encode_prompt", lambda *args, **kwargs: 1 / 0)
    found = second.encode(some)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    other = load(tiny_kontext, prompt_cache=str(cache), precision="bf16").encode(some)
    assert not torch.equal(other["sequence"].float(), expected["sequence"])


def test_half_precision_end_to_end(tiny_kontext: Path, tmp_path: Path, backbone: FluxKontextBackbone) -> None:
    half, some = load(tiny_kontext, precision="bf16", tiling=True, guidance=2.0), prompts(tmp_path)
    assert half.transformer.dtype == torch.bfloat16
    assert half.vae.dtype == torch.float32
    assert half.vae.use_tiling
    conditioning = half.encode(some)
    assert conditioning["sequence"].dtype == torch.bfloat16
    assert conditioning["source"].dtype == torch.float32
    start, t = noise(half, some), torch.full((3,), 0.5)
    v, expected = half.velocity(start, t, conditioning), backbone.velocity(start, t, backbone.encode(some))
    assert v.dtype == torch.float32
    # A time and a guidance of few bits: the network itself rounds both to its precision, as in the pipeline.
    assert (v - expected).norm() / expected.norm() < 0.03
    latents = half.sample(repeat(conditioning, 2), start.repeat(2, 1, 1, 1), 2, solver="dpm2", guidance=2.0)
    assert latents.dtype == torch.float32
    assert half.decode(latents).isfinite().all()


def test_everything_is_frozen_and_in_evaluation_mode(backbone: FluxKontextBackbone) -> None:
    parts = [backbone.pipeline.components[name] for name in ("transformer", "vae", "text_encoder", "text_encoder_2")]
    assert not any(part.training for part in parts)
    assert not any(weight.requires_grad for part in parts for weight in part.parameters())


def test_a_network_without_guidance_embedding_is_told_none(tiny_kontext: Path, tmp_path: Path) -> None:
    folder = tmp_path / "plain"
    shutil.copytree(tiny_kontext, folder)
    path = folder / "transformer" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"guidance_embeds": False}))
    some = prompts(tmp_path)
    images = []
    for guidance in (1.0, 9.0):
        backbone = load(folder, guidance=guidance)
        images.append(backbone.sample(backbone.encode(some), noise(backbone, some), 2))
    assert torch.equal(*images)
