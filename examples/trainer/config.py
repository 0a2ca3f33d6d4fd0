"""A run's config: presets, YAML files and ``section.key=value`` overrides, checked before any model is loaded."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from backbones.settings import ModelSettings
from backbones.solvers import SOLVERS
from prompts.sources import SourceSettings
from rewards.registry import FACTORIES, RewardSettings

from .config_files import merged, read
from .crd_settings import CrdSettings
from .differences import differences
from .settings import (
    BalanceSettings,
    EvaluationSettings,
    LogSettings,
    LoraSettings,
    LossSettings,
    OptimizerSettings,
    RolloutSettings,
    SliderSettings,
    Stage,
    require,
)

ALGORITHMS = ("nft", "crd", "slider")
METHODS = ("sum", "gdpo", "losses", "equal", "marble")
PARALLEL = ("ddp", "fsdp2")


@dataclass
class Config:
    """One training run of ``epochs`` epochs.

    ``algorithm``: ``nft`` is DiffusionNFT, ``crd`` Centered Reward Distillation, ``slider`` ParetoSlider (see
    ``SliderSettings``). ``method``: ``sum`` adds the raw rewards, ``gdpo`` z-scores each reward per prompt and adds
    (arXiv 2601.05242), ``losses`` takes the weighted mean of the rewards' own losses, each a mean over the samples that
    its reward applies to, ``equal`` gives each reward's unit gradient a fixed weight, ``marble`` the min-norm weights.
    A reward's ``weight`` multiplies it in ``sum``, its z-score in ``gdpo``, its loss in ``losses``, where those without
    samples in a step are left out of the mean; it is the fixed α of ``equal`` and the prior of ``marble``. A reward of
    weight 0 is not trained: it is scored and evaluated only.
    ``stages`` run one after the other and replace ``epochs``. ``parallel``: how several ranks share the work.
    """

    algorithm: str = "nft"
    method: str = "marble"
    seed: int = 0
    epochs: int = 24
    parallel: str = "ddp"
    model: ModelSettings = field(default_factory=ModelSettings)
    sources: dict[str, SourceSettings] = field(default_factory=dict)
    rewards: dict[str, RewardSettings] = field(default_factory=dict)
    stages: list[Stage] = field(default_factory=list)
    lora: LoraSettings = field(default_factory=LoraSettings)
    rollout: RolloutSettings = field(default_factory=RolloutSettings)
    loss: LossSettings = field(default_factory=LossSettings)
    crd: CrdSettings = field(default_factory=CrdSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    balance: BalanceSettings = field(default_factory=BalanceSettings)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
    log: LogSettings = field(default_factory=LogSettings)
    slider: SliderSettings = field(default_factory=SliderSettings)

    def __post_init__(self) -> None:
        require(self.algorithm in ALGORITHMS, f"algorithm must be one of {ALGORITHMS}, got {self.algorithm!r}")
        require(self.method in METHODS, f"method must be one of {METHODS}, got {self.method!r}")
        require(self.parallel in PARALLEL, f"parallel must be one of {PARALLEL}, got {self.parallel!r}")
        require(self.rollout.solver in SOLVERS, f"rollout.solver is one of {SOLVERS}, got {self.rollout.solver!r}")
        require(self.epochs >= 1, f"epochs must be at least 1, got {self.epochs}")
        require(self.seed >= 0, f"seed must be a whole number >= 0, got {self.seed}")
        require(bool(self.sources) and bool(self.rewards), "a config needs at least one of sources and of rewards")
        self._check_weights()
        self._check_stages()
        require(
            self.loss.timesteps <= self.rollout.steps,
            f"loss.timesteps ({self.loss.timesteps}) are drawn from the {self.rollout.steps} rollout.steps",
        )
        require(
            self.optimizer.warmup < self.total_steps,
            f"optimizer.warmup ({self.optimizer.warmup}) must be below the run's {self.total_steps} optimizer steps, "
            "epochs x optimizer.steps_per_epoch",
        )
        if self.algorithm == "crd":
            self._check_groups()
        else:
            require(
                self.rollout.images % self.optimizer.steps_per_epoch == 0,
                f"optimizer.steps_per_epoch ({self.optimizer.steps_per_epoch}) must divide rollout.images "
                f"({self.rollout.images}): each step takes an equal share of every prompt's images",
            )
        if self.loss.std == "auto":
            self.loss.std = "global" if self.algorithm == "crd" else "group"
        require(
            not (self.balance.probe and self.balance.refresh_every > 1),
            "balance.probe solves on every step: set balance.refresh_every=1, or balance.probe=0",
        )
        if self.balance.balancer:
            self._check_balancer()
        if self.algorithm == "slider":
            self._check_slider()

    def _check_balancer(self) -> None:
        used = {settings.weight for settings in self.rewards.values() if settings.weight}
        require(
            self.method == "marble" and self.algorithm != "slider",
            f"balance.balancer replaces method marble's min-norm problem, not {self.method!r}, nor a slider's buckets",
        )
        require(
            len(used) == 1 and not self.balance.floor,
            "weights and balance.floor shape the min-norm problem: with balance.balancer give all rewards the same "
            "weight (0 leaves one out) and set balance.floor to 0",
        )

    def _check_weights(self) -> None:
        for name, settings in self.rewards.items():
            known = ", ".join(FACTORIES)
            require(bool(settings.url) or name in FACTORIES, f"unknown reward {name!r}: known are {known}")
            require(settings.weight >= 0, f"rewards.{name}.weight must not be negative, got {settings.weight}")
        require(any(settings.weight for settings in self.rewards.values()), "all rewards have weight 0")
        require(
            all(source.weight >= 0 for source in self.sources.values())
            and any(s.weight for s in self.sources.values()),
            "the weights of the sources must be >= 0 and not all 0",
        )

    def _check_groups(self) -> None:
        settings, images = self.optimizer, self.rollout.images
        require(
            self.rollout.prompts % settings.steps_per_epoch == 0,
            f"optimizer.steps_per_epoch ({settings.steps_per_epoch}) must divide rollout.prompts "
            f"({self.rollout.prompts}): with crd each step takes all images of its prompts",
        )
        require(
            settings.micro_batch == 0 or settings.micro_batch >= images,
            f"optimizer.micro_batch ({settings.micro_batch}) must hold the {images} rollout.images of a prompt (or be "
            "0, for all): crd compares them in one forward",
        )

    def _check_stages(self) -> None:
        for number, stage in enumerate(self.stages):
            unknown = sorted({*stage.rewards} - {*self.rewards}) + sorted({*stage.sources} - {*self.sources})
            require(not unknown, f"stages[{number}] names {unknown}, which are no rewards or sources of this config")
            shares = stage.sources.values()
            usable = not shares or (all(share >= 0 for share in shares) and any(shares))
            require(usable, f"stages[{number}].sources must be weights >= 0 and not all 0, got {stage.sources}")
        foreign = sorted({name for group in self.balance.groups.values() for name in group} - {*self.rewards})
        require(not foreign, f"balance.groups names {foreign}, which are no rewards of this config")

    def _check_slider(self) -> None:
        slots, prompts = self.slider.slots, self.rollout.prompts
        require(len(self.rewards) >= 2, "a slider needs at least two rewards to choose between")
        require(
            self.method in ("gdpo", "marble"),
            "a slider takes method gdpo (scalarised with ω) or marble (a min-norm problem per bucket of ω), got "
            f"{self.method!r}, which gives every sample the same weights",
        )
        require(
            prompts % slots == 0,
            f"slider.slots ({slots}) must divide rollout.prompts ({prompts}), which counts the groups (prompt, ω)",
        )
        require(self.rollout.guidance == 1, "a slider is sampled without guidance: set rollout.guidance to 1")
        require(self.parallel == "ddp", "a slider's conditioning is not sharded: set parallel to ddp")
        require(not self.stages, "a slider takes no stages: ω says which rewards count")
        buckets = self.method == "marble"
        require(not (buckets and self.balance.groups), "a slider's buckets are its groups: leave balance.groups out")
        require(not (buckets and self.balance.floor), "a slider's buckets have ω as prior: set balance.floor to 0")

    @property
    def distinct_prompts(self) -> int:
        """The prompts of an epoch; a slider's are rolled out ``slider.slots`` times each."""
        return self.rollout.prompts // (self.slider.slots if self.algorithm == "slider" else 1)

    @property
    def summed(self) -> bool:
        """Whether the rewards are summed, their gradients only measured."""
        return self.method in ("sum", "gdpo", "losses")

    @property
    def total_epochs(self) -> int:
        """The epochs of the run, over all stages."""
        return sum(stage.epochs for stage in self.stages) or self.epochs

    @property
    def total_steps(self) -> int:
        """The optimizer steps of the run."""
        return self.total_epochs * self.optimizer.steps_per_epoch

    def stage(self, epoch: int) -> Stage:
        """The stage that ``epoch`` belongs to; without stages, one of all rewards."""
        for stage in self.stages:
            if epoch < stage.epochs:
                return stage
            epoch -= stage.epochs
        return Stage(max(self.total_epochs, 1), list(self.rewards))

    def as_dict(self) -> dict[str, Any]:
        """The settings as plain values."""
        return asdict(self)

    def check_same(self, saved: dict[str, Any]) -> None:
        """Raise ``ValueError`` if a run with the settings ``saved`` cannot continue with these.

        Its length, what it shows, and where and in what portions it computes may change: that changes its numbers by
        rounding at most (with ``probe``, other samples are the first ones of a step). A setting that ``saved`` does not
        have yet counts as its default.
        """
        changed = differences(self.as_dict(), _completed(saved))
        require(not changed, f"the checkpoint belongs to a run with other settings ({'; '.join(changed)})")


def load_config(name: str, overrides: Sequence[str] = ()) -> Config:
    """The config ``name``, a preset or the path of a YAML file, with overrides "section.key=value".

    A file may start from another one with ``base: name``; a reward or source that is null in a file or override is left
    out of what that brings. Raises ``ValueError`` for an unknown file, key or value.
    """
    try:
        return _to_config(merged(read(name), OmegaConf.from_dotlist(list(overrides))))
    except (OmegaConfBaseException, yaml.YAMLError, TypeError) as error:
        # omegaconf raises a TypeError for a null in place of a list's member.
        raise ValueError(f"{name}: {error}") from error


def _to_config(given: DictConfig | dict[str, Any]) -> Config:
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), given))  # type: ignore[return-value]


def _completed(saved: dict[str, Any]) -> dict[str, Any]:
    """Settings with the defaults of those that did not exist when they were saved."""
    try:
        return _to_config(saved).as_dict()
    except (OmegaConfBaseException, ValueError):
        # They hold what is no setting any more, or no value of one: as they are, a comparison names it.
        return saved
