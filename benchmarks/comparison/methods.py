"""The methods that the questions compare, as options of ``marble_opt.Marble``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch

import marble_opt

from . import balancers

SUM = "sum"


@dataclass(frozen=True)
class Method:
    """``options`` of Marble; ``balancer``: a function of :mod:`balancers` that makes a fresh one; ``summed``: what is
    applied is a sum, the rewards' gradients are only measured; ``needs`` packages.

    With rewards (not losses) there are two sums: "sum" adds raw rewards before advantages are taken, "gdpo" adds the
    rewards' own advantages.
    """

    label: str
    options: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    balancer: str = ""
    summed: bool = False
    needs: Sequence[str] = ()


_RAW = {"normalize": False}
# The peers get raw gradients, as published; only the Gram matrix's scale is taken out (see balancers.py).
METHODS: dict[str, Method] = {
    SUM: Method("weighted sum", {"balancer": "observe"}, summed=True),
    "gdpo": Method("GDPO", {"balancer": "observe"}, summed=True),
    "equal": Method("equal α on unit gradients", {"balancer": "equal"}),
    "pcgrad": Method("PCGrad", _RAW, "pcgrad", needs=("torchjd",)),
    "upgrad": Method("UPGrad (TorchJD)", _RAW, "upgrad", needs=("torchjd", "qpsolvers")),
    "mgda": Method("MGDA", _RAW, "mgda"),
    "cagrad": Method("CAGrad, c = 0.4", _RAW, "cagrad", needs=("torchjd", "cvxpy")),
    "nash": Method("Nash-MTL", _RAW, "nash"),
    "marble": Method("Marble", {}),
    "marble amortised": Method("Marble, solved every 10 steps, EMA 0.7", {"refresh_every": 10, "ema": 0.7}),
    "marble guard": Method("Marble with step guard", {"guard": "step"}),
}


def make_marble(name: str, base: torch.optim.Optimizer, rewards: Sequence[str], **options: Any) -> marble_opt.Marble:
    """A fresh optimizer of the method ``name`` around ``base``; ``options`` go to Marble as well (``model``, ...).

    For a ``summed`` method the caller passes the sum as ``shared``:
    ``opt.backward(losses, shared=sum(losses.values()) if METHODS[name].summed else None)``.
    """
    method = METHODS[name]
    own = dict(method.options)
    if method.balancer:
        own["balancer"] = getattr(balancers, method.balancer)()
    return marble_opt.Marble(base, rewards, **(own | options))
