"""The SD3 backbone against the pipeline that it wraps."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusion3Pipeline

from backbones import offload
from backbones.interface import repeat
from backbones.load import load_backbone
from backbones.sd3 import SD3Backbone
from backbones.settings import ModelSettings
from make_pipeline import make
from prompts.prompt import Prompt

TEXTS = ["two red circles above a blue square", "", "a white horse"]
PROMPTS = [Prompt(text) for text in TEXTS]
TOKENS = 24


def load(folder: Path, **options: Any) -> SD3Backbone:
    backbone = load_backbone(ModelSettings(str(folder), max_tokens=TOKENS, **options))
    assert isinstance(backbone, SD3Backbone)
    return backbone


@pytest.fixture(scope="module")
def backbone(tiny_sd3: Path) -> SD3Backbone:
    return load(tiny_sd3, decode_batch=2)


@pytest.fixture(scope="module")
def pipeline(tiny_sd3: Path) -> StableDiffusion3Pipeline:
    pipeline = StableDiffusion3Pipeline.from_pretrained(tiny_sd3)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def noise(backbone: SD3Backbone, batch: int = 3) -> torch.Tensor:
    return torch.randn(batch, *backbone.latent_shape, generator=torch.Generator().manual_seed(0))


def test_velocity_is_the_transformers_output(backbone: SD3Backbone, pipeline: StableDiffusion3Pipeline) -> None:
    conditioning, t = backbone.encode(PROMPTS), torch.tensor([0.1, 0.5, 1.0])
    expected = pipeline.transformer(
        noise(backbone), conditioning["sequence"], conditioning["pooled"], 1000 * t, return_dict=False
    )[0]
    torch.testing.assert_close(backbone.velocity(noise(backbone), t, conditioning), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("guidance", [1.0, 4.5])
@pytest.mark.parametrize("resolution", [0, 32])
def test_sampling_and_decoding_equal_the_pipelines_call(
    tiny_sd3: Path, pipeline: StableDiffusion3Pipeline, guidance: float, resolution: int
) -> None:
    """Pins encoding, schedule with its shift, guidance, and the scaling and shift of the latents."""
    backbone = load(tiny_sd3, resolution=resolution, decode_batch=2)
    start = noise(backbone)
    side = resolution or 64
    expected = pipeline(
        TEXTS, num_inference_steps=5, guidance_scale=guidance, latents=start, output_type="pt",
        height=side, width=side, max_sequence_length=TOKENS,
    ).images  # fmt: skip
    images = backbone.decode(backbone.sample(backbone.encode(PROMPTS), start, 5, guidance=guidance))
    assert images.shape == (3, 3, side, side)
    assert images.dtype == torch.float32
    torch.testing.assert_close(images, expected, rtol=0, atol=1e-5)
    assert expected.std() > 0.1
    assert (expected[0] - expected[2]).abs().mean() > 0.05


def test_times_are_those_of_the_pipelines_scheduler(backbone: SD3Backbone, pipeline: StableDiffusion3Pipeline) -> None:
    assert backbone.schedule.shift == 3.0
    pipeline.scheduler.set_timesteps(7)
    assert torch.equal(backbone.times(7, "euler"), pipeline.scheduler.sigmas[:-1])


def test_decoding_in_slices_changes_nothing(tiny_sd3: Path, backbone: SD3Backbone) -> None:
    latents = noise(backbone, 5)
    whole = load(tiny_sd3, decode_batch=5).decode(latents)
    torch.testing.assert_close(backbone.decode(latents), whole, rtol=0, atol=1e-5)
    assert whole.is_contiguous(), "what the VAE returns has its channels last"
    assert whole.min() >= 0
    assert whole.max() <= 1


@pytest.mark.parametrize(
    ("side", "sizes"), [(8, [8, 1]), (64, [8, 1]), (65, [7, 2]), (128, [2, 2, 2, 2, 1]), (256, [1] * 9)]
)
def test_of_larger_images_fewer_are_decoded_at_once(
    tiny_sd3: Path, monkeypatch: pytest.MonkeyPatch, side: int, sizes: list[int]
) -> None:
    """As many as have the pixels of eight images of 512 x 512, at most eight, at least one."""
    backbone, found = load(tiny_sd3), []

    def pixels(latents: torch.Tensor) -> torch.Tensor:
        found.append(len(latents))
        return latents[:, :3, :1, :1]

    monkeypatch.setattr(backbone, "pixels", pixels)
    assert backbone.decode(torch.zeros(9, 16, side, side)).shape == (9, 3, 1, 1)
    assert found == sizes


def test_everything_is_frozen_and_in_evaluation_mode(backbone: SD3Backbone) -> None:
    parts = [backbone.pipeline.components[name] for name in ("transformer", "vae", "text_encoder", "text_encoder_3")]
    assert not any(part.training for part in parts)
    assert not any(weight.requires_grad for part in parts for weight in part.parameters())


def test_encoding_is_the_pipelines_and_keeps_the_order(
    backbone: SD3Backbone, pipeline: StableDiffusion3Pipeline
) -> None:
    expected = pipeline.encode_prompt(
        TEXTS, None, None, do_classifier_free_guidance=False, max_sequence_length=TOKENS, device=torch.device("cpu")
    )
    found = backbone.encode(PROMPTS)
    torch.testing.assert_close(found["sequence"], expected[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(found["pooled"], expected[2], rtol=0, atol=1e-5)
    turned = backbone.encode(PROMPTS[::-1])
    assert torch.equal(turned["sequence"].flip(0), found["sequence"])


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_an_embedding_does_not_depend_on_what_it_is_encoded_with(tiny_sd3: Path, precision: str) -> None:
    """Bit for bit: a resumed run, which has other prompts in its cache, continues as the unbroken one."""
    together = load(tiny_sd3, precision=precision).encode(PROMPTS)
    for i, prompt in enumerate(PROMPTS):
        alone = load(tiny_sd3, precision=precision).encode([prompt])
        assert all(torch.equal(alone[name][0], together[name][i]) for name in together)


def test_a_pipeline_without_its_t5_works(tmp_path: Path) -> None:
    backbone = load(make(tmp_path / "sd3", left_out=("text_encoder_3", "tokenizer_3")))
    conditioning = backbone.encode(PROMPTS)
    assert conditioning["sequence"].shape == (3, 77 + TOKENS, 80)
    assert not conditioning["sequence"][:, 77:].any()
    assert backbone.velocity(noise(backbone), torch.rand(3), conditioning).isfinite().all()


def test_half_precision_end_to_end(tiny_sd3: Path, backbone: SD3Backbone) -> None:
    half = load(tiny_sd3, precision="bf16")
    assert half.transformer.dtype == torch.bfloat16
    assert half.vae.dtype == torch.float32
    conditioning = half.encode(PROMPTS)
    assert conditioning["sequence"].dtype == torch.bfloat16
    assert half.velocity(noise(half), torch.rand(3), conditioning).dtype == torch.float32
    latents = half.sample(repeat(conditioning, 2), noise(half, 6), 3, solver="dpm2", guidance=2.0)
    expected = backbone.sample(repeat(backbone.encode(PROMPTS), 2), noise(half, 6), 3, solver="dpm2", guidance=2.0)
    assert latents.dtype == torch.float32
    assert (latents - expected).norm() / expected.norm() < 0.02
    assert half.decode(latents).isfinite().all()


def test_text_encoders_visit_the_device_only_while_prompts_are_encoded(
    tiny_sd3: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = load(tiny_sd3)
    encoders = [backbone.pipeline.text_encoder, backbone.pipeline.text_encoder_2, backbone.pipeline.text_encoder_3]
    homes = [weight.data_ptr() for encoder in encoders for weight in encoder.parameters()]
    moved: list[int] = []
    used: list[bool] = []

    def copy(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
        # Stands for the copy to a device of its own.
        moved.append(tensor.data_ptr())
        return tensor.clone()

    def record(module: torch.nn.Module, *_: object) -> None:
        used.append(all(weight.data_ptr() not in homes for weight in module.parameters()))

    monkeypatch.setattr(offload, "copy", copy)
    for encoder in encoders:
        encoder.register_forward_pre_hook(record)
    backbone.encode(PROMPTS)
    assert used == [True] * 3
    assert set(homes) <= set(moved)
    assert [weight.data_ptr() for encoder in encoders for weight in encoder.parameters()] == homes
    moved.clear()
    backbone.encode(PROMPTS)
    assert not moved, "known prompts move nothing"
    load(tiny_sd3, offload_text_encoders=False).encode(PROMPTS)
    assert not moved, "encoders that live on the device stay there"


def test_weights_come_home_after_an_error(tiny_sd3: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = load(tiny_sd3)
    weight = backbone.pipeline.text_encoder.text_projection.weight
    home = weight.data_ptr()
    monkeypatch.setattr(offload, "copy", lambda tensor, device: tensor.clone())
    monkeypatch.setattr(backbone.pipeline, "encode_prompt", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        backbone.encode(PROMPTS)
    assert weight.data_ptr() == home


def test_a_prompt_cache_on_disk_serves_another_backbone_of_the_same_model_only(
    tiny_sd3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    expected = load(tiny_sd3, prompt_cache=str(cache)).encode(PROMPTS)
    assert len(list(cache.rglob("*.safetensors"))) == 3
    second = load(tiny_sd3, prompt_cache=str(cache))
    monkeypatch.setattr(second.pipeline, "encode_prompt", lambda *args, **kwargs: 1 / 0)
    assert torch.equal(second.encode(PROMPTS)["sequence"], expected["sequence"])
    others = [
        load(tiny_sd3, prompt_cache=str(cache), precision="bf16"),
        load_backbone(ModelSettings(str(tiny_sd3), max_tokens=TOKENS + 1, prompt_cache=str(cache))),
        load(make(tmp_path / "other", seed=1), prompt_cache=str(cache)),
    ]
    for other in others:
        found = other.encode(PROMPTS)["sequence"]
        assert found.shape != expected["sequence"].shape or not torch.equal(found.float(), expected["sequence"])
    assert len(list(cache.rglob("*.safetensors"))) == 12
