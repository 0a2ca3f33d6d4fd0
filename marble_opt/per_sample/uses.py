"""Where tracked tensors meet samples: the operations that can be tapped, and their contractions."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .layers.base import NotPerSampleError, mix, mix_products, wide
from .recipe import pull_back, slots_of
from .taps import Tap

if TYPE_CHECKING:
    from .tapped_layer import TappedLayer
    from .tracked import Tracked

Contraction = Callable[[list[Tensor], Tensor, Tensor], list[Tensor]]
Rule = Callable[["TappedLayer", Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]


class Use:
    """One use of tracked tensors: stands for its layer on the tap.

    Args:
        layer: the layer in whose call it happens.
        operands: the tracked tensors used.
        contraction: (saved, δ, weights [R, L]) → rows [R, *shape] of each operand.
    """

    def __init__(self, layer: "TappedLayer", operands: Sequence["Tracked"], contraction: Contraction) -> None:
        self.layer, self.shared, self.path = layer, layer.shared, layer.path
        self.recipes = [operand.recipe for operand in operands]
        self.shapes = [operand.shape for operand in operands]
        self.contraction = contraction
        self.spoilt = any(slot.spoilt for recipe in self.recipes for slot in slots_of(recipe))

    def tap(self, output: Tensor, saved: Sequence[Tensor]) -> Tensor:
        """The output of the operation, passed through the identity."""
        names = tuple(str(index) for index in range(len(self.recipes)))
        apply: Callable[..., Tensor] = Tap.apply
        marker = self.shared.marker(output.device)
        return apply(self, names, None, marker, output, *[tensor.detach() for tensor in saved])

    def refuses(self, names: Sequence[str]) -> str | None:
        """Nothing is refused."""
        return None

    def parameters(self, name: str) -> list[Tensor]:
        """The optimizer's parameters behind an operand."""
        return [slot.parameter for slot in slots_of(self.recipes[int(name)])]

    def zero_rows(self, name: str, count: int) -> Tensor:
        """``count`` rows of no samples."""
        return torch.zeros(count, *self.shapes[int(name)])

    def land(self, name: str, rows: Tensor) -> None:
        """Rows of an operand go on to the parameters that it was made of."""
        collection = self.shared.collection
        assert collection is not None
        for slot, own in pull_back(self.recipes[int(name)], rows).items():
            collection.receive(slot, own)

    def contract(
        self, names: Sequence[str], saved: list[Tensor], other: Any, grad: Tensor, weights: Tensor
    ) -> dict[str, Tensor]:
        """Rows of the operands."""
        if self.spoilt:
            raise NotPerSampleError("it writes to its parameters or draws random numbers for them")
        dtype = torch.promote_types(grad.dtype, torch.float32)
        found = self.contraction(saved, grad, weights)
        return {str(index): rows.to(dtype) for index, rows in enumerate(found)}


def rule_of(func: Callable[..., Any]) -> Rule | None:
    """How to tap an operation, or ``None``."""
    return _RULES.get(func)


def _elementwise(layer: "TappedLayer", func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A tracked operand is expanded to the shape of the result first: then its gradient is one by sample."""
    from .tracked import Tracked

    shape = torch.broadcast_shapes(*[each.shape for each in args if isinstance(each, Tensor)])
    return func(*[_expanded(each, shape) if isinstance(each, Tracked) else each for each in args], **kwargs)


def _concatenate(layer: "TappedLayer", func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What is put beside samples, once per sample already."""
    from .tracked import Tracked

    given = args[0] if args else kwargs.pop("tensors")
    parts = [_expanded(each, each.shape) if isinstance(each, Tracked) else each for each in given]
    return func(parts, *args[1:], **kwargs)


def _expanded(operand: "Tracked", shape: Sequence[int]) -> Tensor:
    if not shape:
        return operand
    # As much of it as is one by sample; the rest broadcasts as before.
    full = torch.Size(shape)
    inner = (*[1] * (len(full) - operand.dim()), *operand.shape)
    once = operand.as_subclass(Tensor).expand(full[0], *inner[1:])
    own = inner[0] == full[0] and operand.dim() == len(full) and full[0] > 1

    def contraction(saved: list[Tensor], grad: Tensor, weights: Tensor) -> list[Tensor]:
        delta, kind = wide(grad), torch.promote_types(grad.dtype, torch.float32)
        each = weights.to(kind).view(*weights.shape, *[1] * (delta.dim() - 1))
        rows = each * delta if own else mix(weights, delta)
        return [rows.reshape(len(weights), *own_shape)]

    own_shape = tuple(operand.shape)
    return Use(operand.layer, [operand], contraction).tap(once, [])


def _linear(layer: "TappedLayer", func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """x Wᵀ + b."""
    from .tracked import Tracked

    x, weight, bias = _arguments(("input", "weight", "bias"), args, kwargs)
    output = func(x, weight, bias)
    operands = [each for each in (weight, bias) if isinstance(each, Tracked)]
    if isinstance(x, Tracked) or output.dim() < 2:
        return output
    weighs = isinstance(weight, Tracked)

    def contraction(saved: list[Tensor], grad: Tensor, weights: Tensor) -> list[Tensor]:
        delta = grad.reshape(len(grad), -1, grad.shape[-1])
        found = [mix_products(delta, saved[0].reshape(len(grad), -1, saved[0].shape[-1]), weights)] if weighs else []
        return found if len(found) == len(operands) else [*found, mix(weights, wide(delta).sum(1))]

    return Use(layer, operands, contraction).tap(output, [x] if weighs else [])


def _matmul(layer: "TappedLayer", func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """x W with W [in, out]."""
    from .tracked import Tracked

    output = func(*args, **kwargs)
    x, weight = args[:2] if len(args) > 1 else (args[0], kwargs.get("other"))
    if isinstance(x, Tracked) or not isinstance(weight, Tracked) or weight.dim() != 2 or x.dim() < 2:
        return output

    def contraction(saved: list[Tensor], grad: Tensor, weights: Tensor) -> list[Tensor]:
        delta = grad.reshape(len(grad), -1, grad.shape[-1])
        return [mix_products(saved[0].reshape(len(grad), -1, saved[0].shape[-1]), delta, weights)]

    return Use(layer, [weight], contraction).tap(output, [x])


def _embedding(layer: "TappedLayer", func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """weight[x]."""
    from .tracked import Tracked

    output = func(*args, **kwargs)
    x, weight, padding = _arguments(("input", "weight", "padding_idx"), args, kwargs)
    if not isinstance(weight, Tracked) or output.dim() < 2 or kwargs.get("scale_grad_by_freq"):
        return output
    shape = tuple(weight.shape)

    def contraction(saved: list[Tensor], grad: Tensor, weights: Tensor) -> list[Tensor]:
        places, delta = saved[0].reshape(len(grad), -1), wide(grad).reshape(len(grad), -1, grad.shape[-1])
        if padding is not None:
            delta = delta * (places != padding % shape[0]).unsqueeze(-1)
        rows = delta.new_zeros(len(weights), *shape)
        for row, weight in zip(rows, weights.to(delta.dtype), strict=True):
            row.index_add_(0, places.flatten(), (weight[:, None, None] * delta).flatten(0, 1))
        return [rows]

    return Use(layer, [weight], contraction).tap(output, [x])


def _arguments(names: Sequence[str], args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    return [args[index] if index < len(args) else kwargs.get(name) for index, name in enumerate(names)]


_ELEMENTWISE = (
    "add",
    "sub",
    "mul",
    "div",
    "true_divide",
    "subtract",
    "multiply",
    "divide",
    "rsub",
    "maximum",
    "minimum",
)
_OPERATORS = ("__add__", "__radd__", "__sub__", "__rsub__", "__mul__", "__rmul__", "__truediv__", "__rtruediv__")
_RULES: dict[Any, Rule] = {
    **{getattr(torch, name): _elementwise for name in _ELEMENTWISE if hasattr(torch, name)},
    **{getattr(Tensor, name): _elementwise for name in (*_ELEMENTWISE, *_OPERATORS) if hasattr(Tensor, name)},
    torch.where: _elementwise,
    torch.cat: _concatenate,
    torch.concat: _concatenate,
    F.linear: _linear,
    torch.matmul: _matmul,
    Tensor.matmul: _matmul,
    Tensor.__matmul__: _matmul,
    F.embedding: _embedding,
}
