"""The sections of a config; every default is the tiny demo's."""

from dataclasses import dataclass, field

from .decay import check_schedule
from .learning_rate import SCHEDULES

OPTIMIZERS = ("sgd", "adamw")
SCALARISATIONS = ("linear", "tchebycheff")
KINDS = ("vertex", "edge", "interior")


def require(condition: bool, message: str) -> None:
    """Raise ``ValueError(message)`` unless ``condition`` holds."""
    if not condition:
        raise ValueError(message)


@dataclass
class LoraSettings:
    """``rank`` r and ``alpha`` α of the adapters (the update is α / r · B A); α = 0 means 2 r, as in the recipe."""

    rank: int = 16
    alpha: int = 0

    def __post_init__(self) -> None:
        require(self.rank >= 1 and self.alpha >= 0, f"lora.rank must be at least 1 and lora.alpha >= 0, got {self}")


@dataclass
class RolloutSettings:
    """``prompts`` × ``images`` samples of an epoch, over all ranks; ``steps`` of ``solver`` ("euler", or "dpm2", second
    order) with classifier-free ``guidance`` (1: off). ``batch``: samples drawn at once on a rank, 0 for all."""

    prompts: int = 15
    images: int = 8
    steps: int = 10
    solver: str = "euler"
    guidance: float = 1.0
    batch: int = 0

    def __post_init__(self) -> None:
        require(self.prompts >= 1 and self.steps >= 1, "rollout.prompts and rollout.steps must be at least 1")
        require(self.images >= 2, "rollout.images must be at least 2: an advantage compares the images of one prompt")
        require(self.batch >= 0, "rollout.batch must be positive, or 0 for all samples at once")


@dataclass
class LossSettings:
    """What the algorithms share: ``adv_clip``, the largest advantage; ``timesteps`` of the rollout's times per sample
    (CRD: per prompt) and epoch, drawn without repetition (0: the first 99 %, as in the recipes); ``std``: "group" or
    "global", of ``group_advantages``, or "auto": the algorithm's own, "global" for CRD and "group" else.

    DiffusionNFT alone: ``beta``, λ_KL = ``kl``, and ``anchor``: "per_reward", the paper's, or "shared" (see
    ``marble_opt.losses.diffusion_nft``). ``old``: how the rollout policy follows the trained one, old ← η old +
    (1 − η) θ after an epoch: "copy" η = 0; "slow" min(0.001 step, 0.5); "medium" 0 for 75 steps, then
    min(0.0075 (step − 75), 0.999); any other of ``decay.SCHEDULES``, or a formula (``decay.decay_at``).
    """

    beta: float = 0.1
    kl: float = 0.1
    adv_clip: float = 5.0
    timesteps: int = 2
    anchor: str = "per_reward"
    std: str = "auto"
    old: str = "slow"

    def __post_init__(self) -> None:
        require(self.beta > 0 and self.adv_clip > 0 and self.kl >= 0, f"loss: beta, adv_clip > 0, kl >= 0, got {self}")
        require(self.timesteps >= 0, "loss.timesteps must be positive, or 0 for 99 % of the rollout's")
        require(self.anchor in ("per_reward", "shared"), f"loss.anchor is per_reward or shared, got {self.anchor!r}")
        require(self.std in ("group", "global", "auto"), f"loss.std must be group or global or auto, got {self.std!r}")
        check_schedule("loss.old", self.old)


@dataclass
class OptimizerSettings:
    """``name``: "sgd" with momentum 0.9, whose step follows the combined gradient, or "adamw", whose step is another
    vector. ``max_grad_norm`` clips the combined gradient. ``steps_per_epoch`` optimizer steps share out the images of
    every prompt (CRD: the prompts, each with all of its images); a step accumulates micro-batches of ``micro_batch``
    samples (0: all of a rank's; CRD: as many whole prompts as fit). ``lr`` is raised from 0 over ``warmup`` optimizer
    steps; then ``schedule`` keeps it ("constant") or lowers it to 0 at the run's end ("linear", "cosine"): its length
    follows ``epochs``, and in a run that is resumed with more of them the rate is that of the longer run from there."""

    name: str = "sgd"
    lr: float = 0.75
    weight_decay: float = 1e-4
    max_grad_norm: float = 0.02
    steps_per_epoch: int = 1
    micro_batch: int = 0
    schedule: str = "constant"
    warmup: int = 0

    def __post_init__(self) -> None:
        require(self.schedule in SCHEDULES, f"optimizer.schedule is one of {SCHEDULES}, got {self.schedule!r}")
        require(self.warmup >= 0, f"optimizer.warmup must not be negative, got {self.warmup}")
        require(self.name in OPTIMIZERS, f"optimizer.name must be one of {OPTIMIZERS}, got {self.name!r}")
        require(self.lr > 0 and self.max_grad_norm > 0, "optimizer.lr and optimizer.max_grad_norm must be positive")
        require(
            self.steps_per_epoch >= 1 and self.micro_batch >= 0, "optimizer: steps_per_epoch >= 1, micro_batch >= 0"
        )


@dataclass
class BalanceSettings:
    """Options of ``marble_opt.Marble`` by the same names; ``probe`` 0 and ``guard`` "" are off. With the methods "sum",
    "gdpo" and "losses" the rewards' gradients are only measured, on every ``refresh_every``-th step; ``probe`` and
    ``shared_every`` have no effect then, since the sum itself is a shared term."""

    refresh_every: int = 1
    ema: float = 0.0
    floor: float = 0.0
    probe: float = 0.0
    shared_every: int = 1
    guard: str = ""
    fused: bool = False
    track_step: bool = True
    balancer: str = ""
    normalize: bool = True
    groups: dict[str, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require(self.refresh_every >= 1 and self.shared_every >= 1, "balance.refresh_every and shared_every are >= 1")
        require(0 <= self.ema < 1, f"balance.ema must be in [0, 1), got {self.ema}")
        require(0 <= self.probe < 1, f"balance.probe must be in [0, 1), 0 for off, got {self.probe}")
        require(self.guard in ("", "step"), f'balance.guard must be "step", or "" for none, got {self.guard!r}')


@dataclass
class EvaluationSettings:
    """``prompts`` held-out prompts per source, with fixed noise, on every ``every``-th epoch and at the end, with
    ``steps`` solver steps (0: the rollout's); ``batch`` samples at once; ``shown`` per source are kept as images."""

    prompts: int = 80
    every: int = 12
    steps: int = 0
    batch: int = 120
    shown: int = 3

    def __post_init__(self) -> None:
        least = min(self.prompts, self.every, self.batch, self.shown)
        require(least >= 1, "evaluation: prompts, every, batch and shown are at least 1")
        require(self.steps >= 0, "evaluation.steps must not be negative")


@dataclass
class LogSettings:
    """Besides metrics.jsonl: ``tensorboard`` event files, ``wandb`` a Weights & Biases project ("": none)."""

    tensorboard: bool = False
    wandb: str = ""


@dataclass
class Stage:
    """``epochs`` on some rewards only: all others sit out. ``sources`` gives other weights to the prompts, {} keeps
    them."""

    epochs: int = 1
    rewards: list[str] = field(default_factory=list)
    sources: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require(self.epochs >= 1 and bool(self.rewards), "a stage needs epochs >= 1 and at least one reward")


@dataclass
class SliderSettings:
    """ParetoSlider (arXiv 2604.20816): a model conditioned on a preference ω on the simplex of the rewards.

    ``slots``: groups of each prompt, every one with an ω of its own and ``rollout.images`` images; ``rollout.prompts``
    counts the groups. ``mixture``: shares of ω drawn at a vertex, on an edge, in the interior; {} is the paper's (10 %
    and 90 % interior for two rewards, 50 %, 35 % and 15 % for more). ``frequencies`` of the conditioning's features;
    ``lr_scale``: its learning rate relative to the LoRA's, ``optimizer.lr``.
    ``scalarisation`` of method gdpo: "linear", or "tchebycheff", smooth with ``mu`` in units of score (small: the worst
    reward counts), the ideal point ``margin`` above the best scores seen, and mean scores of regions of ω smoothed by
    ``means_decay``. ``divisions`` of an edge of the simplex make these regions, the buckets of method marble: for two
    rewards ``divisions`` + 1 of them.
    """

    slots: int = 3
    mixture: dict[str, float] = field(default_factory=dict)
    frequencies: int = 6
    lr_scale: float = 1.0
    scalarisation: str = "linear"
    mu: float = 0.1
    margin: float = 0.0
    means_decay: float = 0.9
    divisions: int = 4

    def __post_init__(self) -> None:
        require(min(self.slots, self.frequencies, self.divisions) >= 1, "slider: slots, frequencies, divisions >= 1")
        require(
            self.scalarisation in SCALARISATIONS,
            f"slider.scalarisation must be one of {SCALARISATIONS}, got {self.scalarisation!r}",
        )
        require(self.lr_scale > 0, f"slider.lr_scale must be positive, got {self.lr_scale}")
        require(self.mu > 0 and self.margin >= 0, f"slider: mu > 0, margin >= 0, got {self.mu} and {self.margin}")
        require(0 <= self.means_decay < 1, f"slider.means_decay must be in [0, 1), got {self.means_decay}")
        unknown, total = set(self.mixture) - set(KINDS), sum(self.mixture.values())
        require(
            not unknown and (not self.mixture or (min(self.mixture.values()) >= 0 and abs(total - 1) < 1e-9)),
            f"slider.mixture gives shares of sum 1 to {KINDS}, got {self.mixture}",
        )
