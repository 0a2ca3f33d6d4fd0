"""A LightningModule with manual optimisation: the recipe, the same steps as a bare loop, resuming."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from marble_opt import Marble
from toys import NAMES, normal, values

lightning = pytest.importorskip("pytorch_lightning")
pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:pytorch_lightning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

REWARDS = NAMES[:3]
STEPS = 6


def make() -> tuple[nn.Module, Marble]:
    torch.manual_seed(2)
    net = nn.Linear(4, 2).double()
    return net, Marble(torch.optim.AdamW(net.parameters(), lr=0.05), REWARDS, ema=0.5, refresh_every=2)


def losses(net: nn.Module, batch: Tensor) -> dict[str, Tensor]:
    output = net(batch)
    return {name: (output - 2 * k + 1).square().mean() for k, name in enumerate(REWARDS)}


class Balanced(lightning.LightningModule):  # type: ignore[name-defined,misc]
    """``form``: Marble's own backward, or Lightning's inside `collect`."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.net, self.marble = make()
        self.form = form

    def training_step(self, batch: Tensor, index: int) -> None:
        opt: Any = self.optimizers()
        found = losses(self.net, batch)
        if self.form == "backward":
            self.marble.backward(found)
        else:
            for name, loss in found.items():
                with self.marble.collect(name):
                    self.manual_backward(loss, retain_graph=True)
        opt.step()
        opt.zero_grad()

    def configure_optimizers(self) -> Marble:
        return self.marble


def fit(module: Any, steps: int, batches: list[Tensor], **options: Any) -> Any:
    trainer = lightning.Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(batches, batch_size=None), **options)
    return trainer


@pytest.mark.parametrize("form", ["backward", "collect"])
def test_the_trainer_takes_the_steps_of_a_bare_loop(form: str) -> None:
    net, opt = make()
    for batch in normal(STEPS, 5, 4):
        opt.backward(losses(net, batch))
        opt.step()
        opt.zero_grad()
    module = Balanced(form)
    fit(module, STEPS, list(normal(STEPS, 5, 4)))
    assert torch.allclose(values(module.net.parameters()), values(net.parameters()), rtol=0, atol=1e-12)
    assert module.marble.state_dict()["marble"]["steps"] == STEPS


def test_a_checkpoint_of_the_trainer_restores_the_optimizer(tmp_path: Path) -> None:
    # One batch again and again: Lightning resumes its data elsewhere.
    same = [normal(5, 4)] * STEPS
    module = Balanced("backward")
    trainer = fit(module, STEPS, same)
    path = str(tmp_path / "epoch.ckpt")
    trainer.save_checkpoint(path)
    resumed, whole = Balanced("backward"), Balanced("backward")
    fit(resumed, STEPS + 3, same, ckpt_path=path, weights_only=True)
    fit(whole, STEPS + 3, same)
    own = resumed.marble.state_dict()["marble"]
    assert own["steps"] == STEPS + 3
    assert torch.equal(own["alpha"], whole.marble.state_dict()["marble"]["alpha"])
    assert torch.equal(values(resumed.net.parameters()), values(whole.net.parameters()))
