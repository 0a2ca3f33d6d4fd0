"""Samples as pictures: strips of frames, edits beside their source, one size for all."""

import numpy as np
import pytest
import torch
from trainer_cases import small_trainer

from prompts.pictures import png_url
from prompts.prompt import Prompt
from trainer import evaluation
from trainer.film import FRAMES, drawn, pictures


def test_a_video_is_a_strip_from_its_first_to_its_last_frame() -> None:
    video = torch.arange(9).view(9, 1, 1, 1).expand(9, 3, 4, 6) / 10
    [strip] = pictures([video], [Prompt("a cat")])
    assert strip.shape == (3, 4, 6 * FRAMES)
    assert strip[0, 0, ::6].tolist() == [each / 10 for each in torch.tensor([0, 2, 4, 6, 8])]
    assert torch.equal(drawn(video), drawn(drawn(video))), "so that an evaluation can leave the other frames out"
    assert torch.equal(*(pictures([each], [Prompt("a cat")]) for each in (video, drawn(video))))
    [short] = pictures([video[:2]], [Prompt("a cat")])
    assert short.shape == (3, 4, 12)


def test_an_edit_stands_on_the_right_of_its_source() -> None:
    source = np.full((8, 12, 3), 51, dtype=np.uint8)
    [pair] = pictures([torch.ones(3, 4, 6)], [Prompt("make it white", metadata={"image": png_url(source)})])
    assert pair.shape == (3, 4, 12)
    torch.testing.assert_close(pair[:, :, :6], torch.full((3, 4, 6), 0.2))
    assert (pair[:, :, 6:] == 1).all()


def test_pictures_of_several_sizes_get_a_white_margin() -> None:
    first, second = pictures([torch.zeros(3, 4, 6), torch.zeros(3, 5, 3)], [Prompt("")] * 2)
    assert first.shape == second.shape == (3, 5, 6)
    assert (first[:, :4] == 0).all()
    assert (first[:, 4:] == 1).all()
    assert (second[:, :, 3:] == 1).all()


def test_an_evaluation_keeps_the_frames_that_are_drawn_and_ranks_send_them_with_8_bits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trainer = small_trainer()
    decode, submit = trainer.backbone.decode, trainer.scorer.submit
    scored: list[torch.Size] = []
    sent: list[dict] = []

    def video(latents: torch.Tensor) -> torch.Tensor:
        return decode(latents).unsqueeze(1) * torch.linspace(0, 1, 9).view(9, 1, 1, 1)

    def score(videos: torch.Tensor, *rest: object) -> None:
        scored.append(videos.shape[1:])
        submit(videos, *rest)

    monkeypatch.setattr(trainer.backbone, "decode", video)
    monkeypatch.setattr(trainer.scorer, "submit", score)
    found = trainer.evaluate()
    assert {image.shape for image in found.images.values()} == {(FRAMES, 3, 24, 24)}
    assert {*scored} == {(9, 3, 24, 24)}, "rewards see all frames"

    def exchange(kept: dict) -> list[dict]:
        sent.append(kept)
        return [kept, {1: kept[0]}]

    monkeypatch.setattr(evaluation.ranks, "ranks", lambda: 2)
    monkeypatch.setattr(evaluation.ranks, "everyone", exchange)
    images = evaluation._of_all_ranks(found.images)
    assert [*images] == sorted({*found.images, 1})
    for i, image in found.images.items():
        assert sent[0][i].dtype == torch.uint8
        assert sent[0][i].untyped_storage().nbytes() == image.numel()
        torch.testing.assert_close(images[i], image, rtol=0, atol=0.5 / 255 + 1e-6)
