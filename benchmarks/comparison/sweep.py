"""Runs a question's cells in processes of one thread each, and keeps what is done."""

import sys
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

import torch
from measure import facts
from tqdm import tqdm

from .cells import Cell, Question
from .rows import RowFile

_FACTS = ("hardware", "versions", "commit", "date")


def sweep(question: Question, length: str, folder: Path, device: str = "cpu", jobs: int = 1) -> int:
    """Run the cells that ``folder`` has no row of; returns how many failed: each is printed and does not stop the rest.

    ``jobs`` processes work at once, on one thread each, so that numbers do not depend on how many there are (times do).
    """
    rows = RowFile(folder / f"{question.NAME}.jsonl", question.NAME)
    todo = [cell for cell in question.cells(length) if not rows.has(cell)]
    for cell in todo:
        if cell.missing:
            rows.add_missing(cell, _facts(question.NAME))
    runnable = [cell for cell in todo if not cell.missing]
    failed = 0
    with ProcessPoolExecutor(jobs, get_context("spawn"), initializer=_start) as pool:
        futures = {pool.submit(_run, question.__name__, cell, device): cell for cell in runnable}  # type: ignore[attr-defined]
        for future in tqdm(as_completed(futures), total=len(futures), desc=question.NAME, disable=not futures):
            failed += not _keep(rows, futures[future], future)
    return failed


def _keep(rows: RowFile, cell: Cell, future: "Future[tuple[dict, dict]]") -> bool:
    try:
        own, values = future.result()
    except Exception as error:  # whatever a run raised: the others go on, and the exit status tells
        tqdm.write(f"{cell}: {type(error).__name__}: {error}", file=sys.stderr)
        return False
    rows.add(cell, own, values)
    return True


def _run(module: str, cell: Cell, device: str) -> tuple[dict, dict[str, float]]:
    question = sys.modules.get(module) or __import__(module, fromlist=["run"])
    return _facts(question.NAME), question.run(cell, device)


def _facts(name: str, packages: Sequence[str] = ("torch", "diffusers", "torchjd", "scikit-learn")) -> dict:
    known = facts(name, {}, packages)
    return {field: known[field] for field in _FACTS}


def _start() -> None:
    torch.set_num_threads(1)
