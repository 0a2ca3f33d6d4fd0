"""The training loop: rollouts by the old policy, one balanced DiffusionNFT step per batch."""

import torch
from torch import Tensor

import marble_opt
from tiny.model import TinyModel
from tiny.rewards import REWARDS

from .adapters import Adapters, average_decay, old_decay
from .config import Config
from .evaluation import Evaluation, evaluate
from .prompts import training_prompts
from .rollout import Rollout, advantages, gdpo_advantages, roll_out, summed_advantages

_MIXED = {"sum": summed_advantages, "gdpo": gdpo_advantages}
_USED_SHARE = 0.99


def base_optimizer(parameters: list[Tensor], config: Config) -> torch.optim.Optimizer:
    """The optimizer that Marble wraps."""
    if config.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=config.lr, momentum=0.9)
    return torch.optim.AdamW(parameters, lr=config.lr, weight_decay=1e-4)


def balancing(config: Config) -> dict[str, object]:
    """Marble's options for a method; sums are applied as the shared term, the rewards' gradients only measured."""
    weights = dict(zip(REWARDS, config.weights, strict=True))
    if config.method == "marble":
        return {"weights": weights}
    return {"balancer": weights if config.method == "equal" else "observe"}


class Trainer:
    """One run. ``history`` has a dictionary of numbers per step; everything is a function of the config.

    Args:
        config: the settings.
        model: the pretrained model; adapters are added to it.
    """

    def __init__(self, config: Config, model: TinyModel) -> None:
        self.config, self.model = config, model
        self.adapters = Adapters(model.transformer, config.rank, config.seed)
        parameters = list(self.adapters.parameters("default").values())
        self.optimizer = marble_opt.Marble(
            base_optimizer(parameters, config),
            rewards=REWARDS,
            **balancing(config),
            refresh_every=config.refresh_every,
            ema=config.ema,
            max_grad_norm=config.max_grad_norm,
            track_step=config.track_step,
            model=model.transformer,
        )
        self.step = 0
        self.history: list[dict[str, float]] = []
        self.evaluations: list[dict[str, float]] = []

    def train_step(self) -> dict[str, float]:
        """Roll out, make one optimizer step, move the old and the average policy; returns the step's numbers."""
        config = self.config
        # All randomness of a step comes from (seed, step): a resumed run repeats it without saved generators.
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + self.step)
        prompts = training_prompts(config.seed, self.step, config.prompts)
        rollout = roll_out(self.model, self.adapters, prompts, config.images, config.sampling_steps, generator)
        times = self._training_times(len(rollout.prompt_ids), generator)
        for t in times:
            noise = torch.randn(rollout.x_0.shape, generator=generator).to(rollout.x_0)
            self._micro_step(rollout, t.to(rollout.x_0), noise)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        self.adapters.copy("default", "old", old_decay(self.step))
        self.adapters.copy("default", "average", average_decay(self.step))
        numbers = self._numbers(rollout)
        self.history.append(numbers)
        return numbers

    def evaluate(self) -> Evaluation:
        """Held-out images and scores of the averaged policy; the scores are kept in ``evaluations``, once per step."""
        result = evaluate(self.model, self.adapters, "average", self.config)
        if not self.evaluations or self.evaluations[-1]["step"] != self.step:
            self.evaluations.append(result.summary() | {"step": float(self.step)})
        return result

    def _training_times(self, batch: int, generator: torch.Generator) -> Tensor:
        """[timesteps, B]: per sample a random choice, without repetition, of the rollout's first 99 % of times."""
        times = self.model.timesteps(self.config.sampling_steps).cpu()
        times = times[: max(int(len(times) * _USED_SHARE), self.config.timesteps)]
        order = torch.rand(batch, len(times), generator=generator).argsort(1)
        return times[order[:, : self.config.timesteps]].T

    def _micro_step(self, rollout: Rollout, t: Tensor, noise: Tensor) -> None:
        """Accumulate the gradients of one timestep per sample."""
        config, time = self.config, t.view(-1, 1, 1, 1)
        x_t = (1 - time) * rollout.x_0 + time * noise
        with self.adapters.using("old"):
            old = self.model.velocity(x_t, t, rollout.embeddings)
        with self.adapters.using(None):
            reference = self.model.velocity(x_t, t, rollout.embeddings)
        prediction = self.model.velocity(x_t, t, rollout.embeddings)

        def loss(values: Tensor) -> marble_opt.SeparableLoss:
            counts = (~values.isnan()).sum(1) * config.timesteps
            return marble_opt.losses.diffusion_nft(
                prediction, old, x_t, rollout.x_0, t, values.to(x_t), beta=config.beta, counts=counts
            )

        shared = config.kl * (prediction - reference).square().mean() / config.timesteps
        if config.method in _MIXED:
            shared = shared + loss(_MIXED[config.method](rollout, torch.tensor(config.weights))).losses().sum()
        self.optimizer.backward(loss(advantages(rollout)), shared=shared)

    def _numbers(self, rollout: Rollout) -> dict[str, float]:
        means = rollout.scores.nanmean(1).tolist()
        numbers = {f"train/{name}": value for name, value in zip(REWARDS, means, strict=True)}
        report = self.optimizer.report
        return numbers | (report.scalars() if report is not None else {}) | {"step": float(self.step)}

    def state_dict(self) -> dict[str, object]:
        """Everything that the next step depends on, and the numbers so far."""
        return {
            "config": self.config.as_dict(),
            "step": self.step,
            "adapters": self.adapters.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "history": self.history,
            "evaluations": self.evaluations,
        }

    def load_state_dict(self, state: dict) -> None:
        """Continue a saved run; ``ValueError`` if it was made with other settings."""
        saved, own = dict(state["config"]), self.config.as_dict()
        changed = [
            f"{k}: saved {saved.get(k)!r}, now {v!r}" for k, v in own.items() if saved.get(k) != v and k != "steps"
        ]
        if changed:
            raise ValueError(f"the checkpoint belongs to a run with other settings ({'; '.join(changed)})")
        self.adapters.load_state_dict(state["adapters"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.history, self.evaluations = state["step"], state["history"], state["evaluations"]
