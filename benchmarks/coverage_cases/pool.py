"""Each case in a process of its own, with a time limit."""

import multiprocessing
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from time import monotonic
from typing import Any

import torch

from . import CASES, trial

CONTEXT = multiprocessing.get_context("fork")
LONGEST_MESSAGE = 300
Task = tuple[str, str]


@dataclass
class _Running:
    task: Task
    process: Any
    deadline: float


def run_all(tasks: Sequence[Task], jobs: int, limit: float) -> Iterator[tuple[Task, dict[str, Any]]]:
    """Run (name of a case, mode) in ``jobs`` processes; yields what each gave as it ends.

    Processes are forked after the imports, which take longer than most cases. A crash or more than ``limit`` seconds
    is the outcome "error".
    """
    import diffusers  # noqa: F401
    import peft  # noqa: F401

    waiting, running = list(reversed(tasks)), dict[Connection, _Running]()
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                task = waiting.pop()
                ours, theirs = CONTEXT.Pipe(duplex=False)
                process = CONTEXT.Process(target=_work, args=(task, theirs), daemon=True)
                process.start()
                theirs.close()
                running[ours] = _Running(task, process, monotonic() + limit)
            nearest = min(each.deadline for each in running.values())
            for pipe in wait(list(running), max(0.0, nearest - monotonic())):
                yield _finish(running.pop(pipe), pipe)  # type: ignore[arg-type, call-overload]
            for pipe in [pipe for pipe, each in running.items() if each.deadline < monotonic()]:
                late = running.pop(pipe)
                late.process.kill()
                yield late.task, {"outcome": "error", "reasons": [f"took longer than {limit:g} s"]}
    finally:
        for each in running.values():
            each.process.kill()


def _finish(ended: _Running, pipe: Connection) -> tuple[Task, dict[str, Any]]:
    try:
        result: dict[str, Any] = pipe.recv()
    except EOFError:
        ended.process.join()
        result = {"outcome": "error", "reasons": [f"the process ended with code {ended.process.exitcode}"]}
    ended.process.join()
    return ended.task, result


def _work(task: Task, pipe: Connection) -> None:
    name, mode = task
    torch.set_num_threads(1)
    try:
        result = trial.run(CASES[name], mode)
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        text = (
            f"{type(error).__name__}: {str(error)[:LONGEST_MESSAGE]} ({place.filename.split('/')[-1]}:{place.lineno})"
        )
        result = {"outcome": "error", "reasons": [text]}
    pipe.send(result)
