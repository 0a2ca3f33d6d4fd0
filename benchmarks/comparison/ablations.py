"""Question 2: which parts of Marble matter, where to smooth, why a held-out reward falls while no gradient conflicts.

All on the flow world (flow_world.py). Tasks:

- "tuning": learning rates, 3 values for every variant whose step has a size of its own, on the default dials: the best
  composite over 2 seeds that nothing else uses; rates.py holds the choice for all tasks.
- "smoothing <setting>": where to smooth, on two settings of the dials.
- "parts <setting>": one option of Marble changed at a time. Not among them: clipping per reward before or after mixing,
  because advantages of 8 images reach √7 at most, and the clip is at 5.
- "factors <condition>": combination × base optimizer on contested rewards, with larger batches, a smaller learning rate
  or a KL term; measured by step_judge.py too.

Differences from plain Marble are paired by seed. There are some fifty of them: a few beyond two standard
errors are expected by chance.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from .cells import Cell
from .flow_task import Dials
from .flow_world import FlowWorld, OptimizerLike, train
from .off_beat import OffBeat
from .rates import RATES, grid
from .step_judge import StepJudge
from .variants import FACTORS, PARTS, PLAIN, SMOOTHING, Variant

NAME = "ablations"
TITLE = "Which parts matter, where to smooth, and why does a held-out reward fall while no gradient conflicts?"

SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "contested": {"conflict": 1.0},
    "scarce": {"prompts": 8, "images": 4, "specialists": 0.9, "noise": 1.0},
}
CONDITIONS: dict[str, dict[str, Any]] = {
    "base": {},
    "batch x 4": {"prompts": 64},
    "lr / 3": {},
    "kl 0.1": {"kl": 0.1},
}
"""Of the setting "contested"."""
_FEW = ("sum, adamw", "min-norm, adamw", "min-norm, adam0")
_CONDITION_FORMS = {
    "base": tuple(FACTORS),
    "batch x 4": _FEW,
    "lr / 3": _FEW,
    "kl 0.1": _FEW,
}
_VARIANTS: dict[str, Variant] = {**SMOOTHING, **PARTS, **FACTORS}
_TUNING_SEEDS, _SMOOTHING_SEEDS, _PART_SEEDS, _FACTOR_SEEDS = range(100, 102), range(8), range(5), range(5)
_QUICK_STEPS = 20


def cells(length: str) -> list[Cell]:
    """ "full": 394 runs of 120 steps, 2 seconds each on one core; "quick": a few of 20 steps."""
    if length == "quick":
        return _quick()
    found = [Cell("tuning", name, seed, {"lr": lr}) for name in RATES for lr in grid(name) for seed in _TUNING_SEEDS]
    for setting in ("default", "scarce"):
        found += _runs(f"smoothing {setting}", SMOOTHING, _SMOOTHING_SEEDS, SETTINGS[setting])
    found += _runs("parts default", PARTS, _PART_SEEDS, {})
    for condition, dials in CONDITIONS.items():
        divisor = 3 if condition == "lr / 3" else 1
        forms, contested = _CONDITION_FORMS[condition], SETTINGS["contested"] | dials
        found += _runs(f"factors {condition}", forms, _FACTOR_SEEDS, contested, divisor)
    return found


def run(cell: Cell, device: str) -> dict[str, float]:
    """The metrics of ``flow_world.train``, and for factors those of :class:`StepJudge`. The world is on the CPU.

    Where not every step solves, conflicts are :class:`OffBeat`'s, and ``seconds/step`` is left out: ``train`` times no
    step that solves. A run that diverged has ``diverged`` 1 and nothing else.
    """
    variant = _VARIANTS[cell.method]
    world = FlowWorld(Dials(anchor=variant.anchor, **cell.settings), cell.seed)
    made: list[OptimizerLike] = []

    def optimizer(*arguments: Any) -> OptimizerLike:
        own: OptimizerLike = variant.optimizer(*arguments)
        if cell.task.startswith("factors"):
            own = StepJudge(own, world)
        elif "refresh_every" in variant.options:
            own = OffBeat(own, world.model)
        made.append(own)
        return own

    try:
        values = train(world, optimizer, variant.mixing)
    except RuntimeError:
        # A model whose samples overflow has no rewards, hence no gradients; anything else is an error.
        if math.isfinite(world.held_out()["composite"]):
            raise
        return {"diverged": 1.0}
    if isinstance(made[0], OffBeat):
        del values["seconds/step"]
    return values | (made[0].shares() if isinstance(made[0], StepJudge | OffBeat) else {})


def _runs(
    task: str, names: Iterable[str], seeds: Iterable[int], dials: Mapping[str, Any], divisor: float = 1
) -> list[Cell]:
    """Seeds outside, so that an interrupted sweep has whole pairs."""
    named = [(name, _VARIANTS[name].lr / divisor) for name in names]
    return [Cell(task, name, seed, {**dials, "lr": lr}) for seed in seeds for name, lr in named]


def _quick() -> list[Cell]:
    short = {"steps": _QUICK_STEPS}
    return [
        *_runs("smoothing default", SMOOTHING, [0], short),
        *_runs("parts default", [PLAIN, "equal", "ema 0.9", "refresh 10", "floor 0.1"], [0], short),
        *_runs("factors base", _FEW, [0], SETTINGS["contested"] | short),
    ]
