"""What a step really did to the parameters: guarded and measured around the base optimizer's own step."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.optim import Optimizer

from .cycle import BalanceCycle
from .distributed import full_gram, products_and_length
from .guard import GuardedStep, guard_step
from .ranks import local_part


def follow_step(
    step: Callable[[], object],
    base: Optimizer,
    cycle: BalanceCycle,
    parameters: Sequence[Tensor],
    guard: bool,
    track: bool,
) -> None:
    """Take ``step``; correct it if ``guard``, measure it if ``track``; report and counters are those of ``cycle``.

    Both need rows of this batch: a step between refreshes has none and is taken as it is. A copy of the parameters is
    kept meanwhile; of a sharded parameter, of this rank's shard.
    """
    bank, report = cycle.collector.bank, cycle.report
    if not (bank and report is not None and (guard or track)):
        step()
        return
    before = [(parameter, local_part(parameter).detach().clone()) for parameter in cycle.known(list(parameters))]
    step()
    if guard:
        _guard(base, cycle, before)
    if track:
        _measure(cycle, parameters, before)


@torch.no_grad()
def _measure(cycle: BalanceCycle, parameters: Sequence[Tensor], before: Sequence[tuple[Tensor, Tensor]]) -> None:
    bank, report = cycle.collector.bank, cycle.report
    if report is not None:
        moved = [(parameter, old - local_part(parameter).detach()) for parameter, old in before]
        products, length = products_and_length(bank, moved, cycle.process_group)
        # Euclidean, whatever the metric of the balance.
        if cycle.metric is None:
            norms = report.norms
        else:
            norms = full_gram(bank, parameters, cycle.process_group).diagonal()[:-1].clamp_min(0).sqrt()
        cycle.report = replace(report, step_cosines=products / (length * norms))


@torch.no_grad()
def _guard(base: Optimizer, cycle: BalanceCycle, before: Sequence[tuple[Tensor, Tensor]]) -> None:
    bank, report = cycle.collector.bank, cycle.report
    assert report is not None
    acting = cycle.combining is not None
    # Nothing moves a parameter that the base optimizer passed over.
    stepped = [(p, old) for p, old in before if p.grad is not None or (acting and p in bank.blocks)]
    if not any(parameter in bank.blocks for parameter, _ in stepped):
        return
    protected = report.active & cycle.rule.switched_on.to(report.active.device)
    found = guard_step(base, bank.blocks, stepped, protected, cycle.process_group)
    memory = cycle.memory
    guarded = memory.guarded_steps + report.usable.to(memory.guarded_steps)
    corrected = memory.corrected_steps + found.needed.to(memory.corrected_steps)
    cycle.memory = replace(memory, guarded_steps=guarded, corrected_steps=corrected)
    record = GuardedStep(
        needed=found.needed,
        before=found.before,
        after=found.after,
        multipliers=found.multipliers,
        correction=found.correction,
        residual=found.residual,
        steps=guarded,
        corrected=corrected,
    )
    cycle.report = replace(report, guard=record)
