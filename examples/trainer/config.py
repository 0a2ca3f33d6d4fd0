"""The settings of a run."""

from dataclasses import asdict, dataclass
from typing import Any

METHODS = ("sum", "gdpo", "equal", "marble")
OPTIMIZERS = ("sgd", "adamw")


@dataclass(frozen=True)
class Config:
    """One training run; every default is the demo's.

    ``method``: ``sum`` adds the raw rewards, ``gdpo`` z-scores each reward per prompt and adds (arXiv 2601.05242),
    ``equal`` gives each reward's unit gradient a fixed weight, ``marble`` the min-norm weights.
    ``weights`` (per reward) multiply the rewards of ``sum`` and the z-scores of ``gdpo``; they are the fixed α of
    ``equal`` and the prior of ``marble``. ``prompts`` (per kind: general, text, composition) × ``images`` rollouts make
    one optimizer step of ``timesteps`` micro-steps. ``optimizer`` is ``sgd`` with momentum 0.9, whose step follows the
    combined gradient, or ``adamw``, whose step is another vector; ``max_grad_norm`` is below the usual norm, so that
    all methods take steps of the same length. ``beta`` and ``kl`` are DiffusionNFT's β and λ_KL. ``refresh_every`` and
    ``ema`` are Marble's; with ``sum`` and ``gdpo``, the rewards' gradients are measured on every ``refresh_every``-th
    step.
    """

    method: str = "marble"
    seed: int = 0
    steps: int = 24
    weights: tuple[float, ...] = (1.0, 2.0, 1.0, 1.0, 1.0)
    prompts: tuple[int, int, int] = (3, 6, 6)
    images: int = 8
    sampling_steps: int = 10
    timesteps: int = 2
    optimizer: str = "sgd"
    lr: float = 0.75
    rank: int = 16
    beta: float = 0.1
    kl: float = 0.1
    refresh_every: int = 1
    ema: float = 0.0
    max_grad_norm: float = 0.02
    eval_prompts: int = 80
    eval_every: int = 12
    track_step: bool = True

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"method must be one of {METHODS}, got {self.method!r}")
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer must be one of {OPTIMIZERS}, got {self.optimizer!r}")
        if len(self.weights) != 5 or min(self.weights) < 0 or not sum(self.weights):
            raise ValueError(f"weights must be five numbers >= 0, not all zero, got {self.weights}")
        for name in ("steps", "images", "sampling_steps", "timesteps", "rank", "eval_prompts", "eval_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if len(self.prompts) != 3 or min(self.prompts) < 0 or not sum(self.prompts):
            raise ValueError(f"prompts must be three counts (general, text, composition), got {self.prompts}")
        if self.images < 2:
            raise ValueError("images must be at least 2: an advantage compares the images of one prompt")
        if self.timesteps > self.sampling_steps:
            raise ValueError(f"timesteps ({self.timesteps}) are drawn from the {self.sampling_steps} sampling_steps")
        if min(self.lr, self.beta, self.max_grad_norm) <= 0 or self.kl < 0:
            raise ValueError("lr, beta and max_grad_norm must be positive, kl must not be negative")

    def as_dict(self) -> dict[str, Any]:
        """The settings as plain values."""
        return asdict(self)
