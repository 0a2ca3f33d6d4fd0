"""Question 1, second half: what judges that nobody trained on say of the held-out images that its runs left."""

from functools import cache

import torch

from . import tiny
from .cells import Cell

NAME = "tiny_judges"
TITLE = "Do judges that nobody trained on agree?"


def cells(length: str) -> list[Cell]:
    """The runs of question 1."""
    return [cell for cell in tiny.cells(length) if cell.task == tiny.NAME]


def run(cell: Cell, device: str) -> dict[str, float]:
    """``judge/<name>``: gain over the pretrained model's images; for these themselves ``judged/<name>``, the value.

    Raises ``FileNotFoundError`` where question 1's runs, which leave the images, were not made on this machine.
    """
    count = cell.settings["evaluation.prompts"]
    values = _judged(cell, count)
    if cell.method == tiny.BASE:
        return {f"judged/{name}": value for name, value in values.items()}
    start = _judged(_base(count), count)
    return {f"judge/{name}": value - start[name] for name, value in values.items()}


def _base(count: int) -> Cell:
    """The pretrained model's cell among those of either length."""
    found = [cell for length in tiny.HELD_OUT for cell in tiny.cells(length) if cell.method == tiny.BASE]
    return next(cell for cell in found if cell.settings["evaluation.prompts"] == count)


def _judged(cell: Cell, count: int) -> dict[str, float]:
    path = tiny.images_of(cell)
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: python -m benchmarks runs question tiny, which makes it, first")
    return _judge_file(str(path), count)


@cache
def _judge_file(path: str, count: int) -> dict[str, float]:
    import measure  # noqa: F401, makes the trainer importable

    from prompts.sources import load_prompts
    from trainer.config import load_config
    from trainer.evaluation import held_out

    from .judges import judge

    sources = load_config("tiny").sources
    prompts = held_out({name: load_prompts(name, source, True) for name, source in sources.items()}, count)
    return judge(torch.load(path, weights_only=True).float() / 255, prompts)
