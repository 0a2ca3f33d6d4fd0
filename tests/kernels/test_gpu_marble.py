"""Marble's balance and step on a GPU: no copy to the host, and a captured graph that replays them."""

import pytest
import torch
from torch import Tensor

from marble_opt import Marble

SHAPES = tuple((16, 64) if index % 2 else (48, 16) for index in range(12))
NAMES = ("a", "b", "c", "d", "e")
OPTIONS = {"floor": 0.05, "max_grad_norm": 1.0, "weights": {"a": 2.0}, "ema": 0.5}
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


class Job:
    """An optimizer whose rows and shared gradients lie at fixed addresses, as a captured graph needs them."""

    def __init__(self, device: str, fused: bool) -> None:
        random = torch.Generator().manual_seed(0)
        self.params = [torch.randn(shape, generator=random).to(device).requires_grad_() for shape in SHAPES]
        self.blocks = [torch.randn(len(NAMES), *shape, generator=random).to(device) for shape in SHAPES]
        self.shared = [torch.randn(shape, generator=random).to(device) for shape in SHAPES]
        base = torch.optim.AdamW(self.params, lr=0.01, capturable=device == "cuda")
        self.opt = Marble(base, NAMES, fused=fused, **OPTIONS)

    def step(self) -> None:
        """A step from what backward passes would have left behind."""
        collector = self.opt._collector
        collector.bank.memory.blocks = dict(zip(self.params, self.blocks, strict=True))
        collector.bank.offered = [True] * len(NAMES)
        collector.collected = True
        for parameter, gradient in zip(self.params, self.shared, strict=True):
            parameter.grad = gradient
        self.opt.step()

    def change(self, turn: int) -> None:
        """New gradients at the same addresses."""
        for tensor in (*self.blocks, *self.shared):
            tensor.mul_(-1.1).add_(0.1 * turn)

    def results(self) -> list[Tensor]:
        return [parameter.detach().clone() for parameter in self.params]


def test_both_forms_of_the_job_agree_on_a_cpu() -> None:
    jobs = [Job("cpu", fused) for fused in (False, True)]
    for turn in range(4):
        for job in jobs:
            # The unfused step adds the combination to what .grad holds.
            kept = [gradient.clone() for gradient in job.shared]
            job.step()
            for gradient, before in zip(job.shared, kept, strict=True):
                gradient.copy_(before)
            job.change(turn)
    for left, right in zip(jobs[0].results(), jobs[1].results(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-6)
    assert jobs[1].opt.report is not None
    assert jobs[1].opt.report.fused


@needs_cuda
def test_balance_and_step_are_captured_and_replayed() -> None:
    replayed, eager = Job("cuda", fused=True), Job("cuda", fused=True)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        replayed.step()  # compiles, uploads the tables, makes the state
    torch.cuda.current_stream().wait_stream(stream)
    eager.step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        replayed.step()
    for turn in range(3):
        for job in (replayed, eager):
            job.change(turn)
        graph.replay()
        eager.step()
    for left, right in zip(replayed.results(), eager.results(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-6)
    assert int(replayed.opt.state[replayed.params[0]]["step"]) == int(eager.opt.state[eager.params[0]]["step"]) == 4


@needs_cuda
def test_nothing_is_copied_to_the_host_between_backward_and_step() -> None:
    job = Job("cuda", fused=True)
    job.step()
    torch.cuda.synchronize()
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        job.step()
        torch.cuda.synchronize()
    assert not [event.name for event in profile.events() if "DtoH" in event.name]
