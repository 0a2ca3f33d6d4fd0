"""Question: how do the methods do on classic multi-objective problems whose Pareto fronts are known?

Deterministic problems of 2 to 30 variables in fp64, started from five points, at a constant learning rate; nothing but
the balancer and the base optimizer is at work. Learning rates are chosen per problem, method and optimizer by
:mod:`.classic_tuning` (three rates, two other starting points): a row's settings hold the rate in the problem's units,
its values the ``lr``. Measures: :func:`.classic_run.measures`.

To be read with it:
- for two objectives the min-norm point of unit gradients has equal weights, so that "equal" and Marble (without its
  guard) coincide there;
- a weighted sum suffices where the front is convex and the scales are good: the toy, ZDT1 and the quadratics. On
  concave fronts (Fonseca-Fleming, ZDT2) it can only end at their ends, which are Pareto optimal all the same;
- on the front any move along it hurts an objective: ``conflict/step/approach`` leaves that part of a run out.
"""

from .cells import Cell
from .classic_problems import PROBLEMS, problem
from .classic_run import OPTIMIZERS, learning_rate, measures, run_path
from .classic_tuning import COMPARED, chosen_rates
from .methods import METHODS

NAME = "classic"
TITLE = "Classic problems with known Pareto fronts"
SEEDS = (0, 1, 2, 3, 4)
_QUICK = ("toy", "ZDT2", "20 quadratics, scales 1e-3 to 1e3")


def cells(length: str) -> list[Cell]:
    """All problems from five starts, or three problems from one.

    Raises ``RuntimeError`` where the rate of a method that can run has not been tuned yet.
    """
    rates = chosen_rates()
    tasks, seeds = (_QUICK, SEEDS[:1]) if length == "quick" else (PROBLEMS, SEEDS)
    found = []
    for task in tasks:
        for optimizer in OPTIMIZERS:
            for method in COMPARED:
                settings = {"optimizer": optimizer}
                if (task, method, optimizer) in rates:
                    settings["rate"] = rates[task, method, optimizer]
                cell = Cell(task, method, 0, settings, METHODS[method].needs)
                if "rate" not in settings and not cell.missing:
                    raise RuntimeError(f"no learning rate for {method} on {task}: run classic_tuning first")
                found += [Cell(task, method, seed, settings, cell.needs) for seed in seeds]
    return found


def run(cell: Cell, device: str) -> dict[str, float]:
    """One path and its measures."""
    del device  # a dozen numbers: the CPU is faster
    task, optimizer = problem(cell.task), cell.settings["optimizer"]
    lr = learning_rate(task, cell.method, optimizer, cell.settings["rate"])
    return {"lr": lr} | measures(task, run_path(task, cell.method, optimizer, lr, cell.seed))
