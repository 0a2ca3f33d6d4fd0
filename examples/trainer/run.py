"""One run in a folder of its own: trained, evaluated, logged, saved after every epoch, continued where it stopped."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from tqdm import tqdm

from backbones.load import load_backbone
from prompts.sampler import rank_slice
from prompts.sources import load_prompts
from rewards.scorer import Scorer

from . import checkpoint, ranks
from .base_evaluation import pretrained
from .buckets import check_model
from .config import Config
from .evaluation import Evaluation
from .film import pictures
from .forecast import forecast
from .grids import save_grid
from .logs import Logs, check_installed
from .trainer import Trainer


@dataclass(frozen=True)
class Run:
    """A finished run: its settings, its numbers per epoch and per evaluation, its first and last evaluation."""

    config: Config
    history: list[dict[str, float]]
    evaluations: list[dict[str, float]]
    base: Evaluation
    final: Evaluation


def train(config: Config, folder: Path, resume: bool, device: str, base: Evaluation | None = None) -> Run:
    """Run ``config`` to its end; under ``resume`` continue what is found in ``folder``.

    ``base``: the pretrained model's evaluation, if another run has made it. The folder gets config.yaml,
    checkpoint.pt, base.pt (that evaluation), metrics.jsonl, grids/, the LoRA of the averaged weights in lora/ and that
    of the best composite z-score in best/.

    Raises ``ValueError`` where a run is found without ``resume``, or one of other settings, or not by all ranks, where
    the samples cannot be shared out, for prompts that cannot be read and for a reward that applies nowhere;
    ``ImportError`` where a tracker's package is missing.
    """
    check_shares(config)
    check_installed(config.log.tensorboard, config.log.wandb)
    # Loading a model takes minutes: what is wrong with prompts, sizes and lengths is said before.
    check_prompts(config, device)
    saved = load_checkpoint(folder)
    if saved is not None and not resume:
        raise ValueError(f"{folder} holds a run already: continue it with --resume, or choose another --output")
    with Scorer(config.rewards) as scorer:
        backbone = load_backbone(config.model, device)
        trainer = Trainer(config, backbone, scorer)
        if saved is not None:
            trainer.load_state_dict(saved)
        base = pretrained(trainer, folder, saved is not None, base)
        if saved is None:
            trainer.record(base)
        check_applies(base)
        expected = forecast(trainer)
        if ranks.is_main():
            tqdm.write(expected)
        options = config.log
        with Logs(folder, options.tensorboard, options.wandb, ranks.rank(), trainer.step, config.as_dict()) as logs:
            keeper = Keeper(trainer, folder, logs)
            keeper.begin(base)
            final = _epochs(trainer, keeper)
        # The hooks hold the model, which the next run of this process replaces.
        trainer.optimizer.unwatch()
    return Run(config, trainer.history, trainer.evaluations, base, final)


def load_checkpoint(folder: Path) -> dict[str, Any] | None:
    """The saved run in ``folder``; ``ValueError`` on all ranks where they do not find the same one."""
    saved = checkpoint.load(folder)
    epochs = ranks.everyone(None if saved is None else saved["epoch"])
    if len(set(epochs)) > 1:
        raise ValueError(
            f"the ranks find different checkpoints in {folder} (after epochs {epochs}): it must be a folder on a disk "
            "that all machines share"
        )
    return saved


def check_shares(config: Config) -> None:
    """Raise ``ValueError`` where ranks, or their optimizer steps, cannot have equal shares of an epoch's samples."""
    own = len(rank_slice(config.rollout.prompts, config.rollout.images, ranks.rank(), ranks.ranks()))
    steps = config.optimizer.steps_per_epoch
    if own % steps:
        raise ValueError(
            f"each of {ranks.ranks()} ranks has {own} samples per epoch, which optimizer.steps_per_epoch ({steps}) "
            "does not divide: choose rollout.prompts or rollout.images so that it does"
        )


def check_prompts(config: Config, device: str) -> None:
    """Raise ``ValueError`` for a source that cannot be read, and for what the model cannot serve."""
    prompts = []
    for name, source in config.sources.items():
        try:
            for held_out in (False, True):
                prompts += load_prompts(name, source, held_out)
        except ValueError as error:
            raise ValueError(f"{error}; to do without it, sources.{name}=null") from error
    check_model(config, prompts, device)


def check_applies(base: Evaluation) -> None:
    """Raise ``ValueError`` for a reward that scored none of the held-out prompts."""
    unused = [name for name, row in zip(base.names, base.scores, strict=True) if row.isnan().all()]
    if unused:
        raise ValueError(
            f"no held-out prompt carries {', '.join(unused)}: leave these rewards out "
            f"({' '.join(f'rewards.{name}=null' for name in unused)}), or add a source whose prompts have the facts "
            "they need"
        )


def _epochs(trainer: Trainer, keeper: "Keeper") -> Evaluation:
    config = trainer.config
    label = f"{config.method} seed {config.seed}"
    bar = tqdm(total=config.total_epochs, initial=trainer.epoch, desc=label, unit="epoch", disable=ranks.rank() > 0)
    with bar:
        while trainer.epoch < config.total_epochs:
            numbers = trainer.train_epoch()
            keeper.epoch(numbers)
            if trainer.epoch % config.evaluation.every == 0 and trainer.epoch < config.total_epochs:
                keeper.evaluated(trainer.evaluate())
            keeper.save()
            bar.update()
            bar.set_postfix({name: f"{numbers[f'train/{name}']:.2f}" for name in config.rewards})
    known = trainer.evaluations[-1]["epoch"] == trainer.epoch
    final = trainer.evaluate()
    keeper.evaluated(final, log=not known)
    keeper.save()
    return final


class Keeper:
    """Writes what a run leaves behind; only rank 0 writes, but all must call."""

    def __init__(self, trainer: Trainer, folder: Path, logs: Logs) -> None:
        self.trainer, self.folder, self.logs = trainer, folder, logs
        self.main = ranks.is_main()

    def begin(self, base: Evaluation) -> None:
        """The config; in a new run the pretrained model's scores and samples, as those of step 0."""
        if self.main:
            self.folder.mkdir(parents=True, exist_ok=True)
            OmegaConf.save(OmegaConf.structured(self.trainer.config), self.folder / "config.yaml")
        if self.trainer.epoch == 0:
            self._heldout()
            if self.main:
                self._grid(base, 0)

    def epoch(self, numbers: dict[str, float]) -> None:
        """An epoch's numbers."""
        seconds = self.trainer.seconds | self.trainer.scorer.seconds
        own = {name: value for name, value in numbers.items() if name != "step"}
        self.logs.write(self.trainer.step, own | {f"seconds/{name}": value for name, value in seconds.items()})

    def evaluated(self, evaluation: Evaluation, log: bool = True) -> None:
        """Held-out scores, a grid of samples, and the LoRA, once more in best/ if its composite is the best so far.

        ``log`` False: a finished run is looked at again, its scores have been logged.
        """
        trainer = self.trainer
        numbers = trainer.evaluations[-1]
        if log:
            self._heldout()
        best = all(numbers["composite"] >= other["composite"] for other in trainer.evaluations)
        for name in ("lora", "best") if best else ("lora",):
            trainer.backbone.save_lora(self.folder / name, "average", write=self.main)
            if self.main:
                (self.folder / name / "scores.json").write_text(json.dumps(numbers, indent=2) + "\n")
        if self.main:
            self._grid(evaluation, trainer.epoch)

    def save(self) -> None:
        """The checkpoint; a kill at any moment leaves the last good one readable."""
        state = self.trainer.state_dict()
        if self.main:
            checkpoint.save(self.folder, state)
        ranks.barrier()

    def _heldout(self) -> None:
        numbers = {name: v for name, v in self.trainer.evaluations[-1].items() if name not in ("epoch", "step")}
        self.logs.write(self.trainer.step, {f"heldout/{name}": value for name, value in numbers.items()})

    def _grid(self, evaluation: Evaluation, epoch: int) -> None:
        path = self.folder / "grids" / f"epoch-{epoch:04d}.png"
        shown = evaluation.images
        prompts, labels = [evaluation.prompts[i] for i in shown], [evaluation.label(i) for i in shown]
        save_grid(pictures([*shown.values()], prompts), [prompt.text for prompt in prompts], labels, path)
        self.logs.image(self.trainer.step, "samples", path)
