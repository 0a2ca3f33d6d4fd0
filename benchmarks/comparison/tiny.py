"""Question 1: does balancing work? The tiny text-to-image model, five rewards, an equal budget of rollouts.

Every method trains with the same prompts and the same noise of its seed, by examples/train.py's trainer. Held-out
prompts and their noise are the same for all. One learning rate serves all: AdamW's steps have the same length whatever
the gradient's. It was chosen from 5e-4, 1e-3 and 3e-3 by the weighted sum and Marble on seed 0, which is not reported:
at 3e-3 both lost reading.
"""

from pathlib import Path
from typing import Any

from .cells import Cell
from .methods import METHODS

ROOT = Path(__file__).parents[2]
NAME = "tiny"
TITLE = "Does balancing work? Five rewards on the tiny text-to-image model"

REWARDS = ("reading", "composition", "colour", "contrast", "clean")
BASE = "base model"
SEEDS = {"quick": (0,), "full": (1, 2, 3, 4, 5)}
EPOCHS = {"quick": 2, "full": 18}
HELD_OUT = {"quick": 8, "full": 120}
# The rollouts are the larger part of the time: ten prompts of eight images, eight solver steps.
COMMON = {
    "rollout.prompts": 10,
    "rollout.images": 8,
    "rollout.steps": 8,
    "loss.kl": 0.0,
    "loss.timesteps": 1,
    "optimizer.name": "adamw",
    "optimizer.lr": 1e-3,
    "optimizer.max_grad_norm": 1.0,
    "optimizer.steps_per_epoch": 2,
    "rewards.composition.weight": 1.0,
}
SMALLER: dict[str, dict[str, Any]] = {"quick": {"rollout.prompts": 5, "rollout.images": 4}, "full": {}}
TIMED, TIMED_EPOCHS = "tiny, time", 3

_PEERS = {name: method for name, method in METHODS.items() if method.balancer}
_OWN: dict[str, dict[str, Any]] = {
    "sum": {"method": "sum"},
    "gdpo": {"method": "gdpo"},
    "losses": {
        "method": "marble",
        "balance.balancer": "comparison.balancers:mean",
        "balance.normalize": False,
    },
    "equal": {"method": "equal"},
    "published": {"method": "gdpo"},
    "marble": {"method": "marble"},
    "marble amortised": {"method": "marble", "balance.refresh_every": 10, "balance.ema": 0.7},
    "marble guard": {"method": "marble", "balance.guard": "step"},
}
_SOURCE_OF = {"reading": "text", "composition": "composition"}


def methods() -> list[str]:
    """Names of all that is compared, those that matter most first."""
    own, peers = list(_OWN), list(_PEERS)
    return [*own, *peers, "sequential", *(f"specialist {reward}" for reward in REWARDS)]


def overrides(method: str, epochs: int) -> dict[str, Any]:
    """The method as settings of the trainer.

    A specialist spends all its rollouts on prompts that carry its reward. Stages of equal length, specialist rewards
    first as in DiffusionNFT's hand-made schedule, train one reward after the other.
    """
    if method in _OWN:
        return _OWN[method]
    if method in _PEERS:
        name = f"comparison.balancers:{_PEERS[method].balancer}"
        return {"method": "marble", "balance.balancer": name, "balance.normalize": False}
    if method == "sequential":
        stages = [_stage(reward, epochs * (i + 1) // 5 - epochs * i // 5) for i, reward in enumerate(REWARDS)]
        return {"method": "gdpo", "stages": [stage for stage in stages if stage["epochs"]]}
    own = method.removeprefix("specialist ")
    weights = {f"rewards.{name}.weight": float(name == own) for name in REWARDS}
    sources = {f"sources.{name}.weight": 0.0 for name in ("general", "text", "composition") if own in _SOURCE_OF}
    return {"method": "gdpo"} | weights | sources | ({f"sources.{_SOURCE_OF[own]}.weight": 1.0} if sources else {})


def _stage(reward: str, epochs: int) -> dict[str, Any]:
    return {
        "epochs": epochs,
        "rewards": [reward],
        "sources": {_SOURCE_OF[reward]: 1.0} if reward in _SOURCE_OF else {},
    }


def cells(length: str) -> list[Cell]:
    """Seed after seed, so that a run that is stopped leaves whole seeds; then the specialists; then times."""
    common = COMMON | {"epochs": EPOCHS[length], "evaluation.prompts": HELD_OUT[length]} | SMALLER[length]
    needs = {name: method.needs for name, method in _PEERS.items()}
    found = [Cell(NAME, BASE, -1, {"evaluation.prompts": HELD_OUT[length], "rollout.steps": COMMON["rollout.steps"]})]
    for special in (False, True):
        names = [name for name in methods() if name.startswith("specialist") == special]
        found += [Cell(NAME, name, seed, common, needs.get(name, ())) for seed in SEEDS[length] for name in names]
    if length == "quick":
        return found
    timed = common | {"epochs": TIMED_EPOCHS}
    # Own losses are run with the rows that their conflicts are measured from; by themselves they are one backward.
    names = [name for name in (*_OWN, *_PEERS) if name != "losses"]
    return found + [Cell(TIMED, name, 0, timed, needs.get(name, ())) for name in names]


def images_of(cell: Cell) -> Path:
    """Where a run leaves its held-out images."""
    length = cell.settings.get("epochs", f"base{cell.settings['evaluation.prompts']}")
    return ROOT / "runs" / "comparison" / "images" / f"{cell.method}-{cell.seed}-{length}.pt"


def run(cell: Cell, device: str) -> dict[str, float]:
    """Train and evaluate one cell."""
    import measure  # noqa: F401, makes the trainer importable

    from . import tiny_runs

    if cell.method == BASE:
        return tiny_runs.base(cell.settings, device, images_of(cell))
    settings = dict(cell.settings) | overrides(cell.method, cell.settings["epochs"]) | {"seed": cell.seed}
    if cell.task == TIMED:
        return tiny_runs.timed(settings, device, published=cell.method == "published")
    return tiny_runs.trained(settings, device, cell.method == "published", images_of(cell))
