"""Question 1's map: on which kind of task does balancing win, where is GDPO enough, where does nothing matter?

Runs of the flow world (flow_world.py), a few seconds each, by what differs from the default task:

- ``tuning``: the default at three learning rates, by seeds of its own; also at the longest length of the map, where a
  rate that is too high breaks some methods on some seeds. One rate serves all: the steps of AdamW have the same length
  whatever the gradient's, and at 120 steps all methods prefer the same;
- ``elsewhere``: the same at two corners of the map, to see whether the choice would have been another one there;
- ``default``, each dial alone, and the share of specialists' prompts against the spread of the rewards' scales. Only
  the raw sum runs at every spread: the others compare within a reward, so that its scale cancels (two seeds check).

``losses`` adds the rewards' own losses, each a mean over the samples that it applies to, where GDPO's is one mean over
all samples. It tells what balancing gains by gradients, and what by counting samples alone.

All methods get AdamW and the same budget of samples; nothing else was tuned.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from .cells import Cell
from .flow_world import Dials, FlowWorld, Mixing, OptimizerLike, Plain, train
from .methods import METHODS, make_marble

NAME = "dials"
TITLE = "On which kind of task does balancing win, where is GDPO enough, where does nothing matter?"

RATES = (3e-4, 1e-3, 3e-3)
# The best of RATES by the mean over methods and both lengths; tests/test_comparison_dials.py repeats the choice.
RATE = 1e-3
ALL = ("sum", "gdpo", "equal", "published", "marble", "marble amortised", "pcgrad", "upgrad", "losses")
TUNING = ("tuning", "tuning, steps 400")
MAIN = ("sum", "gdpo", "losses", "equal", "marble")
SPECIALISTS, SPREADS = (0.0, 0.5, 0.9, 0.98), (1.0, 10.0, 100.0, 1000.0)
ALONE: dict[str, tuple[float, ...]] = {
    "noise": (1.0, 3.0),
    "rewards": (2, 10),
    "conflict": (0.0, 1.0),
    "steps": (30, 400),
    "rarity": (100.0,),
}
CORNERS: dict[str, dict[str, Any]] = {
    "specialists 0, spread 1000": {"specialists": 0.0, "spread": 1000.0},
    "conflict 1": {"conflict": 1.0},
}
# Where the other methods run as well, beside the default.
CONTESTED = ("rewards 10", "conflict 1")
_SEEDS, _TUNING_SEEDS = range(5), range(100, 103)
_MIXING: dict[str, Mixing] = {"sum": "raw", "gdpo": "gdpo", "losses": "losses", "published": "published"}
_WEIGHT_DECAY = 1e-4


def cells(length: str) -> list[Cell]:
    """ "quick": the default and two tasks beside it for three methods, seconds each."""
    if length == "quick":
        tasks = [("default", {}), ("specialists 0, spread 1000", CORNERS["specialists 0, spread 1000"])]
        return list(_cells([*tasks, ("steps 30", {"steps": 30})], ("sum", "gdpo", "marble"), range(2)))
    alone = [(f"{dial} {value:g}", {dial: value}) for dial, values in ALONE.items() for value in values]
    others = [name for name in ALL if name not in MAIN]
    first, last = ([task for task in grid() if task[1]["spread"] == spread] for spread in (SPREADS[0], SPREADS[-1]))
    main = [*_cells([("default", {}), *first, *alone], MAIN, _SEEDS)]
    main += [*_cells(grid()[len(first) :], ("sum",), _SEEDS), *_cells(last, MAIN[1:], _SEEDS[:2])]
    contested = [("default", {}), *((task, dials) for task, dials in alone if task in CONTESTED)]
    return [
        *_rates(TUNING[0], {}, ALL, _TUNING_SEEDS),
        *_rates(TUNING[1], {"steps": 400}, ALL[:5], _TUNING_SEEDS[:1]),
        # Seed by seed, so that a sweep that is cut short leaves the whole map, at fewer seeds.
        *sorted(main, key=lambda cell: cell.seed),
        *_cells(contested, others, _SEEDS),
        *(
            cell
            for name, dials in CORNERS.items()
            for cell in _rates(f"elsewhere: {name}", dials, MAIN, _TUNING_SEEDS[:2])
        ),
    ]


def grid() -> list[tuple[str, dict[str, Any]]]:
    """The two-dimensional map: (task, dials)."""
    pairs = [(specialists, spread) for spread in SPREADS for specialists in SPECIALISTS]
    return [(grid_task(a, b), {"specialists": a, "spread": b}) for a, b in pairs]


def grid_task(specialists: float, spread: float) -> str:
    """A place of the map."""
    return f"specialists {specialists:g}, spread {spread:g}"


def run(cell: Cell, device: str) -> dict[str, float]:
    """One post-training; a task of this size stays on the CPU, whatever ``device`` is.

    Beside the world's values: ``smallest scale``, the gain in units of the reward with the smallest raw scale.
    """
    torch.manual_seed(cell.seed)
    world = FlowWorld(Dials(**cell.settings), cell.seed)

    def optimizer(model: nn.Module, names: Sequence[str], dials: Dials) -> OptimizerLike:
        base = torch.optim.AdamW(model.parameters(), lr=dials.lr, weight_decay=_WEIGHT_DECAY)
        return Plain(base) if cell.method in _MIXING else make_marble(cell.method, base, names)

    values = train(world, optimizer, _MIXING.get(cell.method, "none"))
    smallest = values[f"units/{world.names[int(world.scales.argmin())]}"]
    kept = {name: value for name, value in values.items() if not name.startswith("units/")}
    return kept | {"smallest scale": smallest}


def _cells(
    tasks: Sequence[tuple[str, Mapping[str, Any]]], methods: Sequence[str], seeds: Sequence[int]
) -> Iterator[Cell]:
    for task, dials in tasks:
        for seed in seeds:
            for method in methods:
                yield _cell(task, method, seed, {"lr": RATE} | dict(dials))


def _rates(task: str, dials: Mapping[str, Any], methods: Sequence[str], seeds: Sequence[int]) -> Iterator[Cell]:
    for seed in seeds:
        for method in methods:
            for rate in RATES:
                yield _cell(task, method, seed, {"lr": rate} | dict(dials))


def _cell(task: str, method: str, seed: int, settings: Mapping[str, Any]) -> Cell:
    return Cell(task, method, seed, settings, METHODS[method].needs if method in METHODS else ())
