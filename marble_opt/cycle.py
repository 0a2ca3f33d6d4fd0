"""One optimizer step from losses to ``.grad``: collect, reduce over ranks, solve, combine."""

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor

from .balance import BalanceRule
from .collector import GradientCollector
from .distributed import reduce_step, world_size
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
    ) -> None:
        self.rule, self.schedule, self.collector = rule, schedule, collector
        self.refresh_every, self.ema = refresh_every, ema
        self.process_group, self.reduction = process_group, reduction
        self.memory = MarbleState.new(rule.rewards, rule.slots)
        self.report: Balance | None = None
        self.start()

    def start(self) -> None:
        """Forget what was collected."""
        self.collector.clear()
        self.dropped = False
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
        """Write the balanced gradient into ``.grad`` and make the report."""
        # A parameter that was frozen since its backward (an adapter switched off, say) still counts.
        known = set(parameters)
        parameters = [*parameters, *(p for p in self.collector.bank.blocks if p not in known)]
        if world_size(self.process_group) > 1:
            rows = self._probed is None
            reduce_step(self.collector, parameters, self.process_group, self.reduction, rows=rows)
        if self._probed is not None:
            # A reward that a probe left out has been counted.
            missed = torch.tensor(self.collector.left_out, device=self._probed.report.active.device)
            memory = count_left_out(self._probed.memory, missed & self._probed.report.active)
            report = replace(self._probed.report, skipped=memory.skipped, nonfinite=memory.nonfinite)
            self._finish_probes(self._probed._replace(report=report, memory=memory), parameters)
        elif self.refreshing:
            self._apply(self._solve(parameters))
        else:
            acts = self.collector.contributed or self.rule.observing
            memory = count_left_out(self.memory, torch.tensor(self.collector.left_out))
            self._keep(self.report, memory, dropped=not (acts and _all_finite(parameters)))
        self.collector.closed = True
        if self.report is not None:
            self.report = replace(self.report, **vars(self.collector.work))

    def finish(self) -> None:
        """Count the step and start the next."""
        # Without a usable refresh there are no coefficients to reuse: solve again on the next step.
        since = -1 if self.dropped else 0 if self.refreshing else self.memory.since_refresh + 1
        self.memory = replace(self.memory, steps=self.memory.steps + 1, since_refresh=since)
        self.start()

    def _solve(self, parameters: Sequence[Tensor]) -> Refresh:
        bank = self.collector.bank
        return refresh(bank.gram(parameters), bank.offered, self.rule, self.memory, self.ema)

    @torch.no_grad()
    def _solve_probes(self, parameters: list[Tensor]) -> Refresh:
        if world_size(self.process_group) > 1:
            reduce_step(self.collector, parameters, self.process_group, self.reduction, grads=False)
        return self._solve(parameters)

    def _finish_probes(self, result: Refresh, parameters: Sequence[Tensor]) -> None:
        if not result.usable or _all_finite(parameters, nothing=True):
            self._apply(result)
        else:
            self._keep(result.report, result.memory, dropped=True)

    def _apply(self, result: Refresh) -> None:
        self.report, self.memory, self.dropped = result.report, result.memory, not result.usable
        if self.dropped and self.collector.scaler is not None:
            # An overflow everywhere is the scaler's to see: it skips the step and lowers its scale.
            self.collector.add_combined(torch.ones_like(result.report.coefficients), range(len(self.rule.rewards)))
        elif not self.dropped and not self.rule.observing:
            self.collector.add_combined(result.report.coefficients, result.rows)

    def _keep(self, report: Balance | None, memory: MarbleState, dropped: bool) -> None:
        self.dropped = dropped
        self.memory, self.report = reuse(report, memory, dropped)


def _all_finite(parameters: Sequence[Tensor], nothing: bool = False) -> bool:
    """Whether all gradients are finite (``nothing``: the answer where there is none); waits for the device."""
    norms = [parameter.grad.norm() for parameter in parameters if parameter.grad is not None]
    return bool(torch.stack(norms).isfinite().all()) if norms else nothing
