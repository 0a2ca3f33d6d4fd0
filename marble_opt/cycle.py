"""One optimizer step from losses to ``.grad``: collect, reduce over ranks, solve, combine."""

import operator
from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor

from .balance import BalanceRule
from .collector import GradientCollector
from .distributed import finite_everywhere, full_gram, reduce_step
from .metric import AdamMetric
from .ranks import local_part, world_size
from .refresh import Refresh, count_left_out, refresh, reuse
from .routes import Losses
from .schedule import MicroSchedule
from .state import MarbleState
from .telemetry import Balance


class BalanceCycle:
    """The state machine behind :class:`marble_opt.Marble`.

    A step is of one of three kinds. Refresh: all micro-steps give rows, coefficients are solved at the end. Reuse:
    all are mixed with the coefficients of the last refresh. Probed: the first give rows, coefficients are solved
    on these, the others are mixed.

    Args:
        rule: from Gram to coefficients.
        schedule: what each micro-step does.
        collector: where gradients go.
        refresh_every: steps from one refresh to the next.
        ema: ρ of the weights' moving average.
        process_group, reduction: how ranks share gradients.
        metric: in which the Gram matrix is taken; ``None`` is the Euclidean one.
    """

    def __init__(
        self,
        rule: BalanceRule,
        schedule: MicroSchedule,
        collector: GradientCollector,
        refresh_every: int,
        ema: float,
        process_group: dist.ProcessGroup | None,
        reduction: str,
        metric: AdamMetric | None = None,
    ) -> None:
        self.metric = metric
        self.rule, self.schedule, self.collector = rule, schedule, collector
        self.refresh_every, self.ema = refresh_every, ema
        self.process_group, self.reduction = process_group, reduction
        collector.process_group = process_group
        self.restore(MarbleState.new(rule.rewards, rule.slots))

    def restore(self, memory: MarbleState) -> None:
        """Begin anew from ``memory``."""
        self.memory = self._kept = memory
        self.report: Balance | None = None
        self.start()

    def start(self) -> None:
        """Forget what was collected."""
        self.collector.clear()
        self.usable: Tensor | None = None
        self._probed: Refresh | None = None

    @property
    def refreshing(self) -> bool:
        """Whether this step solves for new coefficients."""
        return self.memory.since_refresh < 0 or self.memory.since_refresh + 1 >= self.refresh_every

    @property
    def shared_weight(self) -> float:
        """The weight of the next micro-step's shared terms."""
        return self.schedule.shared_weight(self.memory.steps, self.collector.micro_step)

    @property
    def mixture(self) -> Tensor | None:
        """The coefficients to mix with, or ``None`` where rows are wanted."""
        if self._probed is not None:
            return self._probed.report.coefficients
        return None if self.refreshing else self.memory.coefficients

    def backward(
        self,
        losses: Losses,
        shared: Tensor | None,
        retain_graph: bool,
        scaler: "torch.amp.GradScaler | None",
        parameters: list[Tensor],
    ) -> None:
        """Differentiate one micro-step; the first one after the probes solves for the coefficients before."""
        probing = self.schedule.probing(self.collector.micro_step)
        if self.schedule.probes and self._probed is None and not probing:
            self._probed = self._solve_probes(parameters)
        self.collector.backward(losses, shared, retain_graph, scaler, self.mixture, self.shared_weight)

    @torch.no_grad()
    def balance(self, parameters: list[Tensor]) -> None:
        """Reduce, solve, and make the report; :meth:`write` or a fused step acts on it. Nothing is read from the device
        unless ranks have to agree.
        """
        self.collector.refuse_rest()
        parameters = self.known(parameters)
        if self.joint:
            self._reduce(parameters, rows=self._probed is None)
            if not self.collector.collected:
                return
        if self._probed is not None:
            self._finish_probes(self._probed, parameters)
        elif self.refreshing:
            result = self._solve(parameters)
            self.report, self.memory, self.usable = result.report, result.memory, result.usable
        else:
            acts = self.collector.contributed or self.rule.observing
            self.usable = (self._all_finite(parameters, nothing=False) & acts).to(self.memory.dropped_steps.device)
            self.memory, self.report = reuse(self.report, self._count_left_out(self.memory), self.usable)
        self.collector.closed = True
        if self.report is not None:
            self.report = replace(self.report, **vars(self.collector.work))

    @property
    def joint(self) -> bool:
        """Whether several ranks step together: then each takes part in every balance, whatever it collected."""
        return world_size(self.process_group) > 1

    @property
    def dropped(self) -> bool:
        """Whether the step that was balanced must not be taken; waits for the device."""
        return self.usable is not None and not bool(self.usable)

    @property
    def combining(self) -> Tensor | None:
        """Coefficients [K] of the rows in the bank; ``None`` on a step without rows, or if rewards do not act."""
        if self.report is None or self.rule.observing or not self.collector.bank:
            return None
        return self.report.coefficients

    @torch.no_grad()
    def write(self) -> None:
        """Add the combined gradient to ``.grad`` unless the step is dropped."""
        coefficients = self.combining
        if coefficients is not None and not self.dropped:
            self.collector.bank.add_combined(coefficients)
        elif self.dropped and self.collector.scaler is not None:
            # An overflow everywhere is the scaler's to see: it skips the step and lowers its scale.
            if coefficients is not None:
                self.collector.bank.add_combined(torch.ones_like(coefficients))
            self.collector.show_scaler()

    def known(self, parameters: list[Tensor]) -> list[Tensor]:
        """With those that were frozen since their backward (an adapter switched off, say), which still count."""
        blocks = self.collector.bank.blocks
        if len(blocks) == len(parameters) and all(map(operator.is_, blocks, parameters)):
            return parameters
        known = set(parameters)
        return [*parameters, *(p for p in blocks if p not in known)]

    def finish(self) -> None:
        """Count the step and start the next."""
        # Without a usable refresh there are no coefficients to reuse: solve again on the next step.
        lost = self.refresh_every > 1 and self.dropped
        since = -1 if lost else 0 if self.refreshing else self.memory.since_refresh + 1
        new = replace(self.memory, steps=self.memory.steps + 1, since_refresh=since)
        self.memory = self._kept = self._kept.take(new)
        self.start()

    def _solve(self, parameters: Sequence[Tensor]) -> Refresh:
        bank = self.collector.bank
        # A mesh of one rank: with several, they have been reduced together.
        self.collector.gathered.finish(list(self.collector.gathered.memory.blocks))
        metric = None if self.metric is None else self.metric(parameters)
        gram = full_gram(bank, parameters, self.process_group, metric)
        return refresh(gram, bank.offered, self.rule, self.memory, self.ema)

    def _reduce(self, parameters: Sequence[Tensor], rows: bool = True, grads: bool = True) -> None:
        collector, memory = self.collector, self.memory
        state = (self.rule.rewards, memory.steps, memory.since_refresh, not rows, collector.scaler is not None)
        reduce_step(collector, parameters, self.process_group, self.reduction, state, rows, grads)

    def _all_finite(self, parameters: Sequence[Tensor], nothing: bool) -> Tensor:
        return finite_everywhere(_all_finite(parameters, nothing), parameters, self.process_group)

    @torch.no_grad()
    def _solve_probes(self, parameters: list[Tensor]) -> Refresh:
        if self.joint:
            self._reduce(parameters, grads=False)
        return self._solve(parameters)

    def _finish_probes(self, probed: Refresh, parameters: Sequence[Tensor]) -> None:
        """The other micro-steps have been mixed with the coefficients of the probes; a NaN there drops the step."""
        # A reward that a probe left out has been counted.
        memory = self._count_left_out(probed.memory, probed.report.active)
        lost = probed.usable & ~self._all_finite(parameters, nothing=True).to(probed.usable.device)
        memory = replace(memory, dropped_steps=memory.dropped_steps + lost.to(memory.dropped_steps))
        self.memory, self.usable = memory, probed.usable & ~lost
        self.report = replace(
            probed.report,
            usable=self.usable,
            skipped=memory.skipped,
            nonfinite=memory.nonfinite,
            dropped_count=memory.dropped_steps,
        )

    def _count_left_out(self, memory: MarbleState, among: Tensor | None = None) -> MarbleState:
        if not any(self.collector.left_out):
            return memory
        missed = torch.tensor(self.collector.left_out).to(memory.skipped.device)
        return count_left_out(memory, missed if among is None else missed & among)


def _all_finite(parameters: Sequence[Tensor], nothing: bool) -> Tensor:
    """Whether all gradients are finite, bool, 0-d; ``nothing`` where there is none."""
    device = parameters[0].device
    found = [torch.isfinite(local_part(p.grad).norm()).to(device) for p in parameters if p.grad is not None]
    return torch.stack(found).all() if found else torch.full((), nothing, device=device)
