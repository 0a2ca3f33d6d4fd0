"""Which sizes Flux Kontext's images may have: as many pixels as a square, in several aspect ratios."""

from collections.abc import Sequence

from diffusers.pipelines.flux.pipeline_flux_kontext import PREFERRED_KONTEXT_RESOLUTIONS

# Width and height in pixels.
Size = tuple[int, int]
# The side of the square that the sizes of the pipeline's list have as many pixels as.
_SIDE = 1024
# The list ends at 7 : 3; what is longer is squeezed into it, up to here.
MOST_RATIO = 3.0


def offered(side: int, step: int) -> list[Size]:
    """The sizes for squares of ``side`` pixels, a multiple of ``step``.

    At 1024 pixels they are the pipeline's list, those that Kontext was trained on. For another side both lengths are
    scaled and rounded to multiples of ``step``, and sizes that become equal are one; then their numbers of pixels
    differ by more (at 512 by up to 3 %).
    """
    return sorted({(_rounded(w * side / _SIDE, step), _rounded(h * side / _SIDE, step)) for w, h in _listed()})


def nearest(picture: Size, sizes: Sequence[Size], step: int) -> Size:
    """The one of ``sizes`` whose aspect ratio is nearest to the one of ``picture``, by the pipeline's rule.

    Raises ``ValueError`` for a picture with a side below ``step`` pixels, or longer than :data:`MOST_RATIO` : 1.
    """
    width, height = picture
    if min(picture) < step:
        raise ValueError(f"{width} x {height} pixels are too few: both sides must be at least {step}, enlarge it")
    if not max(picture) <= MOST_RATIO * min(picture):
        raise ValueError(
            f"{width} x {height} pixels are too long: one side may be {MOST_RATIO:g} times the other at most, crop it"
        )
    # The pipeline looks at whole tokens.
    ratio = (width - width % step) / (height - height % step)
    return min(sizes, key=lambda size: (abs(ratio - size[0] / size[1]), size))


def _listed() -> list[Size]:
    return [(width, height) for width, height in PREFERRED_KONTEXT_RESOLUTIONS]


def _rounded(length: float, step: int) -> int:
    return max(round(length / step), 1) * step
