"""The training loop: rollouts, scores, balanced optimizer steps on them; then the rollout policy follows."""

import math
from dataclasses import replace
from time import perf_counter

import torch

import marble_opt
from backbones.interface import Backbone
from prompts.sampler import choose, noise
from prompts.sources import load_prompts
from rewards.scorer import Scorer

from . import ranks
from .adapters import average_decay
from .algorithm import Noised, make_algorithm
from .buckets import check_shapes
from .config import Config
from .evaluation import Evaluation, composite, evaluate
from .learning_rate import LearningRate
from .optimizer import make_optimizer
from .optimizer_step import take_step
from .preference_groups import grouped
from .rollout import Rollout, roll_out
from .sharding import Sharding
from .step_batch import MicroBatch, StepBatch, micro_steps


class Trainer:
    """One run. ``history`` has a dictionary of numbers per epoch; everything is a function of the config, but for
    ``seconds``, those of the last epoch by phase.

    Args:
        config: the settings.
        backbone: the pretrained model; adapters are added to it.
        scorer: the config's rewards.
    """

    def __init__(self, config: Config, backbone: Backbone, scorer: Scorer) -> None:
        self.config, self.backbone, self.scorer = config, backbone, scorer
        self.train_prompts = {name: load_prompts(name, source, False) for name, source in config.sources.items()}
        self.test_prompts = {name: load_prompts(name, source, True) for name, source in config.sources.items()}
        every = [
            prompt
            for prompts in (self.train_prompts, self.test_prompts)
            for part in prompts.values()
            for prompt in part
        ]
        check_shapes(backbone, every, config.parallel == "fsdp2" and ranks.ranks() > 1, config.balance.probe)
        self.weights = torch.tensor([settings.weight for settings in config.rewards.values()])
        self.algorithm, self.adapters = make_algorithm(config, backbone)
        self.backbone = self.algorithm.backbone
        self.sharding = Sharding(backbone.transformer, config.parallel)
        trained = list(self.adapters.parameters("default").values())
        own = config.rollout.prompts * config.rollout.images // ranks.ranks()
        steps = micro_steps(config, own)
        self.optimizer = make_optimizer(config, trained, backbone.transformer, steps, self.algorithm.options)
        settings = config.optimizer
        self.rate = LearningRate(self.optimizer, settings.schedule, settings.warmup, config.total_steps)
        scaled = config.model.precision == "fp16"
        self.scaler = torch.amp.GradScaler(backbone.device.type) if scaled else None
        self.seconds: dict[str, float] = {}
        self.epoch = self.step = 0
        self._shown: marble_opt.Balance | None = None
        self.history: list[dict[str, float]] = []
        self.evaluations: list[dict[str, float]] = []

    def train_epoch(self) -> dict[str, float]:
        """Roll out, make the epoch's optimizer steps, let the other adapters follow; returns the epoch's numbers."""
        config, stage = self.config, self.config.stage(self.epoch)
        shares = {
            name: stage.sources.get(name, 0.0) if stage.sources else s.weight for name, s in config.sources.items()
        }
        prompts = choose(self.train_prompts, shares, config.distinct_prompts, config.seed, self.epoch)
        prompts = grouped(prompts, config, self.epoch)
        start = perf_counter()
        rollout = roll_out(
            self.backbone, self.adapters, self.algorithm.rollout, self.scorer, prompts, config, self.epoch
        )
        rolled = perf_counter()
        trained = rollout.only([name in stage.rewards and s.weight > 0 for name, s in config.rewards.items()])
        times = self.backbone.times(config.rollout.steps, config.rollout.solver)
        self._shown = None
        for batch in self.algorithm.batches(trained, times, self.epoch, self.weights):
            self._optimizer_step(trained, batch)
        self.algorithm.follow(self.step)
        self.epoch += 1
        waited, end = self.scorer.waited, perf_counter()
        self.seconds = {"rollout": rolled - start - waited, "waiting for rewards": waited, "training": end - rolled}
        self.history.append(self._numbers(rollout))
        return self.history[-1]

    def _optimizer_step(self, rollout: Rollout, batch: StepBatch) -> None:
        meter, limit = self.algorithm.meter, self.optimizer.max_grad_norm
        meter.step(batch.counts)
        for micro_batch in batch.micro_batches:
            self._micro_step(rollout, micro_batch, batch)
        probed = bool(self.config.balance.probe) and not self.config.summed
        self.rate.set(self.optimizer, self.step)
        norm = take_step(self.optimizer, self.scaler, probed)
        if norm is not None:
            meter.norm(norm, math.inf if limit is None else limit)
        # An epoch shows its last step with rows of its own, which under ``refresh_every`` may be any of its steps.
        report = self.optimizer.report
        if report is not None and (report.refreshed or self._shown is None or not self._shown.refreshed):
            self._shown = report
        self.optimizer.zero_grad()
        self.step += 1
        self.adapters.copy("default", "average", average_decay(self.step))

    def _micro_step(self, rollout: Rollout, micro: MicroBatch, batch: StepBatch) -> None:
        """Accumulate the gradients of one micro-batch: a loss per reward, and a shared one that no reward owns."""
        x_0, conditions = rollout.take(micro.index)
        epsilon, t = noise(micro.seeds, x_0.shape[1:]).to(x_0), micro.t.to(x_0)
        time = t.view(-1, *[1] * (x_0.dim() - 1))
        x_t = (1 - time) * x_0 + time * epsilon
        noised = Noised(x_0, x_t, epsilon, t, conditions)
        losses, shared = self.algorithm.loss(noised, micro, batch, self.optimizer.wants_shared)
        self.algorithm.meter.losses(losses)
        self.optimizer.backward(losses, shared=shared, scaler=self.scaler)

    def evaluate(self) -> Evaluation:
        """Held-out images and scores of the averaged policy; the scores are kept in ``evaluations``, once per epoch."""
        result = evaluate(self.backbone, self.adapters, "average", self.scorer, self.test_prompts, self.config)
        if self.evaluations[-1]["epoch"] != self.epoch:
            self.record(result)
        return result

    def record(self, evaluation: Evaluation) -> None:
        """Append an evaluation's summary to ``evaluations``; the first is the pretrained model's."""
        summary = evaluation.summary()
        base = self.evaluations[0] if self.evaluations else summary
        score = composite(summary, base, evaluation.names)
        own = {"epoch": float(self.epoch), "step": float(self.step), "composite": score}
        self.evaluations.append(summary | own)

    def _numbers(self, rollout: Rollout) -> dict[str, float]:
        means = rollout.scores.nanmean(1).tolist()
        numbers = {f"train/{name}": value for name, value in zip(self.config.rewards, means, strict=True)}
        numbers |= self.algorithm.meter.read(self.optimizer.rewards)
        numbers["lr"] = float(self.optimizer.param_groups[0]["lr"])
        counters = {"step": float(self.step), "epoch": float(self.epoch)}
        shown, last = self._shown, self.optimizer.report
        if shown is None or last is None:
            return numbers | counters
        # What is counted since the start is counted to the end of the epoch.
        counted = {name: getattr(last, name) for name in ("skipped", "nonfinite", "dropped_count")}
        return numbers | replace(shown, **counted).scalars() | counters

    def state_dict(self) -> dict[str, object]:
        """Everything that the next epoch depends on, and the numbers so far; the same on all ranks."""
        return {
            "config": self.config.as_dict(),
            "epoch": self.epoch,
            "step": self.step,
            "adapters": self.sharding.full(self.adapters.state_dict()),
            "algorithm": self.algorithm.state_dict(),
            "optimizer": self.sharding.optimizer_state(self.optimizer),
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
            "history": self.history,
            "evaluations": self.evaluations,
        }

    def load_state_dict(self, state: dict) -> None:
        """Continue a saved run; ``ValueError`` if it was made with other settings."""
        self.config.check_same(state["config"])
        self.adapters.load_state_dict(state["adapters"], self.sharding.load)
        self.algorithm.load_state_dict(state["algorithm"])
        self.sharding.load_optimizer_state(self.optimizer, state["optimizer"])
        if self.scaler is not None:
            self.scaler.load_state_dict(state["scaler"])
        self.epoch, self.step = state["epoch"], state["step"]
        self.history, self.evaluations = state["history"], state["evaluations"]
