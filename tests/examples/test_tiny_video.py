"""The small video world: its videos, what its rewards measure on known ones, and the shipped pipeline."""

from dataclasses import asdict

import numpy as np
import pytest
import torch
from diffusers import LTX2Pipeline

from pretrain_video import CHECKPOINT, cache, encoder, flow_loss, pixels
from prompts.sources import SourceSettings, load_prompts
from rewards.registry import RewardSettings, build
from tiny.captions import COLOURS, SHAPES
from tiny.quality import colourfulness
from tiny.render import RGB
from tiny_video.captions import DIRECTIONS, PACES, Motion, split
from tiny_video.components import Components
from tiny_video.measures import steadiness, track, vividness
from tiny_video.parts import MAX_TOKENS
from tiny_video.render import FRAMES, SIZE, draw, path, random_batch, render

LUMA = np.array([0.299, 0.587, 0.114])
GREY = np.full(3, 0.5)


def straight(velocity=(1.5, 0.0), start=(9.0, 16.0)) -> np.ndarray:
    return np.array(start) + np.arange(FRAMES)[:, None] * np.array(velocity)


def video(centres: np.ndarray, shape: str = "circle", colour: str = "red", saturation: float = 1.0) -> torch.Tensor:
    frames = draw(Motion(colour, shape, "right"), centres, 5.0, GREY, saturation)
    return torch.from_numpy(frames.clip(0, 1)).float()[None]


def steady(videos: torch.Tensor, direction: str = "right") -> float:
    return steadiness(videos, torch.tensor([DIRECTIONS[direction]])).item()


def named_colour(frames: torch.Tensor) -> str:
    """The colour whose direction from grey is closest to how the shape differs from its background."""
    pixels = frames.flatten(2).double().numpy().transpose(0, 2, 1).reshape(-1, 3)
    difference = pixels - np.median(pixels, 0)
    difference = difference[np.linalg.norm(difference, axis=1).argsort()[-80:]].mean(0)
    chroma = {name: np.array(RGB[name]) - np.mean(RGB[name]) for name in COLOURS}
    difference = difference - difference.mean()
    return max(COLOURS, key=lambda name: difference @ chroma[name] / np.linalg.norm(chroma[name]))


def test_captions_are_split_once_and_for_all() -> None:
    train, held_out = split(False), split(True)
    assert (len(train), len(held_out)) == (108, 36)
    assert len({motion.text for motion in train + held_out}) == 144
    assert {motion.direction for motion in held_out} == set(DIRECTIONS)
    prompts = load_prompts("video", SourceSettings("tiny:video"), held_out=True)
    assert [prompt.text for prompt in prompts] == [motion.text for motion in held_out]
    assert prompts[0].metadata == {"motion": asdict(held_out[0])}


def test_videos_show_their_caption_and_vary() -> None:
    motion = Motion("blue", "square", "up", "fast")
    frames = np.stack([render(motion, np.random.default_rng(seed)) for seed in (0, 0, 1)])
    assert frames.shape == (3, FRAMES, 3, SIZE, SIZE)
    assert frames.dtype == np.float32
    assert frames.min() >= 0
    assert frames.max() <= 1
    assert (frames[0] == frames[1]).all()
    assert np.abs(frames[0] - frames[2]).mean() > 0.01
    assert [named_colour(torch.from_numpy(each)) for each in frames] == ["blue"] * 3


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("pace", PACES)
def test_paths_stay_inside_and_have_the_captions_speed(direction: str, pace: str) -> None:
    centres = path(Motion("red", "circle", direction, pace), 6.0, np.random.default_rng(0))
    speed = np.diff(centres, axis=0) @ np.array(DIRECTIONS[direction])
    assert speed == pytest.approx(np.full(FRAMES - 1, speed[0]))
    assert speed[0] == pytest.approx(PACES[pace], rel=0.11)
    assert centres.min() >= 6
    assert centres.max() <= SIZE - 7


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("colour", COLOURS)
def test_shapes_are_found_where_they_are(shape: str, colour: str) -> None:
    centres = straight((1.3, 0.4))
    found, seen = track(video(centres, shape, colour, 0.4))
    assert seen.all()
    assert found[0].numpy() == pytest.approx(centres, abs=0.25)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_perfect_motion_scores_almost_1_and_others_0(shape: str, direction: str) -> None:
    right, down = DIRECTIONS[direction]
    perfect = video(straight((1.4 * right, 1.4 * down), (16 - 5.6 * right, 16 - 5.6 * down)), shape)
    assert steady(perfect, direction) > 0.9
    assert steady(perfect.flip(1), direction) == 0, "the other way"
    assert steady(perfect[:, [4] * FRAMES], direction) == pytest.approx(0, abs=1e-4), "it stands still"
    across = {"right": "down", "left": "up", "up": "right", "down": "left"}[direction]
    assert steady(perfect, across) < 0.05


def test_steadiness_is_the_formula() -> None:
    rng = np.random.default_rng(0)
    centres = straight((1.2, 0.5)) + 0.6 * rng.normal(size=(FRAMES, 2))
    light = 1 + 0.05 * rng.normal(size=(FRAMES, 1, 1, 1))
    clip = (video(centres) * torch.from_numpy(light).float()).clamp(0, 1)
    found = track(clip)[0][0].double().numpy()
    fits = [np.polyfit(np.arange(FRAMES), found[:, axis], 1) for axis in (0, 1)]
    fitted = np.stack([np.polyval(fit, np.arange(FRAMES)) for fit in fits], 1)
    velocity = np.array([fit[0] for fit in fits])
    residual = np.sqrt(((found - fitted) ** 2).sum(1).mean())
    luma = np.tensordot(clip[0].double().numpy(), LUMA, (1, 0)).mean((1, 2)).std()
    expected = np.exp(-residual / 2) * velocity[0] / max(np.linalg.norm(velocity), 0.7) * np.exp(-luma / 0.1)
    assert residual > 0.3
    assert luma > 0.01
    assert steady(clip) == pytest.approx(expected, rel=1e-4)


def test_trembling_and_flicker_cost_steadiness_each() -> None:
    rng = np.random.default_rng(1)
    tremble, light = rng.normal(size=(FRAMES, 2)), torch.from_numpy(rng.normal(size=(FRAMES, 1, 1, 1))).float()
    trembling = [steady(video(straight() + scale * tremble)) for scale in (0, 0.4, 0.8)]
    flickering = [steady((video(straight()) * (1 + scale * light)).clamp(0, 1)) for scale in (0, 0.03, 0.06)]
    assert trembling == sorted(trembling, reverse=True)
    assert flickering == sorted(flickering, reverse=True)
    assert max(trembling[2], flickering[2]) < 0.85


def test_an_empty_video_scores_0() -> None:
    empty = torch.full((1, FRAMES, 3, SIZE, SIZE), 0.4)
    assert steady(empty) == vividness(empty).item() == 0
    clip = video(straight())
    clip[:, 3] = 0.5
    assert steady(clip) == 0, "in one frame the shape is gone"


def test_vividness_is_the_frames_mean_colourfulness() -> None:
    clips = torch.cat([video(straight(), saturation=saturation) for saturation in (0.0, 0.5, 1.0)])
    expected = torch.stack([colourfulness(clip).mean() for clip in clips])
    torch.testing.assert_close(vividness(clips), expected)
    assert expected[0] < 1e-3 < 0.1 < expected[1] < expected[2]


def test_the_worlds_videos_pull_the_rewards_apart() -> None:
    rng = np.random.default_rng(0)
    videos, texts = random_batch(150, split(False), rng)
    motions = {motion.text: motion for motion in split(False)}
    metadata = [{"motion": asdict(motions[text])} for text in texts]
    scores = [build(name, RewardSettings())(torch.from_numpy(videos), texts, metadata) for name in ("vivid", "steady")]
    assert np.corrcoef(*scores)[0, 1] < -0.3
    assert min(each.std().item() for each in scores) > 0.05


def test_rewards_say_where_they_do_not_apply() -> None:
    clip = video(straight()).repeat(2, 1, 1, 1, 1)
    facts = [{"source": "video"}, {"motion": asdict(Motion("red", "circle", "right"))}]
    scores = build("steady", RewardSettings())(clip, ["", ""], facts)
    assert scores[0].isnan()
    assert scores[1] > 0.9
    for name in ("vivid", "steady"):
        with pytest.raises(ValueError, match=r"scores videos \[B, F, 3, H, W\] of at least 2 frames.*makes videos"):
            build(name, RewardSettings())(clip[:, 0], ["", ""], facts)


@pytest.fixture(scope="module")
def pipeline() -> LTX2Pipeline:
    pipeline = LTX2Pipeline.from_pretrained(CHECKPOINT)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_the_shipped_pipeline_makes_what_captions_say(pipeline: LTX2Pipeline) -> None:
    motions = split(True)[:8]
    made = pipeline(
        prompt=[motion.text for motion in motions],
        height=SIZE,
        width=SIZE,
        num_frames=FRAMES,
        num_inference_steps=8,
        max_sequence_length=MAX_TOKENS,
        guidance_scale=1.0,
        stg_scale=0.0,
        modality_scale=1.0,
        audio_guidance_scale=1.0,
        audio_stg_scale=0.0,
        audio_modality_scale=1.0,
        generator=torch.Generator().manual_seed(0),
        output_type="pt",
    ).frames
    assert made.shape == (8, FRAMES, 3, SIZE, SIZE)
    assert sum(named_colour(clip) == motion.colour for clip, motion in zip(made, motions, strict=True)) >= 7
    directions = torch.tensor([DIRECTIONS[motion.direction] for motion in motions])
    assert steadiness(made, directions).mean() > 3 * steadiness(made, -directions).mean(), "they move as they should"


@pytest.fixture(scope="module")
def world() -> tuple[torch.Tensor, list[str]]:
    """Held-out videos as the VAE reads them, and their captions."""
    videos, texts = random_batch(24, split(True), np.random.default_rng(5))
    return pixels(torch.from_numpy(videos)), texts


@torch.no_grad()
def test_the_shipped_vae_keeps_the_shape_and_its_motion(pipeline: LTX2Pipeline, world) -> None:
    x, _ = world
    latents = pipeline.vae.encode(x).latent_dist.mean
    assert latents.shape == (24, 72, 3, 2, 2)
    made = pipeline.vae.decode(latents, return_dict=False)[0]
    background = x.flatten(3).median(-1).values[..., None, None]
    assert (made - x).square().mean() < 0.5 * (background - x).square().mean(), "it draws more than the background"
    places, seen = track(made.transpose(1, 2) / 2 + 0.5)
    wanted, _ = track(x.transpose(1, 2) / 2 + 0.5)
    assert (places - wanted)[seen].norm(dim=-1).median() < 1, "pixels"


@torch.no_grad()
def test_the_shipped_flow_reads_its_captions(pipeline: LTX2Pipeline, world) -> None:
    x, texts = world
    latents = pipeline.vae.encode(x).latent_dist.mean
    encode = encoder(pipeline, [*dict.fromkeys(texts)])
    losses = []
    for captions in (texts, texts[1:] + texts[:1]):
        torch.manual_seed(0)
        losses.append(flow_loss(pipeline, latents, *encode(captions)).item())
    assert losses[0] < 0.8 * losses[1]
    assert losses[0] < 1, "what predicting the noise alone would leave"


@pytest.mark.soak
def test_components_are_white_on_the_world() -> None:
    latents, _ = cache(Components(), 320, np.random.default_rng(6))
    flat = latents.movedim(1, -1).flatten(0, 3).double()
    covariance = flat.T @ flat / len(flat)
    torch.testing.assert_close(covariance, torch.eye(72, dtype=torch.float64), atol=0.3, rtol=0)


def test_the_video_does_not_hear_the_sound(pipeline: LTX2Pipeline) -> None:
    for block in pipeline.transformer.transformer_blocks:
        assert not any(weight.any() for weight in block.audio_to_video_attn.to_out.parameters())
