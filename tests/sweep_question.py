"""A question of three cells for the sweep's test: one runs, one fails, one needs a package that nobody has."""

from benchmarks.comparison.cells import Cell

NAME = "counting"
TITLE = "What is twice the seed?"


def cells(length: str) -> list[Cell]:
    fine = [Cell("task", "twice", seed, {"length": length}) for seed in range(2)]
    return [*fine, Cell("task", "fails", 0), Cell("task", "needy", 0, needs=("a_package_that_is_nowhere",))]


def run(cell: Cell, device: str) -> dict[str, float]:
    if cell.method == "fails":
        raise ArithmeticError("on purpose")
    return {"value": 2.0 * cell.seed + 1 / 3}
