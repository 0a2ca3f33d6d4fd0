"""A small training run that is killed again and again, resumed each time, and ends as if nothing had happened.

    python tests/kill_training.py FOLDER MODE --kills 20 --seed 0

runs one of the experiments below and prints what it saw as JSON. Every attempt is a process of its own, forked from one
that has imported all it needs and has not trained: the imports take longer than the whole run.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import sys
import time
import warnings
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from marble_opt import Marble, checkpoint, load_checkpoint, save_checkpoint
from toys import same

NAMES = ("a", "b", "c")
MODES = ("random", "lines")
STEPS_OF_LINES = 4


class Run:
    """Everything that a step depends on: parameters, momenta, averages, schedule, and three random generators."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        random.seed(0)
        layers = torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Dropout(0.2), torch.nn.Linear(16, 3)
        self.model = torch.nn.Sequential(*layers)
        self.opt = Marble(torch.optim.AdamW(self.model.parameters(), lr=0.01), NAMES, refresh_every=3, ema=0.6)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.opt, 500)
        self.noise = torch.Generator().manual_seed(1)
        self.step = 0

    def train_step(self) -> None:
        """One step whose rewards come and go."""
        outputs = self.model(torch.randn(16, 8, generator=self.noise))
        losses: dict[str, torch.Tensor | None] = {
            name: (column - random.random()).square().mean() for name, column in zip(NAMES, outputs.T, strict=True)
        }
        losses[random.choice(NAMES)] = None
        self.opt.backward(losses, shared=1e-3 * outputs.square().mean())
        self.opt.step()
        self.opt.zero_grad()
        self.schedule.step()
        self.step += 1

    def state_dict(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizer": self.opt.state_dict(),
            "schedule": self.schedule.state_dict(),
            "generators": (torch.get_rng_state(), random.getstate(), self.noise.get_state()),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        self.opt.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        own, python, noise = state["generators"]
        torch.set_rng_state(own)
        random.setstate(python)
        self.noise.set_state(noise)


def train(path: Path, steps: int, every: int) -> None:
    """Start or resume the run in ``path`` and leave its last checkpoint there."""
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    run = Run()
    with contextlib.suppress(FileNotFoundError):
        run.load_state_dict(load_checkpoint(path))
    while run.step < steps:
        run.train_step()
        if run.step % every == 0:
            save_checkpoint(path, run.state_dict())


def forked(path: Path, steps: int, every: int, after: float | None = None, line: int | None = None) -> bool:
    """Train in a process of its own, killed ``after`` seconds or before the n-th ``line``; returns whether it was."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            if line is not None:
                kill_before_line(line)
            train(path, steps, every)
            code = 0
        finally:
            os._exit(code)
    if after is not None:
        time.sleep(after)
        os.kill(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status not in (0, -signal.SIGKILL):
        raise RuntimeError(f"the training process failed with status {status}")
    return status != 0


def kill_before_line(number: int) -> None:
    """Kill this process before the n-th line that the writing of checkpoints executes."""
    left = number

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal left
        if frame.f_code.co_filename != checkpoint.__file__ or frame.f_code.co_name == "load_checkpoint":
            return None
        left -= event == "line"
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)


def step_of(path: Path) -> int:
    """The step of the last checkpoint; 0 if there is none yet."""
    try:
        state = load_checkpoint(path)
    except FileNotFoundError:
        return 0
    return int(state["step"])


def killed_at_random(folder: Path, steps: int, kills: int, seed: int, every: int) -> dict[str, Any]:
    """``kills`` times at a random moment of what is left of the run."""
    draw, start = random.Random(seed), time.monotonic()
    forked(folder / "whole.pt", steps, every)
    duration, resumed = time.monotonic() - start, []
    while len(resumed) < kills:
        left = duration * (1 - step_of(folder / "broken.pt") / steps)
        if forked(folder / "broken.pt", steps, every, after=draw.uniform(0, 2 * left / (kills - len(resumed) + 1))):
            resumed.append(step_of(folder / "broken.pt"))
    forked(folder / "broken.pt", steps, every)
    return outcome(folder) | {"kills": kills, "resumed_from": resumed, "seconds": time.monotonic() - start}


def killed_at_every_line(folder: Path, stride: int) -> dict[str, Any]:
    """Once before each ``stride``-th line of all writes of a short run, with a checkpoint after every step."""
    steps, number, resumed = STEPS_OF_LINES, 1, []
    forked(folder / "whole.pt", steps, 1)
    while True:
        path = folder / f"{number}" / "broken.pt"
        if not forked(path, steps, 1, line=number):
            break
        resumed.append(step_of(path))
        forked(path, steps, 1)
        if not outcome(folder, path)["equal"]:
            raise RuntimeError(f"killed before line {number}: the run ended elsewhere")
        number += stride
    return {"equal": True, "kills": len(resumed), "resumed_from": resumed}


def outcome(folder: Path, broken: Path | None = None) -> dict[str, Any]:
    """Whether both runs ended with the same parameters, optimizer, schedule and generators."""
    whole, other = load_checkpoint(folder / "whole.pt"), load_checkpoint(broken or folder / "broken.pt")
    return {"equal": same(whole, other), "step": other["step"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("mode", choices=MODES)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", type=int, default=5, help="steps from one checkpoint to the next")
    parser.add_argument("--stride", type=int, default=1, help="of the lines to be killed at")
    given = parser.parse_args()
    warnings.simplefilter("error")
    Run()  # torch imports much of itself when the first optimizer is made
    if given.mode == "random":
        result = killed_at_random(given.folder, given.steps, given.kills, given.seed, given.every)
    else:
        result = killed_at_every_line(given.folder, given.stride)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
