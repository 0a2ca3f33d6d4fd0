"""The variants that question 2 compares: Marble's options, ways to smooth, and base optimizers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import marble_opt

from .flow_task import Dials
from .flow_world import Mixing, OptimizerLike, Plain
from .rates import RATES
from .smoothing_optimizers import CrossFitted, RewardMomentum, SmoothedGram

PLAIN = "marble"
RHO, BETA1 = 0.7, 0.9
_MIN_NORM = "min-norm"


def _mean_of_rows(gram: Tensor) -> Tensor:
    return torch.full_like(gram[0], 1 / len(gram))


def _adam(beta1: float) -> Callable[[list[Tensor], float], Optimizer]:
    return lambda parameters, lr: torch.optim.AdamW(parameters, lr=lr, betas=(beta1, 0.999), weight_decay=0.0)


BASES: dict[str, Callable[[list[Tensor], float], Optimizer]] = {
    "adamw": _adam(BETA1),
    "adam0": _adam(0.0),
    "sgd": lambda parameters, lr: torch.optim.SGD(parameters, lr=lr),
}
"""Without weight decay, so that drift is KL's alone."""


@dataclass(frozen=True)
class Variant:
    """``options`` of Marble around the base optimizer ``base``; ``smoothing``: "gram", "momentum" or "crossfit" of
    smoothing_optimizers.py instead, with ``options`` of its own; ``anchor`` of DiffusionNFT; ``gdpo``: the base
    optimizer on GDPO's sum; ``tuned``: whose learning rate it has (rates.py).
    """

    label: str
    options: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    base: str = "adamw"
    smoothing: str = ""
    anchor: str = "per_reward"
    gdpo: bool = False
    tuned: str = PLAIN

    @property
    def lr(self) -> float:
        """The learning rate, but for a condition that changes it."""
        return RATES[self.tuned]

    @property
    def mixing(self) -> Mixing:
        """For ``flow_world.train``."""
        return "gdpo" if self.gdpo else "none"

    def optimizer(self, model: nn.Module, names: Sequence[str], dials: Dials) -> OptimizerLike:
        """A fresh optimizer with the learning rate of ``dials``."""
        base = BASES[self.base](list(model.parameters()), dials.lr)
        if self.gdpo:
            return Plain(base)
        if self.smoothing == "gram":
            return SmoothedGram(base, names, model, RHO)
        if self.smoothing == "momentum":
            return RewardMomentum(base, names, BETA1)
        if self.smoothing == "crossfit":
            return CrossFitted(base, names, model, dials.images, **self.options)
        return marble_opt.Marble(base, names, model=model, **self.options)


SUM = MappingProxyType({"balancer": _mean_of_rows, "normalize": False})

SMOOTHING = {
    PLAIN: Variant("no smoothing (Marble)"),
    "ema alpha": Variant(f"EMA of α, ρ = {RHO}", {"ema": RHO}),
    "ema gram": Variant(f"EMA of the Gram matrix, ρ = {RHO}", smoothing="gram"),
    "reward momentum": Variant(
        f"momentum per reward, β₁ = {BETA1}", base="adam0", smoothing="momentum", tuned="reward momentum"
    ),
    "crossfit": Variant("cross-fitted cosines", smoothing="crossfit"),
    "crossfit norms": Variant("cross-fitted cosines and norms", {"signal": True}, smoothing="crossfit"),
    "metric adam": Variant("Adam's metric", {"metric": "adam"}),
    "guard": Variant("step guard", {"guard": "step"}),
    "no momentum": Variant("no smoothing, β₁ = 0", base="adam0", tuned="min-norm, adam0"),
    "sum": Variant("mean of the rewards' own losses", SUM, tuned="sum, adamw"),
    "gdpo": Variant("GDPO", gdpo=True, tuned="gdpo"),
}

PARTS = (
    {
        PLAIN: Variant("Marble"),
        "equal": Variant("equal weights instead of the QP", {"balancer": "equal"}),
        "normalize off": Variant("raw gradients in the QP", {"normalize": False}),
        "anchor shared": Variant("anchor outside the QP", anchor="shared"),
        "refresh 10, ema 0.7": Variant("every 10 steps, ρ = 0.7", {"refresh_every": 10, "ema": 0.7}),
        "prior 3 general0": Variant("weight 3 on general0", {"weights": {"general0": 3.0}}),
        "prior 3 specialist0": Variant("weight 3 on specialist0", {"weights": {"specialist0": 3.0}}),
    }
    | {f"ema {rho}": Variant(f"EMA of α, ρ = {rho}", {"ema": rho}) for rho in (0.5, 0.9, 0.99)}
    | {f"refresh {n}": Variant(f"solved every {n} steps", {"refresh_every": n}) for n in (2, 5, 10, 50)}
    | {f"floor {floor}": Variant(f"floor {floor}", {"floor": floor}) for floor in (0.05, 0.1, 0.2)}
)


def _factors() -> dict[str, Variant]:
    found = {}
    for base in BASES:
        for mix, options in (("sum", SUM), (_MIN_NORM, {})):
            name = f"{mix}, {base}"
            found[name] = Variant(name, options, base, tuned=PLAIN if name == f"{_MIN_NORM}, adamw" else name)
    for base in ("adam0", "adamw"):
        tuned = found[f"{_MIN_NORM}, {base}"].tuned
        found[f"metric adam, {base}"] = Variant(
            f"min-norm in Adam's metric, {base}", {"metric": "adam"}, base, tuned=tuned
        )
    return found


FACTORS = _factors()
