"""How a tensor was computed from parameters: enough to pull rows of it back to them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

if TYPE_CHECKING:
    from .tapped_layer import Slot


@dataclass(frozen=True, eq=False)
class Leaf:
    """A parameter."""

    slot: "Slot"


@dataclass(frozen=True, eq=False)
class Step:
    """One operation; recipes stand among its arguments for what they make. ``index``: which of several results."""

    func: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    index: int | None = None
    whole: "Step | None" = None

    def part(self, index: int) -> "Step":
        """One of the results."""
        return Step(self.func, self.args, self.kwargs, index, self)


Recipe: TypeAlias = Leaf | Step


def slots_of(recipe: Recipe) -> list["Slot"]:
    """The parameters that a recipe starts from."""
    found: dict[Slot, None] = {}
    stack: list[Recipe] = [recipe]
    while stack:
        each = stack.pop()
        if isinstance(each, Leaf):
            found[each.slot] = None
        else:
            stack.extend(
                leaf for leaf in pytree.tree_leaves((each.args, each.kwargs)) if isinstance(leaf, (Leaf, Step))
            )
    return list(found)


def pull_back(recipe: Recipe, rows: Tensor) -> dict["Slot", Tensor]:
    """Rows [R, *shape] of what a recipe makes → rows of its parameters: R vector-Jacobian products.

    The recipe is followed again from the parameters as they are, in a graph of its own, so that a checkpoint does not
    run again and nothing of the model's graph is used.
    """
    if isinstance(recipe, Leaf):
        return {recipe.slot: rows}
    leaves: dict[Slot, Tensor] = {}
    with torch.enable_grad():
        made = _follow(recipe, leaves, {})
        found: dict[Slot, Tensor] = {}
        slots = list(leaves)
        for index, row in enumerate(rows.to(made.dtype)):
            gradients = torch.autograd.grad(
                made, [leaves[slot] for slot in slots], row, retain_graph=index + 1 < len(rows), allow_unused=True
            )
            for slot, gradient in zip(slots, gradients, strict=True):
                if gradient is not None:
                    if slot not in found:
                        found[slot] = gradient.new_zeros(len(rows), *gradient.shape, dtype=rows.dtype)
                    found[slot][index] = gradient
    return found


def _follow(recipe: Recipe, leaves: dict["Slot", Tensor], made: dict[int, Any]) -> Tensor:
    if isinstance(recipe, Leaf):
        if recipe.slot not in leaves:
            parameter = recipe.slot.holder._parameters[recipe.slot.key]
            assert parameter is not None
            leaves[recipe.slot] = parameter.detach().requires_grad_()
        return leaves[recipe.slot]
    step = recipe if recipe.whole is None else recipe.whole
    if id(step) not in made:
        args, kwargs = pytree.tree_map(
            lambda each: _follow(each, leaves, made) if isinstance(each, (Leaf, Step)) else each,
            (step.args, step.kwargs),
        )
        made[id(step)] = step.func(*args, **kwargs)
    result: Tensor = made[id(step)] if recipe.index is None else made[id(step)][recipe.index]
    return result
