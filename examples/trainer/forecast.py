"""What a run will cost, printed before it starts."""

from dataclasses import replace

from . import ranks
from .config import Config
from .estimate import RunCounts, duration, estimate
from .model_sizes import seconds_per_forward, sizes_of
from .step_batch import micro_batch_of, timesteps_of
from .trainer import Trainer


def forecast(trainer: Trainer) -> str:
    """A table of forwards, memory and time per rank and epoch; the time of a forward is measured here.

    Under FSDP2 all ranks must call it.
    """
    config, backbone = trainer.config, trainer.backbone
    counts = counts_of(config)
    prompt = next(iter(trainer.train_prompts.values()))[0]
    sizes = sizes_of(backbone, prompt)
    if trainer.sharding.sharded:
        sizes = replace(sizes, frozen_bytes=sizes.frozen_bytes // ranks.ranks())
    with trainer.adapters.using(trainer.algorithm.rollout):
        seconds = seconds_per_forward(
            backbone, prompt, min(config.rollout.batch or counts.samples, counts.samples), calls=2
        )
    result = estimate(counts, sizes, prompts=config.rollout.prompts, seconds_per_forward=seconds)
    total = duration((result.seconds or 0) * (config.total_epochs - trainer.epoch))
    return (
        f"{result.table()}\n{config.total_epochs - trainer.epoch} epochs without evaluations and rewards: about {total}"
    )


def counts_of(config: Config) -> RunCounts:
    """What a rank does in an epoch."""
    own = config.rollout.prompts * config.rollout.images // ranks.ranks()
    crd = config.algorithm == "crd"
    return RunCounts(
        samples=own,
        sampler_steps=config.rollout.steps,
        timesteps=timesteps_of(config),
        micro_batch=min(micro_batch_of(config) or own, own),
        updates=config.optimizer.steps_per_epoch,
        guidance=config.rollout.guidance != 1,
        form="observe" if config.summed else "marble",
        rewards=len(config.rewards),
        anchor="none" if crd else config.loss.anchor,
        kl=config.crd.anchor.on if crd else config.loss.kl > 0,
        references=2 if crd and config.crd.anchor.guidance != 1 else 1,
        refresh_every=config.balance.refresh_every,
        probe=0.0 if config.summed else config.balance.probe,
        shared_every=1 if config.summed else config.balance.shared_every,
        checkpointing=config.model.checkpointing,
    )
