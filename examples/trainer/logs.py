"""The numbers and pictures of a run: metrics.jsonl always, TensorBoard and Weights & Biases if chosen."""

import json
import math
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from PIL import Image

NAME = "metrics.jsonl"
_RUN_ID = "wandb_run_id.txt"


class Logs:
    """Writes to ``folder``, on rank 0 only; on other ranks every method does nothing.

    ``metrics.jsonl`` gets a JSON object {"step": ..., name: number} per :meth:`write`, at once on its way to the disk.
    A line that a kill cut short is dropped when the file is next opened. TensorBoard's files lie in
    ``folder/tensorboard``. A W&B run keeps its identity in ``folder``, so that a resumed run continues it; its axis is
    the number "step", and the steps that are repeated after a resume appear there twice.

    Args:
        folder: made if missing.
        tensorboard: also write TensorBoard's events.
        wandb: the W&B project, "" for none; sign in beforehand, or set WANDB_MODE=offline.
        rank: of this process.
        resume_step: the step that the run is resumed from: what later steps have written is dropped, atomically.
            ``None`` keeps everything.
        config: the run's settings, for W&B.

    Raises:
        ImportError: on every rank, if a package is missing, with the command that installs it.
        ValueError: ``metrics.jsonl`` holds a line that is none of ours, with its number.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        tensorboard: bool = False,
        wandb: str = "",
        rank: int = 0,
        resume_step: int | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        # Before the rank is asked for: a rank that fails alone would leave the others waiting.
        writer_class = _tensorboard() if tensorboard else None
        module = _wandb() if wandb else None
        self._file = self._writer = self._run = self._wandb = None
        self._open = rank == 0
        if rank != 0:
            return
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        _truncate(folder / NAME, resume_step)
        self._file = open(folder / NAME, "a", encoding="utf-8")  # noqa: SIM115 (closed by close())
        if writer_class is not None:
            purge = None if resume_step is None else resume_step + 1
            self._writer = writer_class(str(folder / "tensorboard"), purge_step=purge)
        if module is not None:
            self._wandb, self._run = module, _start(module, wandb, folder, config or {})

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """Add numbers by name; what is not finite is ``null`` in the JSON. Several rows may have one step.

        Raises ``ValueError`` after :meth:`close`, and for a number called "step".
        """
        if not self._writing():
            return
        if "step" in numbers:
            raise ValueError('"step" is the row\'s own number: leave it out of numbers')
        values = {name: float(value) for name, value in numbers.items()}
        row = {"step": int(step)} | {name: v if math.isfinite(v) else None for name, v in values.items()}
        self._file.write(json.dumps(row, allow_nan=False, ensure_ascii=False) + "\n")
        self._file.flush()
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)
        if self._run is not None:
            self._run.log(values | {"step": int(step)})

    def image(self, step: int, name: str, picture: str | os.PathLike[str] | np.ndarray) -> None:
        """Show a picture, a file or uint8 [H, W, 3], in TensorBoard and W&B; without them it does nothing.

        Raises ``ValueError`` for an array of another kind, and after :meth:`close`.
        """
        if not self._writing():
            return
        if isinstance(picture, np.ndarray):
            pixels = picture
        else:
            with Image.open(picture) as image:
                pixels = np.asarray(image.convert("RGB"))
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
            raise ValueError(f"a picture must be a file or uint8 [H, W, 3], got {pixels.dtype} {list(pixels.shape)}")
        if self._writer is not None:
            self._writer.add_image(name, pixels, step, dataformats="HWC")
        if self._run is not None:
            self._run.log({name: self._wandb.Image(pixels), "step": int(step)})

    def close(self) -> None:
        """Finish all files; a second call does nothing."""
        self._open = False
        if self._file is not None:
            self._file.close()
        if self._writer is not None:
            self._writer.close()
        if self._run is not None:
            self._run.finish()
        self._writer = self._run = None

    def __enter__(self) -> "Logs":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _writing(self) -> bool:
        if self._file is not None and not self._open:
            raise ValueError("these logs are closed: write before close()")
        return self._open


def check_installed(tensorboard: bool, wandb: str) -> None:
    """Raise ``ImportError``, with the command that installs it, where the package of a chosen tracker is missing."""
    if tensorboard:
        _tensorboard()
    if wandb:
        _wandb()


def _truncate(path: Path, resume_step: int | None) -> None:
    """Keep the whole rows up to ``resume_step``; a kill leaves the old file or the new one."""
    if not path.exists():
        return
    kept, lines = [], path.read_bytes().split(b"\n")
    # What follows the last line break was cut short by a kill, or is nothing.
    for number, line in enumerate(lines[:-1], 1):
        try:
            step = json.loads(line)["step"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}, line {number} was not written by a run ({line[:60]!r}): remove it") from error
        if resume_step is None or step <= resume_step:
            kept.append(line + b"\n")
    if len(kept) == len(lines) - 1 and not lines[-1]:
        return
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as file:
        file.writelines(kept)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _tensorboard() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError("TensorBoard is not installed: pip install tensorboard, or switch it off") from error
    return SummaryWriter


def _wandb() -> Any:
    try:
        import wandb
    except ImportError as error:
        raise ImportError("Weights & Biases is not installed: pip install wandb, or leave its project empty") from error
    return wandb


def _start(module: Any, project: str, folder: Path, config: Mapping[str, Any]) -> Any:
    """The W&B run that belongs to ``folder``, new or continued."""
    known = folder / _RUN_ID
    if not known.exists():
        known.write_text(uuid.uuid4().hex[:12])
    identity = {"name": folder.name, "dir": str(folder), "id": known.read_text().strip(), "resume": "allow"}
    run = module.init(project=project, config=dict(config), **identity)
    run.define_metric("*", step_metric="step")
    return run
