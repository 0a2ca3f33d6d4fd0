"""The reading reward: find glyphs in the image, compare what they spell with the word asked for."""

from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad, unfold

from .edit_distance import edit_distance
from .font import GLYPH_HEIGHT, GLYPH_WIDTH, GLYPHS, LETTERS

_THRESHOLD = 0.6
_MAX_LETTERS = 6


def read(images: Tensor) -> list[str]:
    """Read the letters of each image [B, 3, H, W] in [0, 1], from left to right.

    The distance of every pixel to the image's median colour is correlated with each glyph and its empty
    margin. The best match sets the line; further matches are taken from the same line, best
    first, as long as they do not overlap and their normalised correlation is at least 0.6.
    """
    matches = _correlations(images)
    return [_spell(match) for match in matches]


def reading_score(images: Tensor, words: list[str]) -> Tensor:
    """1 − (edit distance to the word) / (letters of the word), at least 0, [B]."""
    found = read(images)
    scores = [max(0.0, 1 - edit_distance(a, b) / len(b)) for a, b in zip(found, words, strict=True)]
    return torch.tensor(scores)


@cache
def _templates() -> Tensor:
    """Zero-mean, unit-norm glyphs with a margin of one pixel, [L, 9, 7]."""
    glyphs = torch.stack([torch.from_numpy(GLYPHS[letter]).float() for letter in LETTERS])
    glyphs = pad(glyphs, (1, 1, 1, 1))
    centred = glyphs - glyphs.mean((1, 2), keepdim=True)
    return centred / centred.flatten(1).norm(dim=1)[:, None, None]


def _correlations(images: Tensor) -> Tensor:
    """Normalised cross-correlation of every letter at every place, [B, L, H - 6, W - 4]."""
    background = images.flatten(2).median(-1).values[..., None, None]
    distance = pad((images - background).norm(dim=1, keepdim=True), (1, 1, 1, 1))
    templates = _templates()
    size = (GLYPH_HEIGHT + 2, GLYPH_WIDTH + 2)
    product = conv2d(distance, templates[:, None])
    windows = unfold(distance, size)
    spread = (windows - windows.mean(1, keepdim=True)).norm(dim=1).view(len(images), 1, *product.shape[2:])
    return product / spread.clamp_min(1e-6)


def _spell(match: Tensor) -> str:
    best, letter = match.max(0)
    width = best.shape[1]
    line = int(best.argmax()) // width
    rows = best[max(line - 1, 0) : line + 2]
    letters = letter[max(line - 1, 0) : line + 2]
    score, row = rows.max(0)
    found: dict[int, str] = {}
    for column in score.argsort(descending=True).tolist():
        if score[column] < _THRESHOLD or len(found) == _MAX_LETTERS:
            break
        if all(abs(column - other) >= GLYPH_WIDTH for other in found):
            found[column] = LETTERS[int(letters[row[column], column])]
    return "".join(found[column] for column in sorted(found))
