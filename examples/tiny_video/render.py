"""Render a caption as a video of 9 frames of 32 x 32 pixels: the pretraining data of the small LTX-2 model.

What a caption leaves open is drawn at random: the background, size and place of the shape, saturation, brightness,
contrast, and how much the path trembles, the light flickers and the sensor adds noise. Saturation, trembling and
flicker share a cause, "energy": vivid videos are restless ones, which is where rewards for both pull apart.
"""

import numpy as np

from tiny.render import RGB

from .captions import DIRECTIONS, PACES, Motion

SIZE, FRAMES = 32, 9
TREMBLE, FLICKER, NOISE = 1.3, 0.10, 0.03


def shape_cover(shape: str, centre: np.ndarray, radius: float) -> np.ndarray:
    """Share of each pixel [SIZE, SIZE] that ``shape`` covers, in [0, 1], at ``centre`` (right, down) in pixels."""
    down, right = np.mgrid[:SIZE, :SIZE].astype(float)
    x, y = right - centre[0], down - centre[1]
    if shape == "circle":
        distance = np.hypot(x, y) - radius
    elif shape == "square":
        distance = np.maximum(np.abs(x), np.abs(y)) - 0.9 * radius
    else:
        # Its centroid is the centre: sides at distance 0.65 radius below and on both upper sides.
        sides = np.stack([y, 0.866 * x - 0.5 * y, -0.866 * x - 0.5 * y])
        distance = sides.max(0) - 0.65 * radius
    return np.clip(0.5 - distance, 0, 1)


def path(motion: Motion, radius: float, rng: np.random.Generator) -> np.ndarray:
    """A straight path [FRAMES, 2] (right, down) at constant speed in the caption's direction, inside the picture."""
    velocity = np.array(DIRECTIONS[motion.direction]) * PACES[motion.pace] * rng.uniform(0.9, 1.1)
    steps = (np.arange(FRAMES) - (FRAMES - 1) / 2)[:, None] * velocity
    room = np.maximum((SIZE - 1) / 2 - radius - 0.5 - np.abs(steps).max(0), 0)
    return (SIZE - 1) / 2 + rng.uniform(-1, 1, size=2) * room + steps


def draw(
    motion: Motion, centres: np.ndarray, radius: float, background: np.ndarray, saturation: float = 1.0
) -> np.ndarray:
    """The shape at ``centres`` [F, 2] on a plain ``background`` [3]: frames [F, 3, SIZE, SIZE]."""
    colour = np.array(RGB[motion.colour])
    colour = colour.mean() + (colour - colour.mean()) * saturation
    cover = np.stack([shape_cover(motion.shape, centre, radius) for centre in centres])[:, None]
    return background[:, None, None] + cover * (colour - background)[:, None, None]


def render(motion: Motion, rng: np.random.Generator) -> np.ndarray:
    """Draw a caption: float32 frames [FRAMES, 3, SIZE, SIZE] in [0, 1]."""
    energy = rng.random()
    restless, trembling, flickering = 0.65 * energy + 0.35 * rng.random(3)
    radius = rng.uniform(4.0, 6.0)
    background = rng.uniform(0.3, 0.9) + rng.uniform(-0.06, 0.06, size=3)
    centres = path(motion, radius, rng) + rng.normal(size=(FRAMES, 2)) * TREMBLE * trembling**2
    frames = draw(motion, centres, radius, background, 0.3 + 0.7 * restless)
    frames = (frames - frames.mean()) * rng.uniform(0.65, 1.0) + frames.mean() * rng.uniform(0.8, 1.05)
    frames = frames * (1 + rng.normal(size=(FRAMES, 1, 1, 1)) * FLICKER * flickering)
    frames = frames + rng.normal(size=frames.shape) * rng.uniform(0, NOISE)
    return np.clip(frames, 0, 1).astype(np.float32)


def random_batch(size: int, motions: list[Motion], rng: np.random.Generator) -> tuple[np.ndarray, list[str]]:
    """``size`` captioned videos for pretraining: [size, FRAMES, 3, SIZE, SIZE] and their texts."""
    drawn = [motions[i] for i in rng.integers(len(motions), size=size)]
    return np.stack([render(motion, rng) for motion in drawn]), [motion.text for motion in drawn]
