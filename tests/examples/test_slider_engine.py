"""What the app shows, without its page; and the page, where gradio is installed."""

import math
from pathlib import Path

import pytest
import torch

from slider_engine import SHIPPED, Drawn, SliderEngine, rebalanced


@pytest.mark.parametrize(
    ("values", "moved", "value", "expected"),
    [
        ([0.5, 0.5], 0, 0.8, [0.8, 0.2]),
        ([0.2, 0.3, 0.5], 2, 0.0, [0.4, 0.6, 0.0]),
        ([0.0, 0.0, 1.0], 2, 0.4, [0.3, 0.3, 0.4]),
        ([0.5, 0.5], 1, 7.0, [0.0, 1.0]),
        ([0.5, 0.5], 1, -7.0, [1.0, 0.0]),
        ([1.0, 0.0], 0, 1.0, [1.0, 0.0]),
    ],
)
def test_the_other_sliders_share_the_rest_in_proportion(
    values: list[float], moved: int, value: float, expected: list[float]
) -> None:
    assert rebalanced(values, moved, value) == pytest.approx(expected)


def test_sliders_stay_on_the_simplex_whatever_is_moved() -> None:
    generator, values = torch.Generator().manual_seed(0), [1.0, 0.0, 0.0, 0.0]
    for _ in range(500):
        moved = int(torch.randint(4, (1,), generator=generator))
        values = rebalanced(values, moved, float(torch.rand(1, generator=generator)) * 1.4 - 0.2)
        assert min(values) >= 0
        assert sum(values) == pytest.approx(1)


@pytest.mark.parametrize(("values", "moved", "value"), [([1.0], 0, 1.0), ([1, 0], 2, 1.0), ([1, 0], 0, math.nan)])
def test_sliders_that_make_no_sense_are_refused(values: list[float], moved: int, value: float) -> None:
    with pytest.raises(ValueError, match="need two finite values or more"):
        rebalanced(values, moved, value)


@pytest.fixture(scope="module")
def engine() -> SliderEngine:
    return SliderEngine()


def test_the_shipped_slider_is_small_and_says_how_it_was_made(engine: SliderEngine) -> None:
    assert sum(path.stat().st_size for path in SHIPPED.iterdir()) < 3 * 2**20
    assert {"preset", "settings", "sampler_steps", "front", "composition", "commit", "date"} <= set(engine.facts)
    assert all(abs(sum(omega) - 1) < 1e-6 for omega, _ in engine.front)


def test_the_image_depends_on_prompt_seed_and_preference_and_on_nothing_else(engine: SliderEngine) -> None:
    caption = engine.captions()[0]
    first = engine.generate(caption, 3, [1.0, 0.0])
    assert torch.equal(engine.generate(caption, 3, [1.0, 0.0]).image, first.image)
    others = [(caption, 3, [0.0, 1.0]), (caption, 4, [1.0, 0.0]), ("two red circles", 3, [1.0, 0.0])]
    assert not any(torch.equal(engine.generate(*other).image, first.image) for other in others)
    assert set(first.scores) == set(engine.rewards)
    assert all(0 <= score <= 1 for score in first.scores.values())


def test_each_end_of_the_shipped_slider_serves_its_own_reward(engine: SliderEngine) -> None:
    ends = {
        place: [engine.generate(caption, 5, [float(place == 0), float(place == 1)]) for caption in engine.captions(8)]
        for place in (0, 1)
    }
    for place, name in enumerate(engine.rewards):
        means = {end: sum(drawn.scores[name] for drawn in images) / len(images) for end, images in ends.items()}
        assert means[place] > means[1 - place], name


def test_expected_scores_lie_on_the_front(engine: SliderEngine) -> None:
    for omega, scores in engine.front:
        assert engine.expected(omega) == pytest.approx(scores, abs=1e-6)
    middle = engine.expected([0.55, 0.45])
    (one, two) = (dict(zip(map(tuple, [o for o, _ in engine.front]), [s for _, s in engine.front], strict=True))[key]
                  for key in ((0.5, 0.5), (0.6, 0.4)))  # fmt: skip
    name = engine.rewards[0]
    assert min(one[name], two[name]) - 1e-6 <= middle[name] <= max(one[name], two[name]) + 1e-6


@pytest.mark.parametrize(
    ("text", "omega", "message"),
    [
        ("two red circles", [1.0], "the rewards are colour, soft"),
        ("two red circles", [0.9, 0.9], "must be on the simplex"),
        ("red " * 11, [0.5, 0.5], "shorten it"),
    ],
)
def test_what_the_slider_cannot_draw_is_refused(
    engine: SliderEngine, text: str, omega: list[float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        engine.generate(text, 0, omega)


def test_a_folder_without_a_slider_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no slider\.json: benchmarks/slider\.py --ship"):
        SliderEngine(tmp_path)


def test_pixels_are_enlarged_to_squares() -> None:
    drawn = Drawn(torch.tensor([[[0.0, 1.0]], [[0.5, 0.0]], [[0.0, 0.0]]]), {})
    pixels = drawn.pixels(2)
    assert pixels.shape == (2, 4, 3)
    assert pixels[0].tolist() == [[0, 128, 0]] * 2 + [[255, 0, 0]] * 2


def test_the_page_builds_and_its_callbacks_answer(engine: SliderEngine) -> None:
    pytest.importorskip("gradio")
    from slider_app import App

    app = App(engine)
    assert app.page() is not None
    assert app.move(0, 0.8, 0.5) == pytest.approx([0.8, 0.2])
    pixels, scores, figure = app.show(engine.captions()[0], 0, 0.8, 0.2)
    assert pixels.shape == (384, 384, 3)
    assert all(name in scores for name in engine.rewards)
    assert len(figure.axes) == 1
