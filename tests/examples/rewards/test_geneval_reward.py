"""The GenEval reward on images: colours by a saved CLIP, scores with given objects, bad settings."""

from collections.abc import Sequence

import pytest
import torch
from PIL import Image
from tiny_detectors import save_clip, save_mask2former

from rewards.geneval.classes import COLOURS
from rewards.geneval.colours import ColourClassifier, crop
from rewards.geneval.objects import Detection, Limits
from rewards.geneval.reward import GenEvalReward
from rewards.registry import RewardSettings, build

RGB = {"red": (220, 20, 20), "green": (20, 160, 40), "blue": (30, 60, 220), "yellow": (230, 220, 30)}
NAMES = {"red": "apple", "green": "dog", "blue": "cat", "yellow": "dog"}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("geneval")
    return {
        "detector": str(save_mask2former(folder / "detector")),
        "colour_model": str(save_clip(folder / "clip")),
    }


def drawn(**boxes: tuple[int, int, int, int]) -> torch.Tensor:
    """Rectangles by colour (``red=(left, top, right, bottom)``) on white, [3, 64, 64] in [0, 1]."""
    image = torch.ones(3, 64, 64)
    for colour, (left, top, right, bottom) in boxes.items():
        image[:, top:bottom, left:right] = torch.tensor(RGB[colour])[:, None, None] / 255
    return image


class ByColour:
    """Finds the rectangles of ``drawn`` in the pixels it is given: red is an apple, blue a cat, the others are dogs."""

    calls: int = 0

    def __call__(self, images: Sequence[Image.Image]) -> list[list[Detection]]:
        self.calls += 1
        return [self.find(image) for image in images]

    def find(self, image: Image.Image) -> list[Detection]:
        pixels = torch.tensor(list(image.tobytes())).view(image.height, image.width, 3)
        found = []
        for colour, rgb in RGB.items():
            mask = (pixels == torch.tensor(rgb)).all(-1)
            if mask.any():
                rows, columns = torch.where(mask)
                edges = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
                found.append(Detection(NAMES[colour], 0.95, tuple(float(edge) for edge in edges), mask))
        return found


def by_centre(crops: Sequence[Image.Image], names: Sequence[str]) -> list[str]:
    """The colour in the middle of each crop."""
    pixels = [each.getpixel((each.width // 2, each.height // 2)) for each in crops]
    return [next(colour for colour, rgb in RGB.items() if rgb == pixel) for pixel in pixels]


DOG, CAT = {"class": "dog", "count": 1}, {"class": "cat", "count": 1}
LEFT, RIGHT = (4, 24, 20, 40), (44, 24, 60, 40)
IMAGES = torch.stack(
    [
        drawn(green=LEFT),
        drawn(green=LEFT, blue=RIGHT),
        drawn(green=RIGHT, blue=LEFT),
        drawn(green=LEFT, yellow=RIGHT),
        drawn(red=LEFT),
        drawn(blue=LEFT, yellow=RIGHT),
    ]
)
METADATA = [
    {"tag": "single_object", "include": [DOG]},
    {"tag": "position", "include": [CAT, {**DOG, "position": ["left of", 0]}]},
    {"tag": "position", "include": [CAT, {**DOG, "position": ["left of", 0]}]},
    {"tag": "counting", "include": [{"class": "dog", "count": 2}], "exclude": [{"class": "dog", "count": 3}]},
    {},
    {"tag": "color_attr", "include": [{**CAT, "color": "blue"}, {**DOG, "color": "green"}]},
]
PROMPTS = [f"prompt {i}" for i in range(len(METADATA))]


@pytest.mark.parametrize("batch_size", [1, 4, 16])
@pytest.mark.parametrize(
    ("score", "expected"),
    [("partial", [1, 1, 0.75, 1, torch.nan, 0.75]), ("strict", [1, 1, 0, 1, torch.nan, 0])],
)
def test_images_are_scored_by_their_objects(score: str, expected: list[float], batch_size: int) -> None:
    find = ByColour()
    reward = GenEvalReward(find, by_centre, score, Limits(), batch_size)
    scores = reward(IMAGES, PROMPTS, METADATA)
    torch.testing.assert_close(scores, torch.tensor(expected, dtype=torch.float32), equal_nan=True)
    assert find.calls == -(-5 // batch_size), "images without facts are not looked at"


def test_a_crop_shows_the_object_alone_on_grey() -> None:
    image = Image.new("RGB", (10, 8), (255, 0, 0))
    mask = torch.zeros(8, 10, dtype=torch.bool)
    mask[2:5, 3:6] = True
    mask[6, 8] = True
    shown = crop(image, Detection("dog", 0.9, (2.6, 2.4, 9.0, 7.0), mask))
    assert shown.size == (6, 5)
    pixels = {(x + 3, y + 2): shown.getpixel((x, y)) for x in range(6) for y in range(5)}
    assert all(pixel == ((255, 0, 0) if mask[y, x] else (153, 153, 153)) for (x, y), pixel in pixels.items())
    assert crop(image, Detection("dog", 0.9, (0, 0, 4, 2))).getcolors() == [(8, (255, 0, 0))]


def test_colours_are_those_of_the_nearest_mean_phrase(models: dict[str, str]) -> None:
    classifier = ColourClassifier(models["colour_model"], batch_size=5)
    crops = [Image.new("RGB", (20 + i, 30), rgb) for i, rgb in enumerate(RGB.values())] * 4
    names = [name for name in ("dog", "wine glass", "cat", "person") for _ in RGB]
    expected = []
    for each, name in zip(crops, names, strict=True):
        pixels = classifier.processor(images=each, return_tensors="pt")["pixel_values"]
        similarities = []
        for colour in COLOURS:
            mean = 0
            for phrase in (f"a photo of a {colour} {name}", f"a photo of a {colour}-colored {name}"):
                mean = mean + _text(classifier, phrase)
            mean = mean + _text(classifier, f"a photo of a {colour} object")
            with torch.no_grad():
                vision = classifier.model.visual_projection(classifier.model.vision_model(pixels).pooler_output)[0]
            similarities.append(torch.dot(vision, mean / mean.norm()).item())
        expected.append(COLOURS[similarities.index(max(similarities))])
    assert len(set(expected)) >= 4
    assert classifier(crops, names) == expected
    assert classifier([], []) == []


def _text(classifier: ColourClassifier, phrase: str) -> torch.Tensor:
    tokens = classifier.tokenizer(phrase, return_tensors="pt")
    with torch.no_grad():
        embedding = classifier.model(**tokens, pixel_values=torch.zeros(1, 3, 32, 32)).text_embeds[0]
    return embedding / embedding.norm()


def test_the_reward_is_built_from_saved_models(models: dict[str, str]) -> None:
    options = {**models, "short_side": 64, "threshold": 0.35, "max_objects": 3}
    reward = build("geneval", RewardSettings(options=options, batch_size=2))
    assert isinstance(reward, GenEvalReward)
    assert reward.limits == Limits(threshold=0.35, max_objects=3)
    scores = reward(IMAGES, PROMPTS, METADATA)
    assert scores.dtype == torch.float32
    assert scores.isnan().tolist() == [False, False, False, False, True, False]
    found = {each.name for each in reward.find([Image.new("RGB", (64, 64), (9, 120, 40))])[0]}
    name = sorted(found)[0]
    seen = reward(drawn(green=LEFT)[None], [""], [{"tag": "colors", "include": [{"class": name, "count": 1}]}])
    assert seen.isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "x"}, r"no option \['model'\]: known are score, detector"),
        ({"score": "loose"}, "score must be one of partial, strict, got 'loose'"),
        ({"threshold": 3}, r"threshold must be in \[0, 1\], got 3"),
    ],
)
def test_bad_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build("geneval", RewardSettings(options=options))


def test_bad_inputs_are_refused() -> None:
    reward = GenEvalReward(ByColour(), by_centre)
    with pytest.raises(ValueError, match=r"of the prompt 'a photo of a gnu': include\[0\]\.class is 'gnu'"):
        reward(IMAGES[:1], ["a photo of a gnu"], [{"tag": "single_object", "include": [{"class": "gnu", "count": 1}]}])
    with pytest.raises(ValueError, match="6 images for 1 prompts"):
        reward(IMAGES, ["a dog"], METADATA[:1])
    with pytest.raises(ValueError, match="not finite"):
        reward(IMAGES[:1] / 0, ["a dog"], METADATA[:1])
