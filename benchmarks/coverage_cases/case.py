"""What a case is: a small model, inputs of different samples for it, and the prediction that a loss is made of."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

BATCH = 4
TRAINING_STEPS = 1000


class Batch:
    """Random inputs of ``size`` samples that all differ."""

    def __init__(self, seed: int, size: int = BATCH) -> None:
        self.size = size
        self._random = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int) -> Tensor:
        """[B, *shape]."""
        return torch.randn(self.size, *shape, generator=self._random)

    def normals(self, *shape: int) -> list[Tensor]:
        """One tensor per sample."""
        return list(self.normal(*shape))

    def integers(self, bound: int, *shape: int) -> Tensor:
        """[B, *shape] of 0 .. bound − 1."""
        return torch.randint(0, bound, (self.size, *shape), generator=self._random)

    def times(self) -> Tensor:
        """[B] in [0, 1]."""
        return torch.rand(self.size, generator=self._random)

    def steps(self) -> Tensor:
        """[B] integer timesteps of a scheduler."""
        return self.integers(TRAINING_STEPS)

    def ones(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """[B, *shape], a mask without gaps."""
        return torch.ones(self.size, *shape, dtype=dtype)

    def rows(self, *values: float) -> Tensor:
        """[B, len(values)], the same for all samples."""
        return torch.tensor(values).repeat(self.size, 1)


def grid(*sizes: int) -> Tensor:
    """Coordinates [prod(sizes), len(sizes)] of a grid of tokens."""
    return torch.cartesian_prod(*(torch.arange(size) for size in sizes)).float().reshape(-1, len(sizes))


def first_output(model: nn.Module, inputs: dict[str, Any]) -> Tensor:
    """The first output of a model, [B, ...]; a list of samples is stacked."""
    output = model(**inputs)
    if not isinstance(output, Tensor):
        output = output[0]
    return torch.stack(list(output)) if isinstance(output, (list, tuple)) else output


@dataclass(frozen=True)
class Case:
    """One model.

    ``family`` is "transformer", "unet" or "peft", ``name`` the class or the tuner, ``make`` builds the model,
    ``inputs`` draws inputs, ``predict`` runs the model on them. ``modes``: how it is trained, see ``training.py``.
    """

    family: str
    name: str
    make: Callable[[], nn.Module]
    inputs: Callable[[Batch], dict[str, Any]]
    predict: Callable[[nn.Module, dict[str, Any]], Tensor] = first_output
    modes: tuple[str, ...] = ("attention", "linear", "full")


class Registry(dict[str, Case]):
    """Cases by name, and why there is none for the classes in ``without``."""

    def __init__(self, family: str) -> None:
        super().__init__()
        self.family = family
        self.without: dict[str, str] = {}

    def add(
        self,
        name: str,
        config: dict[str, Any],
        inputs: Callable[[Batch], dict[str, Any]],
        predict: Callable[[nn.Module, dict[str, Any]], Tensor] = first_output,
    ) -> None:
        """A class of diffusers with the arguments of its constructor; it is imported when the case is run."""

        def make() -> nn.Module:
            import diffusers

            model: nn.Module = getattr(diffusers, name)(**config)
            return model

        self[name] = Case(self.family, name, make, inputs, predict)
