"""Samples with their captions and scores, as one picture."""

import math
import os
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

# Small images are enlarged to at least so many pixels, each pixel to a square.
SMALLEST_CELL = 160
_MARGIN, _CAPTION_LINES = 8, 4
_INK, _GREY, _PAPER = (20, 20, 20), (110, 110, 110), (255, 255, 255)


def save_grid(
    images: Tensor,
    captions: Sequence[str],
    scores: Sequence[str],
    path: str | os.PathLike[str],
    columns: int = 4,
) -> Path:
    """Write a PNG of labelled samples, row by row, and return its path.

    Below each image stand its caption, wrapped and after four lines cut, and its scores in grey, wrapped. Images
    smaller than 160 pixels are enlarged by a whole factor, larger ones keep their size. The font is the one that comes
    with Pillow: ASCII and typographic quotes; other characters show as boxes.

    Args:
        images: [N, 3, H, W] in [0, 1], N at least 1; what lies outside is clipped, NaN is black.
        captions: N texts.
        scores: N texts, such as "ocr 0.93  clean 0.71"; "" for none.
        path: the file; missing folders are made.
        columns: images per row, at least 1; fewer where there are fewer images.

    Raises ``ValueError``: shapes or lengths that do not fit, ``columns`` < 1.
    """
    if images.dim() != 4 or images.shape[1] != 3 or 0 in images.shape:
        raise ValueError(f"images must be [N, 3, H, W], N at least 1, got {list(images.shape)}")
    if not len(images) == len(captions) == len(scores):
        raise ValueError(f"{len(images)} images need a caption and a score each: {len(captions)}, {len(scores)} given")
    if columns < 1:
        raise ValueError(f"columns must be at least 1, got {columns}")
    pictures = _enlarged(images)
    width, height = pictures[0].size
    font = ImageFont.load_default(max(12, width // 24))
    leading = math.ceil(1.3 * font.size)
    labels = [
        [(line, _INK) for line in _wrapped(caption, font, width)[:_CAPTION_LINES]]
        + [(line, _GREY) for line in _wrapped(score, font, width, cut=False)]
        for caption, score in zip(captions, scores, strict=True)
    ]
    columns = min(columns, len(pictures))
    rows = [range(start, min(start + columns, len(pictures))) for start in range(0, len(pictures), columns)]
    depths = [height + leading * max(len(labels[i]) for i in row) + 2 * _MARGIN for row in rows]
    sheet = Image.new("RGB", (columns * (width + _MARGIN) + _MARGIN, sum(depths) + _MARGIN), _PAPER)
    draw = ImageDraw.Draw(sheet)
    top = _MARGIN
    for row, depth in zip(rows, depths, strict=True):
        for column, index in enumerate(row):
            left = _MARGIN + column * (width + _MARGIN)
            sheet.paste(pictures[index], (left, top))
            for number, (line, ink) in enumerate(labels[index]):
                draw.text((left, top + height + _MARGIN // 2 + number * leading), line, ink, font)
        top += depth
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, "PNG")
    return path


def _enlarged(images: Tensor) -> list[Image.Image]:
    pixels = (images.detach().float().nan_to_num(0).clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    height, width = pixels.shape[1:3]
    factor = math.ceil(SMALLEST_CELL / min(height, width))
    return [Image.fromarray(np.kron(each, np.ones((factor, factor, 1), np.uint8))) for each in pixels]


def _wrapped(text: str, font: ImageFont.FreeTypeFont, width: int, cut: bool = True) -> list[str]:
    """Lines of at most ``width`` pixels; wider words are broken. With ``cut``, the last one kept ends in "..."."""
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
            continue
        while word:
            fitting = max(1, bisect_right(range(1, len(word) + 1), width, key=lambda n: font.getlength(word[:n])))
            lines.append(word[:fitting])
            word = word[fitting:]
    if cut and len(lines) > _CAPTION_LINES:
        last = lines[_CAPTION_LINES - 1]
        while last and font.getlength(last + "...") > width:
            last = last[:-1]
        lines[_CAPTION_LINES - 1] = last.rstrip() + "..."
    return lines
