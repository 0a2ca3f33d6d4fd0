"""What a comparison runs: cells, each one number-giving run, and the questions that list them."""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

LENGTHS = ("quick", "full")

Key = tuple[str, str, str, int, tuple[tuple[str, Any], ...]]


@dataclass(frozen=True)
class Cell:
    """One run: ``method`` on ``task`` with ``seed``; ``settings`` is everything else that its numbers depend on.

    ``needs`` names packages without which it cannot run: its row then says so.
    """

    task: str
    method: str
    seed: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    needs: Sequence[str] = ()

    @property
    def missing(self) -> list[str]:
        """The needed packages that are not installed."""
        return [name for name in self.needs if importlib.util.find_spec(name) is None]

    def key(self, question: str) -> Key:
        """What makes the cell's row unique."""
        return question, self.task, self.method, self.seed, tuple(sorted(self.settings.items()))


class Question(Protocol):
    """A module that answers one question: its rows are results/``NAME``.jsonl.

    ``NAME``: file stem, ``TITLE``: the question in words.
    """

    NAME: str
    TITLE: str
    cells: Callable[[str], list[Cell]]
    run: Callable[[Cell, str], dict[str, float]]
    """``cells(length)`` for a length of ``LENGTHS``; ``run(cell, device)`` → metric → value."""
