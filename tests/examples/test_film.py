"""Samples as pictures: strips of frames, edits beside their source, one size for all."""

import numpy as np
import torch

from prompts.pictures import png_url
from prompts.prompt import Prompt
from trainer.film import FRAMES, pictures


def test_a_video_is_a_strip_from_its_first_to_its_last_frame() -> None:
    video = torch.arange(9).view(9, 1, 1, 1).expand(9, 3, 4, 6) / 10
    [strip] = pictures([video], [Prompt("a cat")])
    assert strip.shape == (3, 4, 6 * FRAMES)
    assert strip[0, 0, ::6].tolist() == [each / 10 for each in torch.tensor([0, 2, 4, 6, 8])]
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
