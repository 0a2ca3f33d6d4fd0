"""Write a folder of drawn pictures with instructions to edit them, for dry runs of an image editor.

    python examples/make_edits.py runs/edits

Each picture has one shape on a plain ground, which an instruction recolours or takes away. `edits.jsonl` has a line for
each: "prompt", "image", a "mask" that is white around the shape, and the captions before and after.
"""

import argparse
import json
import math
import random
from pathlib import Path

from PIL import Image, ImageDraw

COLOURS = {"red": (220, 40, 40), "green": (40, 170, 70), "blue": (50, 80, 220), "yellow": (240, 210, 60)}
GROUNDS = {"white": (245, 245, 240), "black": (30, 34, 40), "grey": (190, 190, 190)}
SHAPES = ("circle", "square", "triangle")
# Width / height, one after the other.
RATIOS = (1.0, 1.5, 2 / 3, 2.0, 0.5)


def make(folder: Path, count: int = 30, side: int = 64, seed: int = 0) -> Path:
    """Write ``count`` pictures of about ``side`` x ``side`` pixels each, in five aspect ratios; returns edits.jsonl.

    Equal arguments write equal files. Raises ``ValueError`` for fewer than two pictures or ``side`` < 16.
    """
    if count < 2 or side < 16:
        raise ValueError(f"there must be 2 pictures or more, of 16 pixels or more, got {count} of {side}")
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    lines = []
    for number in range(1, count + 1):
        ratio = math.sqrt(RATIOS[(number - 1) % len(RATIOS)])
        size = (round(side * ratio), round(side / ratio))
        shape, ground, (colour, other) = rng.choice(SHAPES), rng.choice([*GROUNDS]), rng.sample([*COLOURS], 2)
        names = {"image": f"{number:04}.png", "mask": f"{number:04}-mask.png"}
        for picture, name in zip(draw(size, shape, COLOURS[colour], GROUNDS[ground], rng), names.values(), strict=True):
            picture.save(folder / name)
        before, after, text = f"a {colour} {shape} on {ground}", f"a {other} {shape} on {ground}", f"make it {other}"
        if rng.random() < 0.3:
            after, text = f"nothing on {ground}", f"remove the {shape}"
        lines.append(json.dumps({"prompt": text, **names, "source_caption": before, "target_caption": after}))
    path = folder / "edits.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def draw(
    size: tuple[int, int], shape: str, colour: tuple[int, ...], ground: tuple[int, ...], rng: random.Random
) -> tuple[Image.Image, Image.Image]:
    """A picture of ``size`` with one shape at a random place, and its mask."""
    length = round(min(size) * rng.uniform(0.4, 0.7))
    left, top = (rng.randint(1, side - length - 1) for side in size)
    right, bottom = left + length, top + length
    picture, mask = Image.new("RGB", size, ground), Image.new("L", size, 0)
    ImageDraw.Draw(mask).rectangle((left - 2, top - 2, right + 2, bottom + 2), 255)
    canvas = ImageDraw.Draw(picture)
    if shape == "circle":
        canvas.ellipse((left, top, right, bottom), colour)
    elif shape == "square":
        canvas.rectangle((left, top, right, bottom), colour)
    else:
        canvas.polygon([((left + right) // 2, top), (right, bottom), (left, bottom)], colour)
    return picture, mask


def main() -> None:
    """Parse the command line and write the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=30)
    parser.add_argument("--side", type=int, default=64)
    arguments = parser.parse_args()
    print(make(arguments.folder, arguments.count, arguments.side))


if __name__ == "__main__":
    main()
