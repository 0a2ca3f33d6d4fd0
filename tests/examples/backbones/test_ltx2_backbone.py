"""The LTX-2 backbone against the pipeline that it wraps."""

from pathlib import Path

import pytest
import torch
from diffusers import LTX2Pipeline
from ltx2_cases import FRAMES, PROMPTS, SIDE, TEXTS, TOKENS, call, load, load_plain, noise

from backbones.interface import repeat
from backbones.ltx2 import LTX2Backbone
from prompts.prompt import Prompt


@pytest.fixture(scope="module")
def isolated(tiny_ltx2: Path) -> LTX2Backbone:
    return load(tiny_ltx2, decode_batch=1)


@pytest.fixture(scope="module")
def joint(tiny_ltx2: Path) -> LTX2Backbone:
    return load(tiny_ltx2, audio="frozen", decode_batch=1)


@pytest.fixture(scope="module")
def pipeline(tiny_ltx2: Path) -> LTX2Pipeline:
    return load_plain(tiny_ltx2)


def test_sampling_and_decoding_equal_the_pipelines_call(joint: LTX2Backbone, pipeline: LTX2Pipeline) -> None:
    """Pins encoding, connectors, schedule, positions, the length of the sound and the latents' statistics."""
    assert joint.joint is not None
    start = noise(joint)
    expected = call(pipeline, *joint.joint.split(start), output_type="pt")[0]
    videos = joint.decode(joint.sample(joint.encode(PROMPTS), start, 3))
    assert videos.shape == (2, FRAMES, 3, SIDE, SIDE)
    assert videos.dtype == torch.float32
    torch.testing.assert_close(videos, expected, rtol=0, atol=2e-4)
    assert expected.std() > 0.1
    assert (expected[0] - expected[1]).abs().mean() > 0.05


def test_guided_latents_of_video_and_sound_equal_the_pipelines(joint: LTX2Backbone, pipeline: LTX2Pipeline) -> None:
    assert joint.joint is not None
    start = noise(joint)
    video, audio = call(pipeline, *joint.joint.split(start), guidance=3.0, output_type="latent")
    vae, audio_vae = pipeline.vae, pipeline.audio_vae
    expected = pipeline._normalize_latents(video, vae.latents_mean, vae.latents_std)
    sound = pipeline._pack_audio_latents(audio)
    sound = pipeline._normalize_audio_latents(sound, audio_vae.latents_mean, audio_vae.latents_std)
    found = joint.joint.split(joint.sample(joint.encode(PROMPTS), start, 3, guidance=3.0))
    torch.testing.assert_close(found[0], expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(found[1], sound, rtol=0, atol=1e-4)


def test_the_length_of_the_sound_is_the_pipelines(joint: LTX2Backbone, pipeline: LTX2Pipeline) -> None:
    lengths = []
    handle = pipeline.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: lengths.append(kwargs["audio_hidden_states"].shape[1:]), with_kwargs=True
    )
    options = {"guidance_scale": 1.0, "audio_guidance_scale": 1.0, "stg_scale": 0.0, "audio_stg_scale": 0.0}
    pipeline(
        TEXTS[0], height=SIDE, width=SIDE, num_frames=FRAMES, num_inference_steps=1, sigmas=[1.0, 0.5],
        modality_scale=1.0, audio_modality_scale=1.0, max_sequence_length=TOKENS, output_type="latent", **options,
    )  # fmt: skip
    handle.remove()
    assert joint.joint is not None
    assert set(lengths) == {torch.Size(joint.joint.audio)}


def test_times_are_those_of_the_pipelines_call(joint: LTX2Backbone, pipeline: LTX2Pipeline) -> None:
    assert joint.joint is not None
    call(pipeline, *joint.joint.split(noise(joint)), output_type="latent")
    torch.testing.assert_close(joint.times(3, "euler"), pipeline.scheduler.sigmas[:-1])
    assert joint.times(3, "euler")[-1] == pytest.approx(0.1)


def test_the_isolated_velocity_is_the_transformers_with_isolated_modalities(
    isolated: LTX2Backbone, pipeline: LTX2Pipeline
) -> None:
    x, t = noise(isolated), torch.tensor([0.2, 0.9])
    states, mask, _, _ = pipeline.encode_prompt(TEXTS, do_classifier_free_guidance=False, max_sequence_length=TOKENS)
    sequence, audio, mask = pipeline.connectors(states, mask)
    tokens = pipeline.transformer(
        pipeline._pack_latents(x), torch.randn(2, 5, 8), sequence, audio, 1000 * t, sigma=1000 * t,
        encoder_attention_mask=mask, audio_encoder_attention_mask=mask, num_frames=2, height=2, width=2, fps=24.0,
        audio_num_frames=5, isolate_modalities=True, return_dict=False,
    )[0]  # fmt: skip
    expected = pipeline._unpack_latents(tokens, 2, 2, 2)
    torch.testing.assert_close(isolated.velocity(x, t, isolated.encode(PROMPTS)), expected, rtol=0, atol=1e-5)


def test_no_weight_of_the_sound_reaches_an_isolated_video(tiny_ltx2: Path) -> None:
    outputs = {}
    for audio in ("isolated", "frozen"):
        backbone = load(tiny_ltx2, audio=audio)
        x, t, conditioning = noise(backbone), torch.tensor([0.2, 0.9]), backbone.encode(PROMPTS)
        before = backbone.trained(backbone.velocity(x, t, conditioning))
        changed = 0
        for name, weight in backbone.transformer.named_parameters():
            if "audio" in name:
                weight.data += torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
                changed += 1
        outputs[audio] = (before, backbone.trained(backbone.velocity(x, t, conditioning)))
        assert changed > 50
    assert torch.equal(*outputs["isolated"])
    assert not torch.allclose(*outputs["frozen"], atol=1e-2)


def test_the_video_of_a_joint_sample_hears_its_sound(joint: LTX2Backbone) -> None:
    assert joint.joint is not None
    x, t, conditioning = noise(joint), torch.tensor([0.2, 0.9]), joint.encode(PROMPTS)
    other = torch.cat([joint.joint.video_of(x), torch.zeros(2, 72)], 1)
    first, second = (joint.velocity(each, t, conditioning) for each in (x, other))
    assert first.shape == x.shape == (2, 136)
    assert joint.trained(first).shape == (2, 64)
    assert not torch.allclose(joint.trained(first), joint.trained(second), atol=1e-4)
    assert torch.equal(joint.decode(x), joint.decode(other)), "decoding takes the video alone"


def test_what_is_in_the_loss(tiny_ltx2: Path, isolated: LTX2Backbone, joint: LTX2Backbone) -> None:
    assert isolated.trained(noise(isolated)).shape == (2, 8, 2, 2, 2)
    assert torch.equal(joint.trained(noise(joint)), noise(joint)[:, :64])
    trained = load(tiny_ltx2, audio="trained")
    assert torch.equal(trained.trained(noise(trained)), noise(trained))
    assert [backbone.tokens for backbone in (isolated, joint, trained)] == [9, 17, 17]


def test_prompts_with_frames_and_sizes_of_their_own(isolated: LTX2Backbone) -> None:
    wide = Prompt("a horse", metadata={"video_frames": 17, "video_size": [96, 64]})
    assert isolated.latent_shape_of(PROMPTS[0]) == isolated.latent_shape == (8, 2, 2, 2)
    assert isolated.latent_shape_of(Prompt("", metadata={"video_frames": 1})) == (8, 1, 2, 2)
    assert isolated.latent_shape_of(wide) == (8, 3, 2, 3)
    x = torch.randn(1, 8, 3, 2, 3)
    latents = isolated.sample(isolated.encode([wide]), x, 2)
    assert latents.shape == x.shape
    assert isolated.decode(latents).shape == (1, 17, 3, 64, 96)


def test_half_precision_end_to_end(tiny_ltx2: Path, isolated: LTX2Backbone) -> None:
    half = load(tiny_ltx2, precision="bf16")
    assert half.transformer.dtype == torch.bfloat16
    assert half.vae.dtype == torch.float32
    conditioning = half.encode(PROMPTS)
    assert conditioning["sequence"].dtype == torch.bfloat16
    latents = half.sample(repeat(conditioning, 2), noise(half, 4), 3, guidance=2.0)
    expected = isolated.sample(repeat(isolated.encode(PROMPTS), 2), noise(half, 4), 3, guidance=2.0)
    assert latents.dtype == torch.float32
    assert (latents - expected).norm() / expected.norm() < 0.03


def test_everything_is_frozen_and_in_evaluation_mode(isolated: LTX2Backbone) -> None:
    parts = [part for part in isolated.pipeline.components.values() if isinstance(part, torch.nn.Module)]
    assert len(parts) == 6
    assert not any(part.training for part in parts)
    assert not any(weight.requires_grad for part in parts for weight in part.parameters())
