"""Means over seeds with 95 % t-intervals, and differences paired by seed."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import mean, stdev

from scipy.stats import t as student

LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """``mean`` ± ``half`` over ``count`` values; ``half`` is NaN for fewer than two.

    ``failed`` values were not finite and are not among them.
    """

    mean: float
    half: float
    count: int
    failed: int = 0

    @property
    def decided(self) -> bool:
        """Whether the interval excludes zero; never for fewer than two values."""
        return abs(self.mean) > self.half

    @property
    def sign(self) -> int:
        """1 or −1 if the interval lies above or below zero, else 0."""
        return (self.mean > 0) - (self.mean < 0) if self.decided else 0


def interval(values: Iterable[float]) -> Interval:
    """Mean ± t(0.975, n − 1) s / √n of the finite values; the others are counted."""
    given = list(values)
    found = [value for value in given if math.isfinite(value)]
    failed = len(given) - len(found)
    if len(found) < 2:
        return Interval(found[0] if found else math.nan, math.nan, len(found), failed)
    quantile = float(student.ppf(0.5 + LEVEL / 2, len(found) - 1))
    return Interval(mean(found), quantile * stdev(found) / math.sqrt(len(found)), len(found), failed)


def difference(own: Mapping[int, float], other: Mapping[int, float]) -> Interval:
    """Interval of own − other over the seeds that both have."""
    return interval(own[seed] - other[seed] for seed in own if seed in other)


def ratio(own: Mapping[int, float], other: Mapping[int, float]) -> Interval:
    """Interval of own / other over the seeds that both have."""
    return interval(own[seed] / other[seed] for seed in own if seed in other)
