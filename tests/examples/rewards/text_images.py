"""Images of text whose content is known, drawn with the font that Pillow brings."""

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

GROUND, INK = (236, 230, 214), (24, 40, 92)


def text_image(*lines: str, side: int = 256, size: int = 34) -> torch.Tensor:
    """``lines`` of text one below the other in the middle of a square image, [3, side, side] in [0, 1]."""
    image = Image.new("RGB", (side, side), GROUND)
    drawing, font = ImageDraw.Draw(image), ImageFont.load_default(size)
    top = side / 2 - 0.75 * size * len(lines)
    for i, line in enumerate(lines):
        left = (side - drawing.textlength(line, font=font)) / 2
        drawing.text((left, top + 1.5 * size * i), line, font=font, fill=INK)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
