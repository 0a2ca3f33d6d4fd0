"""One process of benchmarks/row_engine.py: a model, Marble and a step, run or measured on demand.

    python row_engine_worker.py CASE REWARDS       reads "step" or "peak" from stdin, prints a number after each

Which marble_opt is imported is decided by PYTHONPATH, so that two versions of it can be measured in turn.
"""

import sys
import time

import torch
from torch import Tensor, nn

import marble_opt

WARM_UP = 6


class Perceptron(nn.Module):
    """Blocks of two linear layers and a norm, for training all of it."""

    def __init__(self, width: int = 256, depth: int = 6) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(depth))
        self.ins = nn.ModuleList(nn.Linear(width, 2 * width) for _ in range(depth))
        self.outs = nn.ModuleList(nn.Linear(2 * width, width) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, width] → the same."""
        for norm, first, second in zip(self.norms, self.ins, self.outs, strict=True):
            x = x + second(nn.functional.gelu(first(norm(x))))
        return x


class Case:
    """A model with its batch: ``lora`` is the mid-size transformer of step_cost.py, ``full`` a perceptron."""

    def __init__(self, name: str) -> None:
        torch.manual_seed(0)
        if name == "lora":
            from step_cost_forms import Setting

            setting = Setting("mid", "cpu", checkpointing=False)
            self.model, self.parameters, self.x_0 = setting.model, setting.parameters, setting.x_0
            self.predict = lambda t: setting.velocity((1 - t.view(-1, 1, 1, 1)) * setting.x_0, t)
        else:
            self.model = Perceptron()
            self.parameters, self.x_0 = list(self.model.parameters()), torch.randn(8, 64, 256)
            self.predict = lambda t: self.model((1 - t.view(-1, 1, 1)) * self.x_0)

    def step(self, opt: marble_opt.Marble, rewards: int) -> None:
        """Forward, rows and balance of one DiffusionNFT step with the paper's anchor: two passes."""
        t = torch.rand(len(self.x_0))
        prediction = self.predict(t)
        old, advantages = prediction.detach() + 0.1, torch.randn(rewards, len(self.x_0))
        loss = marble_opt.losses.diffusion_nft(prediction, old, self.x_0, self.x_0, t, advantages, beta=0.5)
        opt.backward(loss)
        opt.balance()
        opt.zero_grad()


def main() -> None:
    """Serve the commands."""
    from step_cost_memory import peak_bytes

    torch.set_num_threads(1)
    case, rewards = Case(sys.argv[1]), int(sys.argv[2])
    names = [f"r{k}" for k in range(rewards)]
    opt = marble_opt.Marble(torch.optim.AdamW(case.parameters, lr=1e-6), names, model=case.model)
    if hasattr(marble_opt, "per_sample"):
        # Repeated comparisons are counted apart: one backward in fifty refreshes.
        opt.watch(case.model, verify_every=None)
    for _ in range(WARM_UP):
        case.step(opt, rewards)
    print("ready", flush=True)
    for command in sys.stdin:
        if command.strip() == "peak":
            print(peak_bytes(lambda: case.step(opt, rewards), "cpu"), flush=True)
        else:
            start = time.perf_counter()
            case.step(opt, rewards)
            print(time.perf_counter() - start, flush=True)


if __name__ == "__main__":
    main()
