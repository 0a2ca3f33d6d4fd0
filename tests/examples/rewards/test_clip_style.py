"""The style reward against a softmax over CLIP's logits in fp64."""

import math

import pytest
import tiny_clip
import torch
from transformers import CLIPModel

from rewards.registry import RewardSettings, build


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_clip.save_clip(tmp_path_factory.mktemp("clip"))


def test_it_is_a_softmax_over_two_texts(folder: str) -> None:
    images = tiny_clip.images()
    reward = build("clip_style", RewardSettings(options={"model": folder, "style": "a sketch", "against": "a wall"}))
    scores = reward(images, ["not read"] * len(images), [{}] * len(images))
    logits = tiny_clip.embed_images(folder, images) @ tiny_clip.embed_texts(folder, ["a sketch", "a wall"]).T
    scale = math.exp(CLIPModel.from_pretrained(folder).logit_scale.item())
    torch.testing.assert_close(scores.double(), (scale * logits).softmax(-1)[:, 0], rtol=0, atol=1e-4)
    assert scores.dtype == torch.float32
    assert scores.std() > 0.01


def test_style_and_contrast_exchanged_are_the_complement_and_a_photo_is_the_default(folder: str) -> None:
    def score(**options: str) -> torch.Tensor:
        reward = build("clip_style", RewardSettings(options={"model": folder, **options}))
        return reward(tiny_clip.images(), [""] * 6, [{}] * 6)

    sketch, photo = score(style="a sketch", against="a photo"), score(style="a photo", against="a sketch")
    torch.testing.assert_close(sketch + photo, torch.ones(6), rtol=0, atol=1e-6)
    assert torch.equal(score(style="a sketch"), sketch)


@pytest.mark.parametrize("options", [{}, {"style": " "}, {"style": 3}, {"style": "a sketch", "against": ""}])
def test_without_a_style_it_is_refused_before_anything_is_loaded(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="clip_style scores the style that its options name"):
        build("clip_style", RewardSettings(options=options))
