"""The gradients of one optimizer step: one row per reward in the bank, everything else in ``.grad``."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .bank import GradientBank, add_to_grad
from .per_sample.engine import RowEngine
from .per_sample.fsdp2 import GatheredRows, gradient_sync
from .ranks import agree, any_sharded, is_sharded, keep_grads, local_part, refuse_layout, watching_reduction
from .routes import Losses, check_loss, combine_losses, gradients_of, loop, scalar_losses, total
from .separable import SeparableLoss
from .together import finite_on_all, take_part


@dataclass
class Work:
    """How the gradients of a step were made; see :class:`marble_opt.Balance`."""

    route: str = "mixed"
    passes: int = 0
    checks: int = 0
    layers: int = 0
    fallback: dict[str, str] = field(default_factory=dict)


class GradientCollector:
    """Accumulates over micro-steps until the step is balanced.

    With coefficients given, rewards are mixed at once and land in ``.grad`` too: the step between refreshes. A reward
    whose loss is not finite then is left out of that micro-step and noted in ``left_out``; ``contributed`` tells
    whether any reward was mixed in. ``reduced`` lists the rewards whose gradients DDP or FSDP2 reduced in
    :meth:`collect`.

    Args:
        rewards: names of the K rewards.
        parameters: returns the trainable parameters; asked anew each time, because FSDP2 swaps them.
        acting: whether rewards contribute to the update at all.
        route: ``"auto"`` (factored where a model is watched and the loss is separable), ``"factored"`` or ``"loop"``.
        check: compare every factored pass with ordinary gradients.
    """

    def __init__(
        self, rewards: Sequence[str], parameters: Callable[[], list[Tensor]], acting: bool, route: str, check: bool
    ) -> None:
        self.rewards, self._parameters, self._acting = rewards, parameters, acting
        self._route, self._check = route, check
        self.engine: RowEngine | None = None
        self.process_group: dist.ProcessGroup | None = None
        self._told = False
        self.bank = GradientBank(len(rewards))
        self.gathered = GatheredRows(self.bank)
        self.clear()

    def clear(self) -> None:
        """Start a new step."""
        self.gathered.clear()
        self.bank.clear()
        self.left_out = [False] * len(self.rewards)
        self.micro_step = 0
        self.work = Work()
        self.contributed = False
        self.reduced: list[str] = []
        self.collected = False
        self.closed = self.broken_off = False
        self.scaler: torch.amp.GradScaler | None = None

    def __getstate__(self) -> dict[str, Any]:
        # A copy of the optimizer does not watch the model of the original.
        return {**self.__dict__, "engine": None}

    def backward(
        self,
        losses: Losses,
        shared: Tensor | None,
        retain_graph: bool,
        scaler: "torch.amp.GradScaler | None",
        coefficients: Tensor | None,
        shared_weight: float,
    ) -> None:
        """Differentiate one micro-step: K rows if ``coefficients`` is None, else one backward of the mixture.

        ``shared_weight`` multiplies the shared terms; with 0 they are not evaluated.
        """
        scalars = scalar_losses(losses, self.rewards)
        rest = self._shared(losses, shared, shared_weight)
        if self._route == "factored" and not isinstance(losses, SeparableLoss):
            raise ValueError(f"route='factored' needs a SeparableLoss, got {type(losses).__name__}: use route='auto'")
        parameters = self._parameters()
        sharded = self._begin(parameters)
        self.micro_step += 1
        self._scaled_by(scaler)
        clear: Tensor | None = None
        if coefficients is None:
            clear, rest = self._rows(losses, shared, scalars, rest, retain_graph, parameters, sharded)
        elif self._acting:
            mixed, left_out = combine_losses(losses, scalars, coefficients, self.scaler is not None)
            self.contributed |= sum(loss is not None for loss in scalars) > len(left_out)
            self._leave_out(left_out)
            rest = total([mixed, rest])
        if sharded and coefficients is not None:
            (rest,) = take_part([rest], losses, shared, parameters, self.process_group)
        if rest is not None:
            self.work.passes += 1
            gradients = self._gradients_of(self._scaled(rest), parameters, retain_graph, clear, sharded)
            add_to_grad(parameters, gradients)

    def _gradients_of(
        self, loss: Tensor, parameters: Sequence[Tensor], retain_graph: bool, clear: Tensor | None, sharded: bool
    ) -> list[Tensor | None]:
        with gradient_sync(self.engine.roots) if sharded and self.engine is not None else nullcontext():
            return gradients_of(loss, parameters, retain_graph, clear, sharded)

    def _shared(self, losses: Losses, shared: Tensor | None, weight: float) -> Tensor | None:
        if weight == 0:
            return None
        terms = [losses.shared() if isinstance(losses, SeparableLoss) else None, shared]
        for term in terms:
            if term is not None:
                check_loss("the shared term", term)
        found = total(terms)
        return found if found is None or weight == 1 else weight * found

    def _rows(
        self,
        losses: Losses,
        shared: Tensor | None,
        scalars: Sequence[Tensor | None],
        rest: Tensor | None,
        retain_graph: bool,
        parameters: Sequence[Tensor],
        sharded: bool,
    ) -> tuple[Tensor | None, Tensor | None]:
        """Add the K gradients of one micro-step to the bank.

        Returns a tensor known to hide no reentrant checkpoint, and the shared terms to differentiate.
        """
        possible = isinstance(losses, SeparableLoss) and self.engine is not None and self._route != "loop"
        if sharded:
            possible = not agree([not possible], local_part(parameters[0]).device, self.process_group)[0]
        if possible and isinstance(losses, SeparableLoss) and self.engine is not None:
            if sharded:
                (rest,) = take_part([rest], losses, shared, parameters, self.process_group)
            clear = None
            if len(losses.prediction) or sharded:
                # Of several ranks one may have no sample in this micro-step.
                clear = self._factored(self.engine, losses, parameters, retain_graph or rest is not None, sharded)
            return clear, rest
        if sharded:
            *scalars, rest = take_part([*scalars, rest], losses, shared, parameters, self.process_group)
        self._loop(scalars, parameters, retain_graph or rest is not None, sharded)
        return None, rest

    def _loop(
        self, scalars: Sequence[Tensor | None], parameters: Sequence[Tensor], retain_graph: bool, sharded: bool
    ) -> None:
        self.work.route = "loop"
        self.work.passes += sum(loss is not None for loss in scalars)
        with gradient_sync(self.engine.roots) if sharded and self.engine is not None else nullcontext():
            loop(
                [None if loss is None else self._scaled(loss) for loss in scalars],
                parameters,
                retain_graph,
                lambda index, gradients: self.bank.add(index, parameters, gradients),
                sharded,
            )

    def _factored(
        self,
        engine: RowEngine,
        loss: SeparableLoss,
        parameters: Sequence[Tensor],
        retain_graph: bool,
        sharded: bool,
    ) -> Tensor | None:
        """Rows from one backward per term; if a parameter is known to need one per reward, all take that: it costs less
        than both.
        """
        if self._check:
            engine.check(loss, parameters, self.process_group)
        scale = self._scaled(loss.terms.new_ones(()).detach())
        first, group = self.micro_step == 1, self.process_group
        plan = engine.plan(loss, parameters, first, group)
        if plan.condemned:
            self.work.fallback.update(engine.tell(plan.condemned))
            applies = loss.applies()
            if sharded:
                applies = agree(applies, local_part(parameters[0]).device, group)
            scalars = [each if used else None for each, used in zip(loss.losses(), applies, strict=True)]
            self._loop(scalars, parameters, retain_graph, sharded)
            return None
        offered = [index for index, used in enumerate(loss.applies()) if used]
        store = self.gathered if sharded else self.bank
        self.broken_off = True
        result = engine.add_rows(loss, plan, store, offered, retain_graph, scale, group)
        self.broken_off = False
        self.work.route, self.work.layers = "factored", result.layers
        self.work.passes += result.passes
        self.work.checks += result.checks
        if result.uncovered:
            self.work.fallback.update(result.reasons)
            self.work.passes += loss.num_rewards
            # Under FSDP2 these are means over ranks, of rewards too that only another rank offers.
            for parameter, rows in engine.exact(loss, result.uncovered, retain_graph, scale).items():
                self.bank.add_block(parameter, rows) if sharded else self.bank.add_rows(parameter, rows, offered)
        return None if plan.graph.hiding else loss.prediction

    @contextmanager
    def collect(
        self, reward: str, coefficients: Tensor | None, scaler: "torch.amp.GradScaler | None" = None
    ) -> Iterator[None]:
        """Take what lands in ``.grad`` inside the block for ``reward``; ``.grad`` is restored."""
        if reward not in self.rewards:
            raise ValueError(f"collect of the unknown reward {reward!r}: known are {list(self.rewards)}")
        collected = self.collected
        index, parameters = self.rewards.index(reward), self._parameters()
        sharded = self._begin(parameters)
        outside = keep_grads(parameters)
        for parameter in parameters:
            parameter.grad = None
        try:
            with watching_reduction(parameters) as watched:
                yield
                reduced = watched.found()
            gradients = [parameter.grad for parameter in parameters]
        finally:
            for parameter, gradient in zip(parameters, outside, strict=True):
                parameter.grad = gradient
        owners = [each for p, each in zip(parameters, gradients, strict=True) if is_sharded(p) or not sharded]
        if all(gradient is None for gradient in owners):
            self.collected = collected
            raise ValueError(
                f"no gradient reached the parameters in collect({reward!r}): call backward in the block (under FSDP2 "
                "with set_requires_gradient_sync(True))"
            )
        if reduced or sharded:
            self.reduced.append(reward)
            self._tell_reduced(reduced)
        self.work.passes += 1
        self._scaled_by(scaler)
        if coefficients is None:
            self.work.route = "collect"
            self.bank.add(index, parameters, gradients)
        elif not self._acting:
            return
        elif not finite_on_all(gradients, parameters, self.process_group):
            self._leave_out([index])
        else:
            self.contributed = True
            factor = coefficients[index]
            add_to_grad(parameters, [None if g is None else g * factor.to(g.device, g.dtype) for g in gradients])

    def refuse_rest(self) -> None:
        """Raise ``RuntimeError`` if a backward of this step was broken off: it has left rows of some layers."""
        if self.broken_off:
            raise RuntimeError(
                "a backward of this step failed in the middle, and its rows are incomplete: call zero_grad(), and take "
                "the step anew"
            )

    def show_scaler(self) -> None:
        """A zero gradient where there is none at all: a ``GradScaler`` refuses an optimizer without gradients."""
        parameters = self._parameters()
        if self.scaler is not None and all(parameter.grad is None for parameter in parameters):
            # Scaled, because a scaler that has scaled nothing yet refuses as well.
            parameters[0].grad = self.scaler.scale(torch.zeros_like(parameters[0]))

    def _leave_out(self, rewards: Sequence[int]) -> None:
        for index in rewards:
            self.left_out[index] = True

    def _tell_reduced(self, by_ddp: bool) -> None:
        if by_ddp and not self._told:
            self._told = True
            warnings.warn(
                "DDP reduced the gradients in collect(), once per reward, and balance() reduces again: right as long "
                "as all ranks collect the same rewards in the same order, and slow. Run forward and backward under "
                "model.no_sync()",
                stacklevel=6,
            )

    def _begin(self, parameters: Sequence[Tensor]) -> bool:
        """Start a backward; returns whether parameters are sharded."""
        self.refuse_rest()
        if self.closed:
            raise RuntimeError(
                "backward() or collect() after balance() and before step(): coefficients are solved once, on the "
                "whole step. Call step() or zero_grad() first"
            )
        refuse_layout(parameters, self.process_group)
        self.collected = True
        return any_sharded(parameters)

    def _scaled_by(self, scaler: "torch.amp.GradScaler | None") -> None:
        self.scaler = scaler if scaler is not None and scaler.is_enabled() else None

    def _scaled(self, loss: Tensor) -> Tensor:
        return loss if self.scaler is None else self.scaler.scale(loss)
