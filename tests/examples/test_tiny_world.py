"""The rewards of the tiny world on images whose content is known."""

from dataclasses import asdict

import numpy as np
import pytest
import torch

from rewards.registry import RewardSettings, build
from tiny import quality
from tiny.captions import KINDS, SHAPES, Caption, Group, composition_caption, random_caption, split, text_caption
from tiny.composition import composition_score, find_objects
from tiny.edit_distance import edit_distance
from tiny.reading import read, reading_score
from tiny.render import RGB, SIZE, render, shape_mask
from tiny.text_encoder import tokenize

REWARDS = ("reading", "composition", "colour", "contrast", "clean")


def rendered(caption, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(render(caption, np.random.default_rng(seed)))[None]


def score(images: torch.Tensor, captions: list[Caption]) -> torch.Tensor:
    """All rewards by name, as a run builds them, [5, B]."""
    metadata = [{"caption": asdict(caption)} for caption in captions]
    texts = [caption.text for caption in captions]
    return torch.stack([build(name, RewardSettings())(images, texts, metadata) for name in REWARDS])


def blank(level: float = 0.8) -> np.ndarray:
    return np.full((3, SIZE, SIZE), level, dtype=np.float32)


def paint(image: np.ndarray, shape: str, colour: str, top: int, left: int, size: int = 7) -> None:
    image[:, top : top + size, left : left + size][:, shape_mask(shape, size)] = np.array(RGB[colour])[:, None]


@pytest.mark.parametrize("word", ["CAT", "DUE", "PIN", "HOP", "SRL"])
@pytest.mark.parametrize("colour", ["red", "green", "blue", "yellow"])
def test_reads_what_is_written(word: str, colour: str) -> None:
    assert read(rendered(text_caption(word, colour))) == [word]


def test_reading_score_counts_edits_against_the_word() -> None:
    images = torch.cat([rendered(text_caption(word, "red")) for word in ("CAT", "CAP", "DOP")])
    assert reading_score(images, ["CAT"] * 3).tolist() == pytest.approx([1, 2 / 3, 0])


def test_an_empty_image_reads_as_nothing() -> None:
    assert reading_score(torch.full((1, 3, SIZE, SIZE), 0.5), ["CAT"]).item() == 0


@pytest.mark.parametrize(
    ("first", "second", "distance"),
    [("", "ABC", 3), ("ABC", "ABC", 0), ("AXC", "ABC", 1), ("BC", "ABC", 1), ("CAB", "ABC", 2)],
)
def test_edit_distance(first: str, second: str, distance: int) -> None:
    assert edit_distance(first, second) == edit_distance(second, first) == distance


@pytest.mark.parametrize("shape", SHAPES)
def test_finds_objects_with_colour_shape_and_place(shape: str) -> None:
    image = blank()
    paint(image, shape, "red", 2, 3)
    paint(image, shape, "blue", 14, 13)
    found = {(thing.colour, thing.shape) for thing in find_objects(image)}
    assert found == {("red", shape), ("blue", shape)}


def test_composition_score_is_the_share_of_facts() -> None:
    caption = composition_caption(Group(2, "blue", "square"), "left of", Group(1, "green", "circle"))
    image = blank()
    paint(image, "square", "blue", 1, 2)
    paint(image, "square", "blue", 14, 2)
    paint(image, "circle", "green", 8, 15)
    assert composition_score(image, caption) == 1.0
    mirrored = image[:, :, ::-1].copy()
    assert composition_score(mirrored, caption) == pytest.approx(4 / 5), "only the relation fails"
    paint(image, "square", "red", 17, 15)
    assert composition_score(image, caption) == 0.5, "a stray colour halves the score"
    assert composition_score(blank(), caption) == 0.0


def test_most_rendered_captions_score_full() -> None:
    rng = np.random.default_rng(3)
    captions = [random_caption(rng) for _ in range(200)]
    scores = score(torch.from_numpy(np.stack([render(caption, rng) for caption in captions])), captions)
    for row in scores[:2]:
        assert (row[~row.isnan()] == 1).float().mean() > 0.85


def test_rewards_apply_to_their_own_kind_only_and_are_bounded() -> None:
    rng = np.random.default_rng(4)
    captions = [split(kind, held_out=True)[0] for kind in KINDS]
    scores = score(torch.from_numpy(np.stack([render(caption, rng) for caption in captions])), captions)
    assert scores.shape == (len(REWARDS), 3)
    assert scores.isnan().tolist() == [[True, False, True], [True, True, False], *[[False] * 3] * 3]
    valid = scores[~scores.isnan()]
    assert ((valid >= 0) & (valid <= 1)).all()


def test_quality_measures_rank_known_changes() -> None:
    image = rendered(split("general", held_out=True)[0])
    grey = image.mean(1, keepdim=True).expand_as(image)
    faded = 0.5 + 0.5 * (image - 0.5)
    noisy = (image + 0.1 * torch.randn(image.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    assert quality.colourfulness(grey) < 1e-6 < quality.colourfulness(image)
    assert quality.contrast(faded).item() == pytest.approx(quality.contrast(image).item() / 2, rel=1e-4)
    assert quality.cleanness(noisy) < quality.cleanness(image)
    black_and_white = (torch.arange(SIZE) % 2).float().expand(1, 3, SIZE, SIZE)
    assert quality.contrast(black_and_white).item() == pytest.approx(1)


def test_noise_level_is_measured_in_its_unit() -> None:
    sigma = 0.03
    noise = 0.5 + sigma * torch.randn(64, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    assert quality.cleanness(noise).mean().item() == pytest.approx(np.exp(-1), rel=0.05)


def test_splits_are_disjoint_and_fixed() -> None:
    for kind in KINDS:
        train, held_out = ({caption.text for caption in split(kind, part)} for part in (False, True))
        assert train
        assert held_out
        assert not train & held_out


def test_a_caption_that_is_too_long_is_refused() -> None:
    with pytest.raises(ValueError, match="12 tokens, the tiny model reads 10"):
        tokenize(["the word ABCDEFGH in red"])
