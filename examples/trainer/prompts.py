"""Which prompts a step trains on: stratified over the kinds of caption, a pure function of seed and step."""

import numpy as np

from tiny.captions import KINDS, Caption, split


def training_prompts(seed: int, step: int, counts: tuple[int, ...]) -> list[Caption]:
    """``counts`` training captions of the kinds general, text, composition; equal for equal (seed, step)."""
    rng = np.random.default_rng((seed, step))
    chosen = []
    for kind, count in zip(KINDS, counts, strict=True):
        captions = split(kind, held_out=False)
        chosen += [captions[i] for i in rng.choice(len(captions), count, replace=False)]
    return chosen


def held_out_prompts(per_kind: int) -> list[Caption]:
    """``per_kind`` held-out captions of each kind, the same ones every time; short lists are repeated."""
    chosen = []
    for kind in KINDS:
        captions = split(kind, held_out=True)
        chosen += [captions[i % len(captions)] for i in range(per_kind)]
    return chosen
