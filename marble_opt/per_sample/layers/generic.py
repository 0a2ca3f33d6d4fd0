"""Any other module: ``vmap`` over ``torch.func.vjp`` of its forward."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap
from torch.utils import _pytree as pytree

from .base import CHUNK_ELEMENTS, Handler, NotPerSampleError, mix, wide


@dataclass(frozen=True)
class CallShape:
    """How the saved tensors become the arguments of a call again, and under which autocast."""

    leaves: list[Any]
    places: list[int]
    spec: pytree.TreeSpec
    autocast: torch.dtype | None


class GenericHandler(Handler):
    """f(θ, x_l) for each row l on its own: the gradient is the pullback of δ_l through f to θ.

    The forward is computed again. Whether it treats the rows one by one is not known here: the engine compares the
    sum of the rows with the ordinary gradient before it relies on them.

    Raises (in :meth:`contract`):
        NotPerSampleError: a forward that draws random numbers, or that ``vmap`` cannot run.
    """

    exact = False

    def save(
        self,
        module: nn.Module,
        names: Collection[str],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        output: Tensor,
    ) -> tuple[list[Tensor], CallShape] | None:
        leaves, spec = pytree.tree_flatten((args, dict(kwargs)))
        places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        tensors: list[Tensor] = [leaves[place] for place in places]
        if not tensors or _foreign_hooks(module) or any(_aliases(output, tensor) for tensor in tensors):
            return None
        kind = output.device.type
        autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        others = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        return tensors, CallShape(others, places, spec, autocast)

    def batched(self, module: nn.Module, saved: list[Tensor], output: Tensor) -> bool:
        return output.dim() > 0 and any(tensor.dim() and len(tensor) == len(output) for tensor in saved)

    def contract(
        self,
        module: nn.Module,
        names: Collection[str],
        saved: list[Tensor],
        other: CallShape,
        grad: Tensor,
        weights: Tensor,
    ) -> dict[str, Tensor]:
        own = {name: module.get_parameter(name).detach() for name in names}

        def pull(delta: Tensor, *tensors: Tensor) -> dict[str, Tensor]:
            leaves = list(other.leaves)
            for place, tensor, batched in zip(other.places, tensors, in_batch, strict=True):
                leaves[place] = tensor.unsqueeze(0) if batched else tensor
            args, kwargs = pytree.tree_unflatten(leaves, other.spec)
            pullback = vjp(lambda values: functional_call(module, values, args, kwargs), own)[1]
            found: dict[str, Tensor] = pullback(delta.unsqueeze(0))[0]
            return found

        in_batch = [tensor.dim() > 0 and len(tensor) == len(grad) for tensor in saved]
        axes = (0, *(0 if batched else None for batched in in_batch))
        largest = max(1, *(values.numel() for values in own.values()))
        kind = grad.device.type
        try:
            with torch.autocast(kind, other.autocast, enabled=other.autocast is not None, cache_enabled=False):
                per_row = vmap(pull, axes, chunk_size=max(1, CHUNK_ELEMENTS // largest))(grad, *saved)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
            if "saved tensor hooks" in str(error):
                raise NotPerSampleError("a checkpoint inside its call uses them: checkpoint a child module") from error
            raise NotPerSampleError(str(error).partition("\n")[0]) from error
        return {name: mix(weights, wide(gradient)) for name, gradient in per_row.items()}


def _foreign_hooks(module: nn.Module) -> bool:
    """Whether a second call would run hooks other than the engine's."""
    hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
    return any(not getattr(hook, "of_marble_opt", False) for hook in hooks)


def _aliases(output: Tensor, tensor: Tensor) -> bool:
    """Whether ``output`` is ``tensor`` or a view of it: then a later in-place operation would change the input."""
    return output is tensor or (output._is_view() and output._base is not None and output._base is tensor)
