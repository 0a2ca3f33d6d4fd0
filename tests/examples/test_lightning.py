"""The Lightning recipe equals a plain loop, and its checkpoints resume bit for bit."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import marble_opt
from tiny_flow import REWARDS

if not any(map(find_spec, ("lightning", "pytorch_lightning"))):
    pytest.skip("neither lightning nor pytorch_lightning is installed", allow_module_level=True)
import lightning_manual


def flat(model: nn.Module) -> Tensor:
    return torch.cat([weight.detach().flatten() for weight in model.parameters()])


def plain(epochs: int) -> nn.Module:
    torch.manual_seed(0)
    module = lightning_manual.Module()
    opt = marble_opt.Marble(torch.optim.AdamW(module.parameters(), lr=1e-2), rewards=REWARDS, ema=0.5)
    for _ in range(epochs):
        for index, batch in enumerate(lightning_manual.batches()):
            opt.backward({name: loss / lightning_manual.ACCUMULATE for name, loss in module.losses(batch).items()})
            if (index + 1) % lightning_manual.ACCUMULATE == 0:
                opt.step()
                opt.zero_grad()
    return module


def test_it_equals_a_plain_loop_bit_for_bit() -> None:
    module, trainer = lightning_manual.train(epochs=2)
    assert torch.equal(flat(module), flat(plain(2)))
    assert trainer.global_step == 8
    (opt,) = trainer.optimizers
    assert isinstance(opt, marble_opt.Marble)
    assert opt.report is not None
    assert (opt.report.step, opt.report.dropped_steps) == (7, 0)
    assert opt.report.active.all()
    assert trainer.callback_metrics["left"].isfinite()


def test_a_checkpoint_of_the_trainer_resumes_bit_for_bit(tmp_path: Path) -> None:
    first, trainer = lightning_manual.train(tmp_path, epochs=1)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    second, _ = lightning_manual.train(tmp_path, epochs=2, resume=tmp_path / "half.ckpt")
    assert not torch.equal(flat(first), flat(second))
    assert torch.equal(flat(second), flat(plain(2)))


def test_it_runs_as_a_script(capsys: pytest.CaptureFixture[str]) -> None:
    lightning_manual.main()
    assert "8 optimizer steps" in capsys.readouterr().out
