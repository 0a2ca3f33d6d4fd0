"""The OCR reward on drawn text: rapidocr reads the images, the rule's values are worked out by hand."""

import logging
import socket

import pytest
import torch
from text_images import text_image

from rewards.ocr import OcrReward, ocr
from rewards.pil_images import pil_images
from rewards.registry import RewardSettings, build


@pytest.fixture(scope="module")
def reward() -> OcrReward:
    return build("ocr", RewardSettings(options={"threads": 1}))


# image, target, score by the default rule, score by the exact one
CASES = [
    (text_image("OPEN LATE"), "OPEN LATE", 1, 1),
    (text_image("OPEN LATE", side=512, size=70), "OPEN LATE", 1, 1),
    (text_image("OPEN LAKE"), "OPEN LATE", 1 - 1 / 8, 1 - 1 / 9),
    (text_image("open late"), "OPEN LATE", 1, 1 - 8 / 9),
    (text_image("Grand Opening", side=512, size=58), "grand opening", 1, 1 - 2 / 13),
    (text_image("FRESH", "BREAD", size=46), "FRESH BREAD", 1, 1),
    (
        text_image("FRESH", "BREAD", side=512, size=90),
        "BREAD FRESH",
        1 - 6 / 10,
        1 - 6 / 11,
    ),  # r, e, (space,) r, e stay
    (text_image("BREAD", size=46), "FRESH BREAD", 1 - 5 / 10, 1 - 6 / 11),
    (text_image("NOW FRESH", "BREAD", size=38), "FRESH BREAD", 1, 1 - 4 / 11),
    (text_image("ROOM 214", side=512, size=60), "ROOM 215", 1 - 1 / 7, 1 - 1 / 8),
    (text_image("HOTEL", size=46), "CINEMA", 1 - 5 / 6, 1 - 5 / 6),  # the e stays
    (text_image(), "OPEN LATE", 0, 0),
]


@pytest.mark.parametrize("case", range(len(CASES)), ids=[f"{i}-{CASES[i][1]}" for i in range(len(CASES))])
def test_what_is_read_is_scored_by_the_rule(reward: OcrReward, case: int) -> None:
    image, target, lenient, exact = CASES[case]
    metadata = [{"text": target}]
    (read,) = map(reward.reader, pil_images(image[None]))
    for rule, score in ((False, lenient), (True, exact)):
        scored = OcrReward(lambda _: read, exact=rule)(image[None], ["a sign"], metadata)
        assert scored.tolist() == pytest.approx([score])


def test_a_batch_is_scored_where_text_is_asked_for(reward: OcrReward) -> None:
    images = torch.stack([text_image("OPEN LATE"), text_image("TEA", size=60), text_image("TEA", size=60)])
    prompts = ['a sign that says "OPEN LATE"', "a cup", "a label with “TEE”"]
    scores = reward(images, prompts, [{"source": "ocr"}, {}, {"source": "ocr"}])
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, torch.tensor([1, torch.nan, 2 / 3]), equal_nan=True)


def test_a_batch_without_text_asks_nothing_of_the_reader() -> None:
    assert OcrReward(None)(torch.rand(2, 3, 8, 8), ["a", "b"], [{}, {}]).isnan().all()


def test_lines_read_with_less_confidence_are_dropped(reward: OcrReward) -> None:
    blurred = torch.nn.functional.avg_pool2d(text_image("OPEN LATE", size=22)[None], 5, 1, 2)
    confidence = min(reward.reader.engine(_pil(blurred)).scores)
    scores = []
    for bound in (confidence - 1e-3, confidence + 1e-3):
        reader = ocr(RewardSettings(options={"threads": 1, "min_confidence": float(bound)}))
        scores.append(reader(blurred, ["a sign"], [{"text": "OPEN LATE"}]).item())
    assert scores[0] > 0
    assert scores[1] == 0


def test_nothing_is_downloaded_logged_or_printed(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError("a connection was asked for")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    with caplog.at_level(logging.DEBUG):
        reward = ocr(RewardSettings(options={"threads": 1}))
        scores = reward(torch.stack([text_image("TEA", size=60), text_image()]), ["", ""], [{"text": "TEA"}] * 2)
    assert scores.tolist() == [1, 0]
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (RewardSettings(options={"strict": True}), r"no option \['strict'\]: known are exact"),
        (RewardSettings(options={"exact": "yes"}), "exact must be true or false, got 'yes'"),
        (RewardSettings(options={"min_confidence": 1.5}), r"min_confidence must be in \[0, 1\]"),
        (RewardSettings(options={"threads": 0}), "threads must be a whole number from 1"),
        (RewardSettings(device="mps"), "cannot run on 'mps'"),
    ],
)
def test_bad_settings_are_refused(settings: RewardSettings, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ocr(settings)


def test_bad_inputs_are_refused(reward: OcrReward) -> None:
    metadata = [{"text": "TEA"}]
    with pytest.raises(ValueError, match="between double quotes"):
        reward(torch.rand(1, 3, 32, 32), ["a sign"], [{"source": "ocr"}])
    with pytest.raises(ValueError, match=r"\[0\] of the batch have values that are not finite"):
        reward(torch.full((1, 3, 32, 32), torch.nan), ["a sign"], metadata)
    with pytest.raises(ValueError, match=r"must be \[B, 3, H, W\], got \[1, 1, 32, 32\]"):
        reward(torch.rand(1, 1, 32, 32), ["a sign"], metadata)
    with pytest.raises(ValueError, match="2 images for 1 prompts"):
        reward(torch.rand(2, 3, 32, 32), ["a sign"], metadata)


def _pil(images: torch.Tensor) -> object:
    from rewards.pil_images import pil_images

    return pil_images(images)[0]
