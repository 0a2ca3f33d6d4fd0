"""What a handler is, and the arithmetic that handlers share."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

# Largest block of per-sample gradients, in elements, that is held at once (64 MB in fp32).
CHUNK_ELEMENTS = 2**24


class NotPerSampleError(Exception):
    """A call whose gradients cannot be told apart by sample."""


class Handler(ABC):
    """Per-sample gradients of the parameters that a kind of module owns directly.

    ``names`` are the parameters that it knows (``None``: any), ``from_input`` those whose gradient needs the input of
    the call, ``casts`` says that autocast casts that input to low precision, ``flattens`` that it makes one matrix of
    it, and ``exact`` that the formula follows from the module's type alone, so that a compiler can trace it.
    """

    names: frozenset[str] | None = None
    from_input = frozenset({"weight"})
    casts = False
    flattens = False
    exact = True

    def refuses(self, module: nn.Module, names: Collection[str]) -> str | None:
        """Why this module, with ``names`` trained, cannot be taken apart by samples at all, or ``None``."""
        return None

    def save(
        self,
        module: nn.Module,
        names: Collection[str],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        output: Tensor,
    ) -> tuple[list[Tensor], Any] | None:
        """The tensors of a call that the contraction for ``names`` needs, and anything else; ``None``: not a call to
        handle. What is not needed is not kept, so that it may be changed in place.
        """
        inputs = [*args, *kwargs.values()]
        if len(inputs) != 1 or not isinstance(inputs[0], Tensor):
            return None
        return [inputs[0]] if any(name in self.from_input for name in names) else [], None

    @abstractmethod
    def batched(self, module: nn.Module, saved: list[Tensor], output: Tensor) -> bool:
        """Whether the leading dimension of input and output can be that of the samples."""

    @abstractmethod
    def contract(
        self,
        module: nn.Module,
        names: Collection[str],
        saved: list[Tensor],
        other: Any,
        grad: Tensor,
        weights: Tensor,
    ) -> dict[str, Tensor]:
        """Σ_l weights[k, l] · (gradient of row l), [K, *shape] for each name.

        Args:
            module: the layer.
            names: parameters to contract for.
            saved, other: what :meth:`save` returned.
            grad: δ, the gradient of the output, with L rows.
            weights: [K, L].
        """


def without_autocast(kind: str) -> AbstractContextManager[Any]:
    """Contractions of tensors that autocast has made are not cast again."""
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


def wide(tensor: Tensor) -> Tensor:
    """fp16 and bf16 become fp32; fp32 and fp64 stay."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def mix(weights: Tensor, rows: Tensor) -> Tensor:
    """[K, L] × [L, *shape] → [K, *shape]."""
    mixed: Tensor = torch.tensordot(weights.to(rows.dtype), rows, dims=1)
    return mixed


def mix_products(left: Tensor, right: Tensor, weights: Tensor) -> Tensor:
    """Σ_l weights[k, l] Σ_t left[l, t, :] ⊗ right[l, t, :], [K, O, I].

    The per-sample matrices cost L·T·O·I multiplications and mixing them K·L·O·I; weighting ``left`` first costs
    K·L·T·O·I and holds no [L, O, I]. The cheaper is taken. Per-sample matrices are made a few at a time.

    Args:
        left: [L, T, O].
        right: [L, T, I].
        weights: [K, L].
    """
    rewards, (rows, middle, outputs), inputs = len(weights), left.shape, right.shape[2]
    dtype = torch.promote_types(torch.promote_types(left.dtype, right.dtype), torch.float32)
    weights = weights.to(dtype)
    if rewards * middle <= rewards + middle:
        scaled = weights[:, :, None, None] * left.to(dtype)
        return scaled.reshape(rewards, -1, outputs).mT @ right.to(dtype).reshape(-1, inputs)
    size = max(1, CHUNK_ELEMENTS // max(1, outputs * inputs))
    if size >= rows:
        matrices = torch.bmm(left.to(dtype).mT, right.to(dtype))
        return torch.mm(weights, matrices.view(rows, -1)).view(rewards, outputs, inputs)
    result = weights.new_zeros(rewards, outputs * inputs)
    for start in range(0, rows, size):
        part = slice(start, start + size)
        matrices = torch.bmm(left[part].to(dtype).mT, right[part].to(dtype))
        result.addmm_(weights[:, part], matrices.flatten(1))
    return result.view(rewards, outputs, inputs)
