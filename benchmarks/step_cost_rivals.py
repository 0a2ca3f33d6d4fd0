"""The forms of benchmarks/step_cost.py that belong to TorchJD."""

import gc
from collections.abc import Callable

import torch
from step_cost_forms import Form, Setting
from torch import Tensor
from torchjd.aggregation import MGDA, MGDAWeighting
from torchjd.autogram import Engine
from torchjd.autojac import backward, jac_to_grad


class AutojacForm(Form):
    """A Jacobian of the K losses by autojac, combined by MGDA; what no reward owns joins as a plain backward."""

    def run(self, micro_steps: int | None = None) -> None:
        """One optimizer step."""
        for _ in range(micro_steps or self.micro_steps):
            loss, kl = self.loss(self.kl)
            backward(loss.losses(), inputs=self.setting.parameters, retain_graph=True, parallel_chunk_size=1)
            jac_to_grad(self.setting.parameters, MGDA())
            _sum([loss.shared(), kl]).backward()
        self.base.step()
        self.base.zero_grad()


class AutogramForm(Form):
    """The Gram matrix of the K losses by autogram, MGDA's weights, one backward of the weighted losses."""

    def __init__(self, setting: Setting, rewards: int) -> None:
        super().__init__(setting, rewards, None, micro_steps=1)
        self.engine: Engine | None = Engine(setting.model, batch_dim=None)

    def close(self) -> None:
        """The engine takes its hooks off the model when it is collected."""
        self.engine = None
        gc.collect()

    def run(self, micro_steps: int | None = None) -> None:
        """One optimizer step."""
        for _ in range(micro_steps or self.micro_steps):
            loss, kl = self.loss(self.kl)
            losses = loss.losses()
            weights = MGDAWeighting()(self.engine.compute_gramian(losses))
            _sum([(weights * losses).sum(), loss.shared(), kl]).backward()
        self.base.step()
        self.base.zero_grad()


def rivals(setting: Setting, rewards: int) -> dict[str, Callable[[], Form]]:
    """The forms by name; each is made when its turn comes."""
    return {
        "TorchJD autojac MGDA": lambda: AutojacForm(setting, rewards, None, micro_steps=1),
        "TorchJD autogram MGDA": lambda: AutogramForm(setting, rewards),
    }


def _sum(terms: list[Tensor | None]) -> Tensor:
    return torch.stack([term for term in terms if term is not None]).sum()
