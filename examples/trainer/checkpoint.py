"""The trainer's checkpoint in the folder of its run."""

from pathlib import Path
from typing import Any

import marble_opt

NAME = "checkpoint.pt"


def save(folder: Path, state: dict[str, Any]) -> None:
    """Write ``state`` to ``folder`` so that a kill at any moment leaves the last good checkpoint readable."""
    marble_opt.save_checkpoint(folder / NAME, state)


def load(folder: Path) -> dict[str, Any] | None:
    """The saved state, or ``None`` if there is none; ``ValueError`` for a file that is not a checkpoint."""
    path = folder / NAME
    try:
        state = marble_opt.load_checkpoint(path)
    except FileNotFoundError:
        return None
    if not isinstance(state, dict) or "adapters" not in state:
        raise ValueError(f"{path} was not written by this trainer: delete it to start afresh")
    return state
