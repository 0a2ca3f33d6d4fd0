"""Directional similarity, against its formula in fp64."""

from pathlib import Path

import pytest
import tiny_clip
import torch
from pictures_on_disk import save
from torch import Tensor

from rewards.registry import RewardSettings, build

CAPTIONS = [("a cat", "a dog"), ("a house", "a house in snow"), ("two buses", "two red buses")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_clip.save_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def images() -> Tensor:
    return (tiny_clip.images() * 255).round() / 255


def score(folder: str, images: Tensor, metadata: list[dict[str, object]], **settings: int) -> Tensor:
    reward = build("edit_adherence", RewardSettings(options={"model": folder}, **settings))
    return reward(images, ["an instruction"] * len(images), metadata)


def facts(folder: Path, sources: Tensor) -> list[dict[str, object]]:
    return [
        {"image": save(folder / f"{i}.png", source), "source_caption": before, "target_caption": after}
        for i, (source, (before, after)) in enumerate(zip(sources, CAPTIONS, strict=True))
    ]


@pytest.mark.parametrize("batch_size", [2, 16])
def test_it_is_the_cosine_of_the_two_directions(folder: str, images: Tensor, tmp_path: Path, batch_size: int) -> None:
    scores = score(folder, images[:3], facts(tmp_path, images[3:]), batch_size=batch_size)
    ends = tiny_clip.embed_images(folder, images)
    texts = [tiny_clip.embed_texts(folder, list(side)) for side in zip(*CAPTIONS, strict=True)]
    for i in range(3):
        seen, said = ends[i] - ends[3 + i], texts[1][i] - texts[0][i]
        assert scores[i].item() == pytest.approx((seen @ said / seen.norm() / said.norm()).item(), abs=1e-4)
    assert scores.std() > 0.01


def test_no_change_scores_exactly_zero(folder: str, images: Tensor, tmp_path: Path) -> None:
    unchanged = facts(tmp_path, images[:3])
    assert score(folder, images[:3], unchanged).tolist() == [0, 0, 0]
    same_words = [{**each, "target_caption": each["source_caption"]} for each in facts(tmp_path, images[3:])]
    assert score(folder, images[:3], same_words).tolist() == [0, 0, 0]


def test_the_opposite_captions_give_the_opposite_score(folder: str, images: Tensor, tmp_path: Path) -> None:
    there = facts(tmp_path, images[3:])
    back = [{**f, "source_caption": f["target_caption"], "target_caption": f["source_caption"]} for f in there]
    forth = score(folder, images[:3], there)
    torch.testing.assert_close(score(folder, images[:3], back), -forth, rtol=0, atol=1e-5)


@pytest.mark.parametrize("missing", ["image", "source_caption", "target_caption"])
def test_without_all_its_facts_it_does_not_apply(folder: str, images: Tensor, tmp_path: Path, missing: str) -> None:
    known = facts(tmp_path, images[3:])
    partly = [{k: v for k, v in known[0].items() if k != missing}, known[1], {}]
    scores = score(folder, images[:3], partly)
    assert scores.isnan().tolist() == [True, False, True]
    assert scores[1] == pytest.approx(score(folder, images[:3], known)[1].item(), abs=1e-5)


def test_a_caption_that_is_no_text_raises(folder: str, images: Tensor, tmp_path: Path) -> None:
    wrong = {**facts(tmp_path, images[3:])[0], "target_caption": 3}
    with pytest.raises(ValueError, match="are texts, got 'a cat' and 3"):
        score(folder, images[:1], [wrong])
