"""The gradients of one optimizer step: one row per reward in the bank, everything else in ``.grad``."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from .bank import GradientBank, add_to_grad
from .routes import Losses, check_loss, combine_losses, loop, scalar_losses, total
from .separable import SeparableLoss


class GradientCollector:
    """Accumulates over micro-steps until the step is balanced.

    With coefficients given, rewards are mixed at once and land in ``.grad`` too: the step between refreshes. A reward
    whose loss is not finite then is left out of that micro-step and noted in ``left_out``; ``contributed`` tells
    whether any reward was mixed in.

    Args:
        rewards: names of the K rewards.
        parameters: returns the trainable parameters; asked anew each time, because FSDP2 swaps them.
        acting: whether rewards contribute to the update at all.
    """

    def __init__(self, rewards: Sequence[str], parameters: Callable[[], list[Tensor]], acting: bool) -> None:
        self.rewards, self._parameters, self._acting = rewards, parameters, acting
        self.bank = GradientBank(len(rewards))
        self.clear()

    def clear(self) -> None:
        """Start a new step."""
        self.bank.clear()
        self.left_out = [False] * len(self.rewards)
        self.contributed = False
        self.collected = False
        self.closed = False
        self.scaler: torch.amp.GradScaler | None = None

    def backward(
        self,
        losses: Losses,
        shared: Tensor | None,
        retain_graph: bool,
        scaler: "torch.amp.GradScaler | None",
        coefficients: Tensor | None,
    ) -> None:
        """Differentiate one micro-step: K rows if ``coefficients`` is None, else one backward of the mixture."""
        scalars = scalar_losses(losses, self.rewards)
        terms = [losses.shared() if isinstance(losses, SeparableLoss) else None, shared]
        for term in terms:
            if term is not None:
                check_loss("the shared term", term)
        self._begin()
        self.scaler = scaler if scaler is not None and scaler.is_enabled() else None
        parameters = self._parameters()
        if coefficients is None:
            rest = self._scaled(total(terms))
            loop(
                [self._scaled(loss) for loss in scalars],
                parameters,
                retain_graph or rest is not None,
                lambda index, gradients: self.bank.add(index, parameters, gradients),
            )
        else:
            if self._acting:
                mixed, left_out = combine_losses(losses, scalars, coefficients, self.scaler is not None)
                terms.append(mixed)
                self.contributed |= mixed is not None
                self._leave_out(left_out)
            rest = self._scaled(total(terms))
        if rest is not None:
            gradients = torch.autograd.grad(rest, parameters, retain_graph=retain_graph, allow_unused=True)
            add_to_grad(parameters, gradients)

    @contextmanager
    def collect(self, reward: str, coefficients: Tensor | None) -> Iterator[None]:
        """Take what lands in ``.grad`` inside the block for ``reward``; ``.grad`` is restored."""
        if reward not in self.rewards:
            raise ValueError(f"collect of the unknown reward {reward!r}: known are {list(self.rewards)}")
        collected = self.collected
        self._begin()
        index, parameters = self.rewards.index(reward), self._parameters()
        outside = [parameter.grad for parameter in parameters]
        for parameter in parameters:
            parameter.grad = None
        try:
            yield
            gradients = [parameter.grad for parameter in parameters]
        finally:
            for parameter, gradient in zip(parameters, outside, strict=True):
                parameter.grad = gradient
        if all(gradient is None for gradient in gradients):
            self.collected = collected
            raise ValueError(f"no gradient reached the parameters in collect({reward!r}): call backward in the block")
        if coefficients is None:
            self.bank.add(index, parameters, gradients)
        elif not self._acting:
            return
        elif not all(bool(g.isfinite().all()) for g in gradients if g is not None):
            self._leave_out([index])
        else:
            self.contributed = True
            factor = coefficients[index]
            add_to_grad(parameters, [None if g is None else g * factor.to(g) for g in gradients])

    def add_combined(self, coefficients: Tensor, rows: Sequence[int]) -> None:
        """Add Σ c_k g_k over ``rows`` to ``.grad``."""
        for parameter, gradient in self.bank.combined(coefficients, rows):
            add_to_grad([parameter], [gradient])

    def _leave_out(self, rewards: Sequence[int]) -> None:
        for index in rewards:
            self.left_out[index] = True

    def _begin(self) -> None:
        if self.closed:
            raise RuntimeError(
                "backward() or collect() after balance() and before step(): coefficients are solved once, on the "
                "whole step. Call step() or zero_grad() first"
            )
        self.collected = True

    def _scaled(self, loss: Tensor | None) -> Tensor | None:
        return loss if loss is None or self.scaler is None else self.scaler.scale(loss)
