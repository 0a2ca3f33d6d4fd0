"""Lightning: manual optimisation with Marble, two micro-batches per step, checkpoints by the Trainer.

    pip install lightning
    python examples/integrations/lightning_manual.py

What changes in a LightningModule, where a weighted sum was returned from `training_step`:

    + self.automatic_optimization = False                          # in __init__
      def configure_optimizers(self):
    -     return torch.optim.AdamW(self.parameters(), lr=1e-2)
    +     return marble_opt.Marble(torch.optim.AdamW(self.parameters(), lr=1e-2), rewards=NAMES)
      def training_step(self, batch, batch_idx):
    -     return loss_left + loss_small
    +     optimizer = self.optimizers()
    +     optimizer.backward({"left": loss_left, "small": loss_small})
    +     if (batch_idx + 1) % accumulate == 0:
    +         optimizer.step()
    +         optimizer.zero_grad()

Lightning's wrapper forwards `backward`, `balance` and `report` to Marble. Clip with `max_grad_norm=`, or call
`optimizer.balance()` and then `self.clip_gradients(optimizer, ...)`. `self.manual_backward(loss)` works too, inside
`with optimizer.collect("left"):`. The Trainer's checkpoints hold Marble's state with the optimizer's.
"""

import logging
import warnings
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader

import marble_opt
from tiny_flow import REWARDS, SIZE, Velocity, prompt_batch, score, seeded

try:
    import lightning.pytorch as lightning
except ImportError:
    try:
        import pytorch_lightning as lightning
    except ImportError as error:
        raise SystemExit("this recipe needs lightning: pip install lightning") from error

ACCUMULATE, BATCHES = 2, 8


class Module(lightning.LightningModule):
    """Trains the one-step sample of a velocity network on three rewards."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.model = Velocity()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """A torch optimizer like any other."""
        return marble_opt.Marble(torch.optim.AdamW(self.parameters(), lr=1e-2), rewards=REWARDS, ema=0.5)

    def losses(self, noise: Tensor) -> dict[str, Tensor]:
        """−score, the mean over the samples to which the reward applies."""
        prompt_ids = prompt_batch()
        x_0 = noise - self.model(noise, torch.ones(len(noise)), prompt_ids)
        return dict(zip(REWARDS, -score(x_0, prompt_ids).nanmean(1), strict=True))

    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        """One micro-batch; the optimizer steps on every second."""
        optimizer = self.optimizers()
        losses = self.losses(batch)
        optimizer.backward({name: loss / ACCUMULATE for name, loss in losses.items()})
        if (batch_idx + 1) % ACCUMULATE == 0:
            optimizer.step()
            optimizer.zero_grad()
            self.log_dict({name: -loss for name, loss in losses.items()})


def batches() -> DataLoader[Tensor]:
    """The noise of one epoch."""
    drawn = [torch.randn(len(prompt_batch()), SIZE, generator=seeded(i)) for i in range(BATCHES)]
    return DataLoader(drawn, batch_size=None)  # type: ignore[arg-type]


def train(folder: Path | None = None, epochs: int = 2, resume: Path | None = None) -> tuple[Module, lightning.Trainer]:
    """Train, resuming from a checkpoint of the Trainer if one is given."""
    logging.getLogger(lightning.__name__).setLevel(logging.ERROR)
    torch.manual_seed(0)
    module = Module()
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers")
        trainer.fit(module, batches(), ckpt_path=resume)
    return module, trainer


def main() -> None:
    """Train and print the last report."""
    _, trainer = train()
    report = trainer.optimizers[0].report
    assert report is not None
    alpha = {name: round(value, 3) for name, value in zip(REWARDS, report.alpha.tolist(), strict=True)}
    print(f"{trainer.global_step} optimizer steps, last weights {alpha}")


if __name__ == "__main__":
    main()
