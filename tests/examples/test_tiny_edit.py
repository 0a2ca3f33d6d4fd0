"""The world of edits: what its pictures show, what its rewards measure, and that its model edits."""

import numpy as np
import pytest
import torch
from torch import Tensor

from backbones.interface import repeat
from backbones.load import load_backbone
from backbones.settings import ModelSettings
from prompts.pictures import load_picture, png_url
from prompts.sampler import noise
from prompts.sources import SourceSettings, load_prompts
from rewards.registry import RewardSettings, build
from tiny.render import RGB
from tiny_edit.measures import TOLERANCE, adherence, preservation
from tiny_edit.world import SIZE, edits, imperfect, random_edit


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(3)


def test_an_edit_names_a_shape_and_a_colour_that_it_does_not_have(rng: np.random.Generator) -> None:
    for _ in range(200):
        edit = random_edit(rng)
        words = edit.text.split()
        assert (words[:2], words[3]) == (["make", "the"], edit.colour)
        inside = torch.from_numpy(edit.source[:, edit.mask]).mean(1)
        distance = {name: (inside - torch.tensor(rgb)).norm() for name, rgb in RGB.items()}
        assert min(distance, key=distance.__getitem__) != edit.colour
        assert 20 < edit.mask.sum() <= 100
        assert edit.source.shape == (3, SIZE, SIZE)


def test_imperfect_edits_tint_the_rest_by_a_share_of_their_strength(rng: np.random.Generator) -> None:
    strengths, tints = [], []
    for _ in range(300):
        edit = random_edit(rng)
        aim = torch.tensor(RGB[edit.colour])
        image, source = torch.from_numpy(imperfect(edit, rng)), torch.from_numpy(edit.source)
        mask = torch.from_numpy(edit.mask)
        strengths.append(adherence(image, source, mask, aim))
        tints.append(preservation(image, source, mask))
    assert torch.corrcoef(torch.tensor([strengths, tints]))[0, 1] < -0.2
    assert 0.3 < sum(strengths) / 300 < 0.6


def test_the_measures_are_what_their_formulas_say() -> None:
    source, mask = torch.full((3, SIZE, SIZE), 0.5), torch.zeros(SIZE, SIZE, dtype=torch.bool)
    mask[4:10, 4:10] = True
    aim = torch.tensor([0.9, 0.1, 0.1])
    edited = source.clone()
    edited[:, mask] = aim[:, None]
    assert adherence(edited, source, mask, aim) == pytest.approx(1, abs=1e-6)
    assert adherence(source, source, mask, aim) == 0
    halfway: Tensor = (source + edited) / 2
    assert adherence(halfway, source, mask, aim) == pytest.approx(0.5, abs=1e-6)
    assert preservation(edited, source, mask) == 1
    assert preservation(source + TOLERANCE, source, mask) == pytest.approx(np.exp(-1), abs=1e-5)
    away = source.clone()
    away[:, mask] = 1 - aim[:, None]
    assert adherence(away, source, mask, aim) == pytest.approx(-1, abs=1e-6)


def test_rewards_apply_to_edits_only() -> None:
    prompts = load_prompts("edits", SourceSettings("tiny:edits"), held_out=True)
    picture = load_picture(prompts[0].metadata["image"])
    facts = [prompts[0].metadata, {}, {"image": prompts[0].metadata["image"]}]
    images, texts = torch.stack([picture] * 3), [prompts[0].text, "a cat", "a cat"]
    kept = build("preservation", RewardSettings())(images, texts, facts)
    asked = build("adherence", RewardSettings())(images, texts, facts)
    assert kept[0] == 1
    assert asked[0] == 0
    assert kept[1:].isnan().all()
    assert asked[1:].isnan().all()


def test_rewards_of_the_world_run_on_edits_from_elsewhere() -> None:
    photo, mask = np.full((20, 30, 3), 128, np.uint8), np.zeros((40, 60, 3), np.uint8)
    mask[10:30, 10:50] = 255
    facts = {"image": png_url(photo), "mask": png_url(mask)}
    images = torch.full((5, 3, 16, 16), 128 / 255)
    metadata = [{**facts, "colour": each} for each in ("red", "chartreuse", None, ["red"])] + [
        {**facts, "mask": None, "colour": "red"}
    ]
    asked = build("adherence", RewardSettings())(images, [""] * 5, metadata)
    kept = build("preservation", RewardSettings())(images, [""] * 5, metadata)
    torch.testing.assert_close(asked, torch.tensor([0, *[torch.nan] * 4]), equal_nan=True, atol=1e-5, rtol=0)
    torch.testing.assert_close(kept, torch.tensor([1, 1, 1, 1, torch.nan]), equal_nan=True, atol=1e-4, rtol=0)


def test_held_out_images_are_not_trained_on() -> None:
    train, test = ({edit.source.tobytes() for edit in edits(held_out, 50)} for held_out in (False, True))
    assert len(train) == len(test) == 50
    assert not train & test


def test_the_shipped_model_recolours_the_shape_that_is_named() -> None:
    backbone = load_backbone(ModelSettings(name="tiny-edit", max_tokens=12))
    prompts = load_prompts("edits", SourceSettings("tiny:edits"), held_out=True)[:12]
    conditioning = repeat(backbone.encode(prompts), 2)
    images = backbone.decode(backbone.sample(conditioning, noise(range(24), backbone.latent_shape), 4))
    facts = [prompt.metadata for prompt in prompts for _ in range(2)]
    asked = build("adherence", RewardSettings())(images, [""] * 24, facts)
    # With another instruction's colour as the aim, less of the way was gone.
    wrong = [{**each, "colour": next(c for c in RGB if c != each["colour"])} for each in facts]
    assert asked.mean() > build("adherence", RewardSettings())(images, [""] * 24, wrong).mean() + 0.05
    assert build("preservation", RewardSettings())(images, [""] * 24, facts).mean() > 0.3
