"""Question: what does everything between the last backward and the new parameters cost?

A library for kernels.py: ``balance()`` + ``step()`` of Marble on AdamW for K rewards and LoRA-like parameters, fused
and not, beside the step of torch's own AdamW on a gradient that is already there. Forms take turns in one process.
"""

from collections.abc import Callable, Sequence

import torch
from kernel_bandwidth import PARAMETERS, P, lora_shapes
from measure import quantiles, seconds
from torch import Tensor

import marble_opt


class _Step:
    """Parameters, an optimizer, and the gradients that are given to it before each step."""

    def __init__(self, shapes: Sequence[tuple[int, int]], rewards: int, device: str, fused: bool | None) -> None:
        random = torch.Generator(device).manual_seed(0)
        self.params = [torch.randn(shape, generator=random, device=device).requires_grad_() for shape in shapes]
        self.rows = [
            [torch.randn(p.shape, generator=random, device=device) for p in self.params] for _ in range(rewards)
        ]
        self.names = [f"r{k}" for k in range(rewards)]
        self.optimizer: torch.optim.Optimizer = torch.optim.AdamW(self.params, lr=1e-6, fused=device == "cuda")
        if fused is not None:
            self.optimizer = marble_opt.Marble(self.optimizer, self.names, fused=fused, max_grad_norm=1.0)

    def prepare(self) -> None:
        """What the backward passes leave behind."""
        self.optimizer.zero_grad()
        if not isinstance(self.optimizer, marble_opt.Marble):
            for parameter, gradient in zip(self.params, self.rows[0], strict=True):
                parameter.grad = gradient
            return
        for name, row in zip(self.names, self.rows, strict=True):
            with self.optimizer.collect(name):
                for parameter, gradient in zip(self.params, row, strict=True):
                    parameter.grad = gradient

    def step(self) -> Tensor:
        """The step that is timed."""
        self.optimizer.step()
        return self.params[0]


def step_rows(device: str, rounds: int, rewards: int = 5, total: int = P, parameters: int = PARAMETERS) -> list[dict]:
    """Rows with the seconds of one step, and Marble's as a multiple of AdamW's in the same round."""
    shapes = lora_shapes(total, parameters)
    forms = {"AdamW alone": None, "balance + step": False, "balance + step, fused": True}
    steps = {name: _Step(shapes, rewards, device, fused) for name, fused in forms.items()}
    times: dict[str, list[float]] = {name: [] for name in forms}
    for turn in range(rounds + 2):
        for name, form in steps.items():
            form.prepare()
            found = seconds(form.step, device)
            if turn > 1:
                times[name].append(found)
    settings = {
        "device": device,
        "rewards": rewards,
        "elements": sum(a * b for a, b in shapes),
        "parameters": parameters,
    }
    shared: Callable[[str, str], dict] = lambda name, metric: {"method": name, "metric": metric, "settings": settings}  # noqa: E731
    rows = []
    for name, values in times.items():
        ratio = [own / plain for own, plain in zip(values, times["AdamW alone"], strict=True)]
        rows += [
            shared(name, "seconds") | quantiles(values),
            shared(name, "times_adamw") | quantiles(ratio),
        ]
    return rows
