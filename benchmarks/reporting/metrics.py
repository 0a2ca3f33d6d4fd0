"""Which way a metric is better."""

import math

HIGHER, LOWER = 1, -1
_DIRECTIONS = {
    "gain/": HIGHER,
    "judge/": HIGHER,
    "composite": HIGHER,
    "worst": HIGHER,
    "judge": HIGHER,
    "diversity": HIGHER,
    "conflict/": LOWER,
    "seconds/step": LOWER,
    "reached": HIGHER,
    "iterations": LOWER,
    "distance": LOWER,
    "loss/": LOWER,
    "front/trained/hypervolume_of_five": HIGHER,
    "front/judges/hypervolume_of_five": HIGHER,
    "front/trained/spacing": LOWER,
    "front/judges/spacing": LOWER,
    "front/trained/monotone": HIGHER,
    "front/judges/monotone": HIGHER,
}
# Distances to a front: nearer than this is no better, farther (infinity too) no worse.
_NEAREST, _FARTHEST = 1e-3, 1e3


def direction(metric: str) -> int | None:
    """1 if higher is better, −1 if lower is, None for what is neither, or is another metric in other units."""
    for name, sign in _DIRECTIONS.items():
        if metric == name or (name.endswith("/") and metric.startswith(name)):
            return sign
    return None


def comparable(metric: str, value: float) -> float:
    """The value on the scale that differences are taken on: for distances, which spread over decades, log₁₀."""
    if metric != "distance" or math.isnan(value):
        return value
    return math.log10(min(max(value, _NEAREST), _FARTHEST))
