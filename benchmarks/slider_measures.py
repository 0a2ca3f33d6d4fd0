"""What a front is measured by: judges that nobody trained on, non-dominated points, hypervolume, spacing."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

# Higher is better for all of them.
Point = tuple[float, float]


def saturation(images: Tensor) -> Tensor:
    """Mean HSV saturation (max − min) / max over pixels, [B], of images [B, 3, H, W] in [0, 1]; 0 for black."""
    largest, smallest = images.amax(1), images.amin(1)
    return ((largest - smallest) / largest.clamp_min(1e-6)).flatten(1).mean(1)


def evenness(images: Tensor) -> Tensor:
    """1 − (q_95 − q_5), [B], of the quantiles over pixels of the lightness (max + min) / 2 (HSL): another middle and
    another spread than those of the trained reward, the standard deviation of the luma."""
    lightness = ((images.amax(1) + images.amin(1)) / 2).flatten(1)
    low, high = torch.quantile(lightness, lightness.new_tensor([0.05, 0.95]), dim=1)
    return 1 - (high - low)


def non_dominated(points: Sequence[Point]) -> list[int]:
    """Indices of the points that no other one beats in one value and equals or beats in the other; of equal ones the
    first."""
    kept = []
    for i, (x, y) in enumerate(points):
        better = ((u >= x and v >= y and (u > x or v > y)) for u, v in points)
        if not any(better) and (x, y) not in points[:i]:
            kept.append(i)
    return kept


def hypervolume(points: Sequence[Point], reference: Point) -> float:
    """Area between the front of ``points`` and ``reference``, by pymoo (which minimises)."""
    from pymoo.indicators.hv import HV

    return float(HV(ref_point=-np.array(reference))(-np.array(points)))


def exact_hypervolume(points: Sequence[Point], reference: Point) -> float:
    """The same by sweeping over the first value: Σ (x_i − x_ref) (y_i − y_{i−1}) along the front."""
    front = sorted((points[i] for i in non_dominated(points)), key=lambda point: point[1])
    area, below = 0.0, reference[1]
    for x, y in front:
        if x > reference[0] and y > below:
            area += (x - reference[0]) * (y - below)
            below = y
    return area


def spacing(points: Sequence[Point]) -> float:
    """Standard deviation over mean of the distances between neighbours, for points in the order of equal steps of ω:
    0 where equal steps of the slider are equal steps of the result. NaN if nothing moves."""
    steps = np.linalg.norm(np.diff(np.array(points), axis=0), axis=1)
    return float(steps.std() / steps.mean()) if steps.mean() > 0 else float("nan")


def monotone(points: Sequence[Point]) -> float:
    """Share of the slider's steps towards the first reward that raise it and do not raise the second."""
    steps = np.diff(np.array(points), axis=0)
    return float(((steps[:, 0] > 0) & (steps[:, 1] <= 0)).mean())
