"""The likeness of an edit to its source, against embeddings in fp64."""

from pathlib import Path

import numpy as np
import pytest
import tiny_clip
import torch
from pictures_on_disk import save
from torch import Tensor
from torch.nn.functional import normalize
from transformers import Dinov2Model

from make_rewards import save_dino
from prompts.pictures import data_url, png_url
from rewards.image_embeddings import ImageProcessor
from rewards.interface import Reward
from rewards.pil_images import pil_images
from rewards.registry import RewardSettings, build
from rewards.sources import source_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_clip.save_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def images() -> Tensor:
    """Of 8 bits, so that nothing is rounded on the way."""
    return (tiny_clip.images() * 255).round() / 255


def clip_reward(folder: str, **settings: object) -> Reward:
    return build("source_preservation", RewardSettings(options={"model": folder}, **settings))


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_it_is_the_cosine_to_the_source(folder: str, images: Tensor, tmp_path: Path, batch_size: int) -> None:
    edits, sources = images[:3], images[3:]
    metadata = [{"image": save(tmp_path / f"{i}.png", source)} for i, source in enumerate(sources)]
    scores = clip_reward(folder, batch_size=batch_size)(edits, ["a"] * 3, metadata)
    expected = (tiny_clip.embed_images(folder, edits) * tiny_clip.embed_images(folder, sources)).sum(-1)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores.double(), expected, rtol=0, atol=1e-6)
    assert expected.std() > 1e-3


def test_dino_gives_the_cosine_of_its_class_tokens(images: Tensor, tmp_path: Path) -> None:
    folder = str(save_dino(tmp_path / "dino"))
    metadata = [{"image": save(tmp_path / f"{i}.png", source)} for i, source in enumerate(images[3:])]
    settings = RewardSettings(options={"model": folder, "kind": "dino"})
    scores = build("source_preservation", settings)(images[:3], [""] * 3, metadata)
    model = Dinov2Model.from_pretrained(folder).double().eval()
    pixels = ImageProcessor.from_pretrained(folder)(images=pil_images(images), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        rows = normalize(model(pixel_values=pixels.double()).last_hidden_state[:, 0], dim=-1)
    torch.testing.assert_close(scores.double(), (rows[:3] * rows[3:]).sum(-1), rtol=0, atol=1e-6)


def test_without_a_source_it_does_not_apply(folder: str, images: Tensor, tmp_path: Path) -> None:
    path = save(tmp_path / "source.png", images[0])
    metadata = [{}, {"image": path}, {"image": None}, {"mask": path}, {"image": data_url(path)}, {}]
    scores = clip_reward(folder)(images, [""] * 6, metadata)
    assert scores.isnan().tolist() == [True, False, True, True, False, True]
    assert clip_reward(folder)(images[:2], [""] * 2, [{}, {}]).isnan().all()
    assert clip_reward(folder)(images[:0], [], []).shape == (0,)


def test_an_unchanged_picture_scores_one_and_a_source_of_another_size_is_resized(
    folder: str, images: Tensor, tmp_path: Path
) -> None:
    large = torch.nn.functional.interpolate(images[:1], (96, 48), mode="nearest")[0]
    names = [save(tmp_path / "same.png", images[0]), save(tmp_path / "large.png", large)]
    scores = clip_reward(folder)(images[:1].expand(2, -1, -1, -1), ["", ""], [{"image": name} for name in names])
    assert scores[0] == pytest.approx(1, abs=1e-6)
    assert scores[1] == pytest.approx(1, abs=1e-3)
    assert scores[1] > clip_reward(folder)(images[1:2], [""], [{"image": names[0]}])[0]


def test_only_what_is_outside_of_the_mask_counts(folder: str, images: Tensor, tmp_path: Path) -> None:
    mask = torch.zeros(3, 24, 24)
    mask[:, 4:16, 8:20] = 1
    names = {"image": save(tmp_path / "source.png", images[0]), "mask": save(tmp_path / "mask.png", mask)}
    inside = torch.where(mask.bool(), images[1], images[0])
    outside = torch.where(mask.bool(), images[0], images[1])
    edits = torch.stack([images[0], inside, outside, images[1]])
    scores = clip_reward(folder)(edits, [""] * 4, [names] * 4)
    torch.testing.assert_close(scores[:2], torch.ones(2), rtol=0, atol=1e-6)
    torch.testing.assert_close(scores[2], scores[3], rtol=0, atol=1e-6)
    # Brute force: the mean colour of the source outside of the mask, in both pictures.
    kept = mask[0] == 0
    filled = images[:2].clone()
    for channel in range(3):
        filled[:, channel, ~kept] = images[0, channel][kept].mean()
    rows = tiny_clip.embed_images(folder, filled)
    assert scores[3].item() == pytest.approx((rows[0] * rows[1]).sum().item(), abs=1e-6)
    assert scores[3] < 0.9999


def test_a_mask_of_everything_leaves_nothing_to_compare_and_one_of_nothing_changes_nothing(
    folder: str, images: Tensor, tmp_path: Path
) -> None:
    names = {"image": save(tmp_path / "source.png", images[0])}
    full, empty = (save(tmp_path / f"{v}.png", torch.full((3, 12, 12), v)) for v in (1.0, 0.0))
    metadata = [{**names, "mask": full}, {**names, "mask": empty}, names]
    scores = clip_reward(folder)(images[1:2].expand(3, -1, -1, -1), [""] * 3, metadata)
    assert scores.isnan().tolist() == [True, False, False]
    assert scores[1] == scores[2]


def test_what_cannot_be_compared_raises(folder: str, images: Tensor, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere\.png cannot be read as a picture"):
        clip_reward(folder)(images[:1], [""], [{"image": str(tmp_path / "nowhere.png")}])
    with pytest.raises(ValueError, match="metadata 'image' is the path of a picture or a data URL, got 3"):
        clip_reward(folder)(images[:1], [""], [{"image": 3}])
    with pytest.raises(ValueError, match=r"in \[0, 1\], got values from"):
        clip_reward(folder)(images[:1] + 1, [""], [{}])
    with pytest.raises(ValueError, match="one metadata per image: got 1 for 2 images"):
        clip_reward(folder)(images[:2], ["", ""], [{}])
    with pytest.raises(ValueError, match="kind must be one of clip, dino, got 'lpips'"):
        build("source_preservation", RewardSettings(options={"kind": "lpips"}))


def test_a_resized_source_is_kept_and_may_take_part_in_gradients() -> None:
    facts = {"image": png_url(np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3))}
    with torch.inference_mode():
        first = source_of(facts, 8, 8)
    assert first is source_of(facts, 8, 8)
    assert first is not None
    assert not first.is_inference()
    (torch.ones(3, 8, 8, requires_grad=True) * first).sum().backward()
