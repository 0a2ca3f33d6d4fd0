"""Checkpoints that survive a kill at any moment."""

import os
from pathlib import Path
from typing import Any

import torch

NAME = "checkpoint.pt"


def save(folder: Path, state: dict[str, Any]) -> None:
    """Write ``state`` to ``folder``: to a temporary file, flushed to disk, then renamed over the last one."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / (NAME + ".tmp")
    with open(temporary, "wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(folder / NAME)


def load(folder: Path) -> dict[str, Any] | None:
    """The saved state, or ``None`` if there is none; ``ValueError`` for a file that is not a checkpoint."""
    path = folder / NAME
    if not path.exists():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"{path} is not a readable checkpoint ({error}): delete it to start afresh") from error
    if not isinstance(state, dict) or "adapters" not in state:
        raise ValueError(f"{path} was not written by this trainer: delete it to start afresh")
    return state
