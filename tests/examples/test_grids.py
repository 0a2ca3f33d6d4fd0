"""The picture of labelled samples: where images lie, how captions wrap, what is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFont

from trainer.grids import _wrapped, save_grid

FONT = ImageFont.load_default(12)
LONG = "a long caption that goes on and on about very many things which nobody can read in one line, " * 3


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def test_small_images_are_enlarged_by_whole_pixels(tmp_path: Path) -> None:
    images = torch.randint(256, (3, 3, 24, 24)) / 255
    drawn = pixels(save_grid(images, ["a", "b", LONG], ["", "x 1.0", ""], tmp_path / "new" / "grid.png", columns=2))
    expected = (images * 255).round().byte().permute(0, 2, 3, 1).numpy()
    assert drawn.shape[1] == 2 * (7 * 24 + 8) + 8
    for index, left in ((0, 8), (1, 8 + 168 + 8)):
        assert np.array_equal(drawn[8 : 8 + 168 : 7, left : left + 168 : 7], expected[index])
        assert np.array_equal(drawn[14 : 8 + 168 : 7, left + 6 : left + 168 : 7], expected[index])
    below = [top for top in range(9, drawn.shape[0] - 168) if np.array_equal(drawn[top, 8:176:7], expected[2, 0])]
    assert below, "the second row has the third image"


def test_large_images_keep_their_size_and_columns_shrink(tmp_path: Path) -> None:
    images = torch.tensor([-1.0, torch.nan, 0.5, 7.0]).view(1, 1, 4, 1).expand(1, 3, 4, 128).repeat_interleave(64, 2)
    drawn = pixels(save_grid(images, ["a cat"], ["ocr 1.00"], tmp_path / "grid.png", columns=5))
    assert drawn.shape[1] == 2 * 128 + 16
    assert [drawn[8 + 128 * part + 5, 8, 0] for part in range(4)] == [0, 0, 128, 255]
    assert (drawn[-1] == 255).all()


@pytest.mark.parametrize("caption", ["a cat", LONG, "x" * 300, "“OPEN” " * 20, ""])
def test_captions_wrap_within_the_width_and_lose_nothing(caption: str) -> None:
    lines = _wrapped(caption, FONT, 120, cut=False)
    assert all(FONT.getlength(line) <= 120 for line in lines)
    assert "".join(lines).replace(" ", "") == caption.replace(" ", "")
    cut = _wrapped(caption, FONT, 120)
    assert cut[:3] == lines[:3]
    assert all(FONT.getlength(line) <= 120 for line in cut[:4])
    assert (len(lines) > 4) == (len(cut) > 4 and cut[3].endswith("..."))


@pytest.mark.parametrize(
    ("shape", "captions", "columns", "message"),
    [
        ((2, 1, 4, 4), 2, 1, r"images must be \[N, 3, H, W\], N at least 1, got \[2, 1, 4, 4\]"),
        ((0, 3, 4, 4), 0, 1, "N at least 1"),
        ((3, 4, 4), 3, 1, r"got \[3, 4, 4\]"),
        ((2, 3, 4, 4), 1, 1, "2 images need a caption and a score each: 1, 1 given"),
        ((1, 3, 4, 4), 1, 0, "columns must be at least 1"),
    ],
)
def test_what_does_not_fit_is_refused(
    shape: tuple[int, ...], captions: int, columns: int, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        save_grid(torch.zeros(shape), ["a"] * captions, [""] * captions, tmp_path / "grid.png", columns)
