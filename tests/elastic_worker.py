"""Two ranks of an elastic agent, of which one kills itself in the first attempt; the second resumes and finishes."""

import os
import signal
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from marble_opt import Marble, load_checkpoint, save_checkpoint

NAMES = ("a", "b", "c")
STEPS, EVERY, KILLED_AT = 24, 5, 13


def train(path: Path | None, kill_at: int | None = None) -> dict[str, Any]:
    """Train, saving to and resuming from ``path``; rank 1 dies during step ``kill_at``. Returns the last state."""
    rank, start = dist.get_rank(), 0
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 12), torch.nn.Tanh(), torch.nn.Linear(12, 3))
    opt = Marble(torch.optim.AdamW(model.parameters(), lr=0.01), NAMES, refresh_every=3, ema=0.6)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(opt, STEPS)
    if path is not None and path.exists():
        state = load_checkpoint(path)
        start = state["step"]
        model.load_state_dict(state["model"])
        opt.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
    wrapped = DistributedDataParallel(model)
    state = {}
    for step in range(start, STEPS):
        # A function of step and rank, so that no generator has to be saved.
        inputs = torch.randn(8, 6, generator=torch.Generator().manual_seed(2 * step + rank))
        losses = dict(zip(NAMES, (wrapped(inputs) - torch.arange(3.0)).square().mean(0), strict=True))
        opt.backward(losses)
        if step == kill_at and rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        opt.step()
        opt.zero_grad()
        schedule.step()
        state = {
            "step": step + 1,
            "model": model.state_dict(),
            "optimizer": opt.state_dict(),
            "schedule": schedule.state_dict(),
        }
        if path is not None and rank == 0 and (step + 1) % EVERY == 0:
            save_checkpoint(path, state)
    return state | {"resumed_from": start}


def main(folder: Path) -> None:
    attempt = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    warnings.simplefilter("error", UserWarning)
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    broken = train(folder / "last.pt", kill_at=KILLED_AT if attempt == 0 else None)
    # The run that nobody interrupts, by the same two processes: one start less to wait for.
    whole = train(None)
    save_checkpoint(folder / f"rank{dist.get_rank()}.pt", {"attempt": attempt, "broken": broken, "whole": whole})
    dist.barrier()
    dist.destroy_process_group()
