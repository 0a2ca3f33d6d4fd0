"""PickScore and CLIPScore on a random CLIP, against plain transformers calls in fp64."""

import json
import shutil
from pathlib import Path

import pytest
import tiny_clip
import torch
from tiny_clip import CONTEXT, PROMPTS
from torch import Tensor
from transformers import AutoTokenizer, CLIPModel

from rewards.clip_model import ImageProcessor
from rewards.interface import Reward
from rewards.pil_images import pil_images
from rewards.registry import RewardSettings, build

NOTHING = [{} for _ in PROMPTS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_clip.save_clip(tmp_path_factory.mktemp("clip"))


def reward(name: str, folder: str, **settings: object) -> Reward:
    return build(name, RewardSettings(options={"model": folder, "processor": folder}, **settings))


def logits(folder: str, images: Tensor, prompts: list[str]) -> Tensor:
    """exp(s) cos in fp64, by the model's own forward, with the attention mask that the reward does without."""
    model = CLIPModel.from_pretrained(folder).double().eval()
    tokens = AutoTokenizer.from_pretrained(folder)(prompts, padding=True, truncation=True, return_tensors="pt")
    pixels = ImageProcessor.from_pretrained(folder)(images=pil_images(images), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        return model(pixel_values=pixels.double(), **tokens).logits_per_image.diagonal()


def test_scores_equal_a_direct_computation_in_fp64(folder: str) -> None:
    images = tiny_clip.images()
    expected = logits(folder, images, PROMPTS)
    scale = CLIPModel.from_pretrained(folder).logit_scale.double().exp().item()
    assert expected.std() > 1  # random, but not degenerate
    pickscore = reward("pickscore", folder)(images, PROMPTS, NOTHING)
    clipscore = reward("clipscore", folder)(images, PROMPTS, NOTHING)
    assert pickscore.dtype == clipscore.dtype == torch.float32
    torch.testing.assert_close(pickscore.double(), expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(clipscore.double(), expected / scale, rtol=0, atol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_the_batch_size_changes_nothing_but_rounding(folder: str, batch_size: int) -> None:
    images = tiny_clip.images()
    scores = reward("clipscore", folder, batch_size=batch_size)(images, PROMPTS, NOTHING)
    torch.testing.assert_close(scores, reward("clipscore", folder)(images, PROMPTS, NOTHING), rtol=0, atol=1e-6)


def test_scores_follow_their_samples(folder: str) -> None:
    images, order = tiny_clip.images(), torch.tensor([3, 0, 5, 1, 4, 2])
    score = reward("clipscore", folder, batch_size=4)
    expected = score(images, PROMPTS, NOTHING)[order]
    scores = score(images[order], [PROMPTS[i] for i in order], NOTHING)
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-6)
    assert expected.unique().numel() == len(PROMPTS)


def test_equal_samples_score_equally_and_repeated_prompts_are_not_confused(folder: str) -> None:
    images = tiny_clip.images(1).expand(6, -1, -1, -1)
    scores = reward("clipscore", folder)(images, ["a", "b", "a", "c", "b", "a"], NOTHING)
    assert torch.equal(scores[0].expand(2), scores[[2, 5]])
    assert scores[1] == scores[4]
    assert scores[:4].unique().numel() == 3


def test_a_long_prompt_is_truncated_at_the_context(folder: str) -> None:
    # A letter is a token; the start and the end take one each.
    start = ["x"] * (CONTEXT - 2)
    prompts = [" ".join(letters) for letters in (start, [*start, "y"], start + ["y"] * 200, [*start[:-1], "z"])]
    scores = reward("pickscore", folder)(tiny_clip.images(1).expand(4, -1, -1, -1), prompts, NOTHING)
    assert torch.equal(scores[:3], scores[0].expand(3))
    assert scores[3] != scores[0]


def test_both_ways_of_marking_the_end_of_a_text_give_the_same(folder: str, tmp_path: Path) -> None:
    """Configurations on the hub give ``eos_token_id`` as 2, read as the largest token, or as it is."""
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["text_config"]["eos_token_id"] == 2
    config["text_config"]["eos_token_id"] = config["text_config"]["vocab_size"] - 1
    (tmp_path / "config.json").write_text(json.dumps(config))
    images = tiny_clip.images()
    scores = reward("clipscore", str(tmp_path))(images, PROMPTS, NOTHING)
    assert torch.equal(scores, reward("clipscore", folder)(images, PROMPTS, NOTHING))


def test_pixels_are_rounded_to_eight_bit(folder: str) -> None:
    exact = (tiny_clip.images() * 255).round() / 255
    near = (exact + 0.4 / 255 * torch.empty_like(exact).uniform_(-1, 1)).clamp(0, 1)
    score = reward("clipscore", folder)
    assert torch.equal(score(exact, PROMPTS, NOTHING), score(near, PROMPTS, NOTHING))


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 5e-3), ("bfloat16", 4e-2)])
def test_half_precision_is_near_and_returns_float32(folder: str, dtype: str, tolerance: float) -> None:
    images = tiny_clip.images()
    scores = reward("clipscore", folder, dtype=dtype)(images, PROMPTS, NOTHING)
    assert scores.dtype == torch.float32
    expected = reward("clipscore", folder)(images, PROMPTS, NOTHING)
    assert not torch.equal(scores, expected)
    torch.testing.assert_close(scores, expected, rtol=0, atol=tolerance)


def test_the_result_is_an_ordinary_tensor_and_an_empty_batch_is_empty(folder: str) -> None:
    score = reward("clipscore", folder)
    score(tiny_clip.images(), PROMPTS, NOTHING).add_(1)  # an inference tensor would refuse
    assert score(torch.empty(0, 3, 8, 8), [], []).shape == (0,)


@pytest.mark.parametrize(
    ("images", "prompts", "message"),
    [
        (torch.full((6, 3, 8, 8), torch.nan), PROMPTS, r"in \[0, 1\], got values from nan"),
        (torch.full((6, 3, 8, 8), 1.5), PROMPTS, r"in \[0, 1\], got values from 1.5 to 1.5"),
        (torch.zeros(6, 8, 8, 3), PROMPTS, r"images must be \[B, 3, H, W\], got \[6, 8, 8, 3\]"),
        (torch.zeros(5, 3, 8, 8), PROMPTS, "one prompt per image: got 6 prompts for 5 images"),
    ],
)
def test_what_cannot_be_scored_raises(folder: str, images: Tensor, prompts: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        reward("clipscore", folder)(images, prompts, NOTHING)


def test_a_misspelt_option_is_refused(folder: str) -> None:
    with pytest.raises(ValueError, match="unknown option 'modle' of a reward: known are model, processor"):
        build("pickscore", RewardSettings(options={"modle": folder}))


def test_a_folder_without_a_model_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"reward clipscore: .*{tmp_path}"):
        build("clipscore", RewardSettings(options={"model": str(tmp_path)}))
