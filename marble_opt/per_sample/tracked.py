"""Parameters that a module uses itself, followed from operation to operation until they meet samples."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.utils import _pytree as pytree

from .recipe import Leaf, Recipe, Step, slots_of

if TYPE_CHECKING:
    from .tapped_layer import Slot, TappedLayer


class Tracked(Tensor):
    """A parameter, or what was computed from parameters alone: a low-rank product, a slice, a transposed matrix.

    An operation on tracked tensors and constants makes another one and is noted in its ``recipe``. One that has other
    operands too is where samples come in: if there is a rule for it, it is tapped. ``hooks`` are those on saved tensors
    when the call began: a checkpoint within it will run its part again, and then without tracked tensors.
    """

    layer: "TappedLayer"
    recipe: Recipe
    hooks: object

    @classmethod
    def of(cls, layer: "TappedLayer", name: str, parameter: Tensor) -> "Tracked":
        """A parameter, to be used in its place."""
        return _track(parameter, layer, Leaf(layer.slots[name]), saving_hooks())

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():
            tensors = [each for each in pytree.tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
            tracked = [each for each in tensors if isinstance(each, Tracked)]
            if not tracked:
                return func(*args, **kwargs)
            if _spoils(func, kwargs):
                # What is made of these parameters from here on cannot be followed again.
                for slot in (slot for each in tracked for slot in slots_of(each.recipe)):
                    slot.spoilt = True
                return func(*args, **kwargs)
            first = tracked[0]
            if all(isinstance(each, Tracked) or _constant(each, first.layer) for each in tensors):
                return _note(func, args, kwargs, first)
            from .uses import rule_of

            seen = torch.is_grad_enabled() and all(each.hooks == saving_hooks() for each in tracked)
            rule = rule_of(func) if seen else None
            return func(*args, **kwargs) if rule is None else rule(first.layer, func, args, dict(kwargs))


def _note(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], like: Tracked) -> Any:
    result = func(*args, **kwargs)
    if func in _DETACHING or not any(isinstance(each, Tensor) for each in pytree.tree_leaves(result)):
        return result
    plain = pytree.tree_map_only(Tracked, lambda each: each.recipe, (args, dict(kwargs)))
    step = Step(func, *plain)
    if isinstance(result, Tensor):
        return _track(result, like.layer, step, like.hooks)
    if isinstance(result, (tuple, list)) and all(isinstance(each, Tensor) for each in result):
        return tuple(_track(each, like.layer, step.part(index), like.hooks) for index, each in enumerate(result))
    return result


def _track(tensor: Tensor, layer: "TappedLayer", recipe: Recipe, hooks: object) -> Tracked:
    if not tensor.is_floating_point():
        return tensor  # type: ignore[return-value]
    if isinstance(tensor, Parameter):
        tracked = tensor.as_subclass(Tracked)
    else:
        # A result is no one else's, and an alias of it might be a view that must not be written to.
        tensor.__class__ = Tracked
        tracked = cast(Tracked, tensor)
    tracked.layer, tracked.recipe, tracked.hooks = layer, recipe, hooks
    return tracked


def _spoils(func: Callable[..., Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether an operation writes to an operand, or draws random numbers."""
    name = getattr(func, "__name__", "")
    if name in _RANDOM:
        return bool(kwargs.get("training", True))
    in_place = name.endswith("_") and not name.endswith("__") and name != "requires_grad_"
    return in_place or name in _IN_PLACE or kwargs.get("out") is not None


_RANDOM = (
    "dropout",
    "alpha_dropout",
    "feature_dropout",
    "bernoulli",
    "rand_like",
    "randn_like",
    "multinomial",
    "normal",
)
_IN_PLACE = ("__setitem__", "__iadd__", "__isub__", "__imul__", "__itruediv__", "__ipow__", "__iand__", "__ior__")
_DETACHING = (Tensor.detach, torch.detach, Tensor.data.__get__)  # type: ignore[attr-defined]


def _constant(tensor: Tensor, layer: "TappedLayer") -> bool:
    """Whether a tensor is the same for all samples: a number, or a frozen weight or buffer of the module."""
    if tensor.dim() == 0 or (isinstance(tensor, Parameter) and not tensor.requires_grad):
        return not tensor.requires_grad
    return not tensor.requires_grad and layer.is_buffer(tensor)


def saving_hooks() -> object:
    """What keeps saved tensors at present: a checkpoint, or nothing."""
    top = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    # Where it cannot be known nothing is followed.
    return object() if top is None else top(True)


def swap(layer: "TappedLayer") -> None:
    """Put tracked tensors in place of the trained parameters of a layer, for one call."""
    places: list[tuple[Slot, Parameter]] = []
    for name in layer.names():
        slot = layer.slots[name]
        parameter = slot.holder._parameters[slot.key]
        assert parameter is not None
        places.append((slot, parameter))
        slot.spoilt = False
        slot.holder._parameters[slot.key] = Tracked.of(layer, name, parameter)  # type: ignore[assignment]
    layer.swapped.append(places)


def plain(result: Any) -> Any:
    """What a model returns, without tracked tensors."""
    return pytree.tree_map_only(Tracked, lambda each: each.as_subclass(Tensor), result)


def restore(layer: "TappedLayer") -> bool:
    """Undo the last :func:`swap`; returns whether there was one."""
    if not layer.swapped:
        return False
    for slot, parameter in layer.swapped.pop():
        if isinstance(slot.holder._parameters.get(slot.key), Tracked):
            slot.holder._parameters[slot.key] = parameter
    return True
