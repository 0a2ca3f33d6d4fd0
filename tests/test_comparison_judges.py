"""The held-out judges: they see what is in renderings, and fall as these are spoilt."""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from comparison import judge_network, judge_training, judges

from prompts.prompt import Prompt
from prompts.world import world_prompts
from tiny.captions import KINDS, RELATIONS, Caption, Group, composition_caption, split
from trainer.evaluation import held_out

COUNT = 40
PROMPTS = held_out({kind: world_prompts(kind, held_out=True) for kind in KINDS}, COUNT)
CAPTIONS = [caption for kind in KINDS for caption in (split(kind, held_out=True) * COUNT)[:COUNT]]


@cache
def images() -> Tensor:
    return judges.renderings(CAPTIONS, 5)


def values(change: Callable[[Tensor], Tensor]) -> dict[str, float]:
    return judges.judge(change(images()).clamp(0, 1), PROMPTS)


def blur(times: int) -> Callable[[Tensor], Tensor]:
    def change(spoilt: Tensor) -> Tensor:
        for _ in range(times):
            spoilt = judge_training.blurred(spoilt)
        return spoilt

    return change


def noise(sigma: float) -> Callable[[Tensor], Tensor]:
    return lambda clean: clean + sigma * torch.randn(clean.shape, generator=torch.Generator().manual_seed(3))


def saturation(factor: float) -> Callable[[Tensor], Tensor]:
    return lambda clean: clean.mean(1, keepdim=True) + factor * (clean - clean.mean(1, keepdim=True))


def contrast(factor: float) -> Callable[[Tensor], Tensor]:
    return lambda clean: 0.5 + factor * (clean - 0.5)


@pytest.mark.parametrize(
    ("change", "strengths", "falling"),
    [
        (blur, (0, 1, 2, 4), ("letters", "facts", "likeness")),
        (noise, (0.0, 0.1, 0.2, 0.4), ("letters", "ink", "facts", "scene", "likeness")),
        (saturation, (1.0, 0.6, 0.3, 0.0), ("ink", "facts", "scene", "likeness", "chroma")),
        (saturation, (1.0, 1.5, 2.5, 4.0), ("likeness",)),
        (contrast, (1.0, 1.5, 2.5, 4.0), ("likeness",)),
        (contrast, (1.0, 0.6, 0.3, 0.1), ("letters", "facts", "scene", "likeness", "chroma")),
    ],
)
def test_judges_fall_as_renderings_are_spoilt(
    change: Callable, strengths: Sequence[float], falling: Sequence[str]
) -> None:
    found = [values(change(strength)) for strength in strengths]
    for name in falling:
        series = [value[name] for value in found]
        assert all(later < earlier + 0.003 for earlier, later in pairwise(series)), (name, series)
        assert series[-1] < series[0] - 0.04, (name, series)


def test_fresh_renderings_are_seen_as_what_they_are() -> None:
    found = judges.ceiling(PROMPTS)
    assert all(0.93 < found[name] <= 1 for name in judges.QUESTIONS), found
    assert 0.85 < found["likeness"] < 1


def test_each_wrong_letter_costs_its_share() -> None:
    words = [caption for caption in CAPTIONS if caption.kind == "text"]
    prompts = [prompt for prompt in PROMPTS if prompt.source == "text"]
    found = []
    for wrong in range(4):
        spoilt = [replace(caption, word=_other(caption.word) * wrong + caption.word[wrong:]) for caption in words]
        found.append(judges.judge(judges.renderings(spoilt, 6), prompts)["letters"])
    assert found == pytest.approx([1, 2 / 3, 1 / 3, 0], abs=0.06)


def _other(word: str) -> str:
    return next(letter for letter in "ACDEHILNO" if letter not in word)


def test_each_wrong_fact_of_a_composition_costs_its_share() -> None:
    asked = composition_caption(Group(1, "red", "square"), "left of", Group(1, "blue", "circle"))
    swaps = {
        "nothing": asked,
        "count": replace(asked, groups=(Group(2, "red", "square"), asked.groups[1])),
        "shape": replace(asked, groups=(Group(1, "red", "triangle"), asked.groups[1])),
        "relation": replace(asked, relation="right of"),
        "colours": replace(asked, groups=(Group(1, "green", "square"), Group(1, "yellow", "circle"))),
    }
    prompts = [_prompt(asked)] * COUNT
    found = {
        name: judges.judge(judges.renderings([drawn] * COUNT, 7), prompts)["facts"] for name, drawn in swaps.items()
    }
    assert found["nothing"] > 0.93
    for name in ("count", "shape", "relation"):
        assert found["nothing"] - found[name] == pytest.approx(1 / 5, abs=0.06), found
    assert found["colours"] < 0.05, "what is not there has no shape and no place"


def _prompt(caption: Caption) -> Prompt:
    return Prompt(caption.text, caption.kind, {"caption": asdict(caption)})


def test_a_relation_is_the_same_fact_in_both_wordings() -> None:
    red, blue = Group(1, "red", "square"), Group(2, "blue", "circle")
    for relation, opposite in zip(RELATIONS, ("right of", "left of", "below", "above"), strict=True):
        first, second = composition_caption(red, relation, blue), composition_caption(blue, opposite, red)
        assert judge_network.facts_of(first) == judge_network.facts_of(second)


def test_the_right_answers_probability_is_picked_and_nan_elsewhere() -> None:
    answers = judge_network.JudgeNetwork(width=1)(images()[:2])
    picked = judge_network.right(answers, [{"ink": 2}, {"sky": 1}])
    assert picked["ink"][0] == answers["ink"][0, 2]
    assert picked["sky"][1] == answers["sky"][1, 1]
    assert [name for name, values in picked.items() if not values.isnan().all()] == ["ink", "sky"]
    assert sum(log_probabilities.exp().sum(1) for log_probabilities in answers.values()).tolist() == pytest.approx(
        [len(judge_network.HEADS)] * 2, rel=1e-5
    )


def test_the_frechet_distance_equals_its_formula(random: torch.Generator) -> None:
    first = torch.randn(50, 6, generator=random) @ torch.randn(6, 6, generator=random) + 1
    second = torch.randn(80, 6, generator=random).double().numpy()
    one, two = np.cov(first.double().numpy().T), np.cov(second.T)
    ridge = 0.01 * np.trace(two) / 6 * np.eye(6)
    one, scale, two = one + ridge, np.trace(two), two + ridge
    shift = np.square(first.double().numpy().mean(0) - second.mean(0)).sum()
    expected = (shift + np.trace(one + two - 2 * sqrtm(one @ two).real)) / scale
    assert judges.frechet(first, torch.from_numpy(second)) == pytest.approx(expected, rel=1e-6)


def test_the_frechet_distance_of_known_gaussians(random: torch.Generator) -> None:
    sample = torch.randn(30, 5, generator=random)
    total = sample.double().var(0).sum().item()
    assert judges.frechet(sample, sample) == pytest.approx(0, abs=1e-9)
    assert judges.frechet(sample + 2, sample) == pytest.approx(5 * 2**2 / total, rel=1e-5)
    assert judges.frechet(100 * (sample + 2), 100 * sample) == pytest.approx(5 * 2**2 / total, rel=1e-5)
    assert judges.frechet(sample[:3], sample) > 0, "fewer images than features"


@pytest.mark.parametrize(
    ("colour", "expected"),
    [((1, 0, 0), 104.55), ((0, 1, 0), 119.78), ((0, 0, 1), 133.81), ((1, 1, 0), 96.91), ((0.5, 0.5, 0.5), 0.0)],
)
def test_chroma_of_known_colours(colour: tuple[float, ...], expected: float) -> None:
    image = torch.tensor(colour, dtype=torch.float32).view(1, 3, 1, 1).expand(1, 3, 24, 24)
    assert 100 * judges.chroma(image).item() == pytest.approx(expected, abs=0.05)


def test_the_order_of_images_does_not_matter(random: torch.Generator) -> None:
    order = torch.randperm(len(PROMPTS), generator=random)
    shuffled = judges.judge(images()[order], [PROMPTS[i] for i in order])
    plain = values(lambda clean: clean)
    for name in (*judges.QUESTIONS, "chroma"):
        assert shuffled[name] == pytest.approx(plain[name], rel=1e-5)


def test_what_cannot_be_judged_is_refused_and_what_does_not_apply_left_out() -> None:
    with pytest.raises(ValueError, match="tiny world only, got 'a cat'"):
        judges.judge(images()[:1], [Prompt("a cat")])
    with pytest.raises(ValueError, match="got 3 images and 2 prompts"):
        judges.judge(images()[:3], PROMPTS[:2])
    with pytest.raises(ValueError, match="at least 2 images, got 1"):
        judges.judge(images()[:1], PROMPTS[:1])
    assert set(judges.judge(images()[:9], PROMPTS[:9])) == {"scene", "likeness", "chroma"}


def test_training_repeats_itself_and_learns_the_easy_questions_at_once() -> None:
    first, again, other = (judge_training.trained(steps, seed, width=3) for steps, seed in ((30, 0), (30, 0), (1, 1)))
    for name, weight in first.state_dict().items():
        torch.testing.assert_close(weight, again.state_dict()[name], rtol=0, atol=0)
    assert not torch.equal(first.read.weight, other.read.weight)
    found = judge_training.accuracy(first, 200, 9)
    assert found["ink"] > 0.5, "four answers"


def test_the_committed_network_is_the_one_that_its_file_describes() -> None:
    facts = json.loads(judge_network.WEIGHTS.with_suffix(".json").read_text())
    assert judge_network.WEIGHTS.stat().st_size < 300_000
    found = judge_training.accuracy(judge_network.load_network(), 600, 11)
    for name, value in found.items():
        # Asked of 90 images or more: three standard errors at 97 % right.
        assert value == pytest.approx(facts["accuracy"][name], abs=0.055), name
        assert facts["accuracy"][name] > 0.95, name
