"""accelerate around Marble: prepare, accumulate, clip, save and load, mixed precision, on a CPU."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.state import AcceleratorState, GradientState, PartialState
from torch import Tensor, nn

from marble_opt import Marble
from toys import NAMES, close, linear_losses, normal, parameters, values

REWARDS = NAMES[:3]


@pytest.fixture(autouse=True)
def fresh_accelerate() -> Iterator[None]:
    """accelerate keeps its settings in singletons."""
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    yield
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


class Loop:
    """The loop that accelerate's guides show, with one `collect` per reward."""

    def __init__(self, accelerated: bool = True, micro_steps: int = 1, dtype: torch.dtype = torch.float64, **more: Any):
        torch.manual_seed(2)
        self.micro_steps, self.dtype = micro_steps, dtype
        self.model: Any = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).to(dtype)
        base = torch.optim.AdamW(self.model.parameters(), lr=0.05)
        self.marble = Marble(base, REWARDS, ema=0.3)
        self.opt: Any = self.marble
        self.accelerator: Any = None
        if accelerated:
            self.accelerator = Accelerator(cpu=True, gradient_accumulation_steps=micro_steps, **more)
            self.model, self.opt = self.accelerator.prepare(self.model, self.marble)

    def losses(self, number: int) -> dict[str, Tensor]:
        output = self.model(normal(5, 4, seed=number).to(self.dtype)).to(self.dtype)
        targets = normal(3, 5, 2, seed=number + 500).to(self.dtype)
        return {name: (output - target).square().mean() for name, target in zip(REWARDS, targets, strict=True)}

    def step(self, number: int) -> None:
        for micro in range(self.micro_steps):
            if self.accelerator is None:
                self.marble.backward({k: v / self.micro_steps for k, v in self.losses(10 * number + micro).items()})
            else:
                self.accelerated_micro_step(10 * number + micro)
        if self.accelerator is None:
            self.marble.balance()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 0.3)
            self.marble.step()
            self.marble.zero_grad()

    def accelerated_micro_step(self, number: int) -> None:
        with self.accelerator.accumulate(self.model):
            losses = self.losses(number)
            for position, (name, loss) in enumerate(losses.items()):
                with self.marble.collect(name, scaler=self.accelerator.scaler):
                    self.accelerator.backward(loss, retain_graph=position + 1 < len(losses))
            if self.accelerator.sync_gradients:
                self.marble.balance()
                self.accelerator.clip_grad_norm_(self.model.parameters(), 0.3)
            self.opt.step()
            self.opt.zero_grad()

    def values(self) -> Tensor:
        return values(self.model.parameters())


@pytest.mark.parametrize("micro_steps", [1, 3])
def test_the_accelerated_loop_takes_the_same_steps(micro_steps: int) -> None:
    plain, accelerated = Loop(False, micro_steps), Loop(True, micro_steps)
    start = plain.values()
    for number in range(4):
        plain.step(number)
        accelerated.step(number)
        assert close(accelerated.values(), plain.values())
    assert not close(plain.values(), start, 1e-3)
    assert accelerated.marble.state_dict()["marble"]["steps"] == 4


def test_a_scheduler_prepared_with_it_moves_its_learning_rate() -> None:
    loop = Loop()
    scheduler = loop.accelerator.prepare(torch.optim.lr_scheduler.StepLR(loop.marble, 1, 0.5))
    for number in range(2):
        loop.step(number)
        scheduler.step()
    assert loop.marble.base.param_groups[0]["lr"] == 0.05 / 4


def test_a_saved_state_is_resumed_bit_for_bit(tmp_path: Path) -> None:
    whole = Loop(micro_steps=2)
    for number in range(3):
        whole.step(number)
    whole.accelerator.save_state(str(tmp_path / "checkpoint"))
    resumed = Loop(micro_steps=2)
    resumed.accelerator.load_state(str(tmp_path / "checkpoint"))
    assert resumed.marble.state_dict()["marble"]["steps"] == 3
    for number in range(3, 6):
        whole.step(number)
        resumed.step(number)
    assert torch.equal(resumed.values(), whole.values())


def test_bf16_mixed_precision_stays_near_fp32() -> None:
    mixed = Loop(dtype=torch.float32, mixed_precision="bf16")
    plain = Loop(False, dtype=torch.float32)
    for number in range(4):
        mixed.step(number)
        plain.step(number)
    assert {parameter.dtype for parameter in mixed.model.parameters()} == {torch.float32}
    assert close(mixed.values(), plain.values(), 0.05)
    assert not torch.equal(mixed.values(), plain.values())


def test_the_scaler_of_fp16_skips_an_overflow_and_goes_on() -> None:
    # accelerate itself refuses fp16 on a CPU; this is the wrapper that it makes on a GPU.
    Accelerator(cpu=True)
    params, rows = parameters(), normal(3, 10)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    opt = Marble(torch.optim.SGD(params, lr=0.1), REWARDS)
    prepared = AcceleratedOptimizer(opt, scaler=scaler)
    start = values(params)
    for factor, skipped in ((1e308, True), (1.0, False)):
        for name, loss in linear_losses(params, rows).items():
            with opt.collect(name, scaler=scaler):
                scaler.scale(loss * factor).backward()
        opt.balance()
        prepared.step()
        prepared.zero_grad()
        assert prepared.step_was_skipped is skipped
        assert torch.equal(values(params), start) is skipped
    assert scaler.get_scale() == 2.0**9


def test_modes_of_a_schedule_free_base_are_reached_through_accelerate() -> None:
    schedulefree = pytest.importorskip("schedulefree")
    model = nn.Linear(3, 1)
    opt = Marble(schedulefree.AdamWScheduleFree(model.parameters(), lr=0.1), ["a"])
    model, prepared = Accelerator(cpu=True).prepare(model, opt)
    prepared.train()
    assert opt.param_groups[0]["train_mode"]
    opt.backward({"a": model(torch.ones(2, 3)).sum()})
    prepared.step()
    prepared.eval()
    assert not opt.param_groups[0]["train_mode"]
