"""What an image should say, and how far from it what was read is."""

import re
from collections.abc import Sequence

from tiny.edit_distance import edit_distance

from .interface import Metadata

_TYPOGRAPHIC = str.maketrans({"“": '"', "”": '"', "„": '"', "‟": '"'})


def target_text(prompt: str, metadata: Metadata) -> str | None:
    """The text that an image of ``prompt`` should show; ``None`` where the reward does not apply.

    ``metadata["text"]`` if it is there; else, for a prompt with ``metadata["source"] == "ocr"``, what stands between
    its double quotes, straight or typographic. Several quoted parts are joined in their order by a space (flow_grpo and
    DiffusionNFT take the first one; in their prompts there is no second).

    Raises ``ValueError`` for a text that is not a string or is blank, and for a prompt of source "ocr" without quotes,
    with one that is not closed, or with nothing between them.
    """
    if metadata.get("text") is not None:
        text = metadata["text"]
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f'metadata["text"] of the prompt {prompt!r} must be text to be read, got {text!r}')
        return text
    if metadata.get("source") != "ocr":
        return None
    straight = prompt.translate(_TYPOGRAPHIC)
    quoted = [part.strip() for part in re.findall(r'"([^"]*)"', straight)]
    if straight.count('"') % 2 or not any(quoted):
        raise ValueError(
            f'the ocr prompt {prompt!r} must have the text to be read between double quotes; or set metadata["text"]'
        )
    return " ".join(part for part in quoted if part)


def text_score(read: str, target: str, exact: bool = False) -> float:
    """How much of ``target`` was read: max(0, 1 − d / n), in [0, 1]; n the characters of the target, d a distance.

    By default the rule of Flow-GRPO (arXiv 2505.05470, its text rendering task; flow_grpo/ocr.py, the same file in
    DiffusionNFT): spaces are removed from both and both are lower-cased; d = 0 if the target is contained in what was
    read, else the edit distance. So it is lenient: case and the places of spaces do not count, and neither does any
    text around the target, be it the target again. Text around a target with a mistake does count.

    With ``exact`` d is the edit distance of both as they are: case, spaces and any surplus text count.

    Raises ``ValueError`` for a target without characters.
    """
    if not exact:
        read, target = read.replace(" ", "").lower(), target.replace(" ", "").lower()
    if not target:
        raise ValueError("a target needs characters other than spaces")
    distance = 0 if not exact and target in read else edit_distance(read, target)
    return max(0.0, 1 - distance / len(target))


def in_reading_order(boxes: Sequence[Sequence[tuple[float, float]]], texts: Sequence[str]) -> str:
    """The ``texts`` from top to bottom and, within a line, from left to right, joined by spaces.

    ``boxes``: one polygon of (x, y) corners per text, in pixels, y downwards. Two texts share a line if the centre of
    the lower one is above the bottom of the highest of the line and below its top.
    """
    spans = []
    for box, text in zip(boxes, texts, strict=True):
        xs, ys = [x for x, _ in box], [y for _, y in box]
        spans.append(((min(ys) + max(ys)) / 2, min(ys), max(ys), min(xs), text))
    lines: list[list[tuple[float, float, float, float, str]]] = []
    for span in sorted(spans):
        if lines and lines[-1][0][1] <= span[0] <= lines[-1][0][2]:
            lines[-1].append(span)
        else:
            lines.append([span])
    return " ".join(span[-1] for line in lines for span in sorted(line, key=lambda span: span[3]))
