"""Random networks on which the rows that Marble collects must equal K separate backwards.

    python tests/fuzz/random_networks.py --seed 7               one network: what it is, the error of each parameter
    python tests/fuzz/random_networks.py --count 200 --start 0  many: the share that was factored, what disagreed

Even seeds draw plain networks: known layers whose rows are samples. Odd seeds also draw what a factored backward is
likely to get wrong. Reentrant checkpoints refuse ``torch.autograd.grad``; there the truth is K plain backwards.
"""

import argparse
import sys
import time
import warnings
from collections import Counter
from dataclasses import dataclass, field

import torch
from network_cases import Case, draw
from network_losses import Truth, make_loss
from torch import Tensor

from marble_opt import Marble

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}
# Refreshes in which contractions are compared with ordinary gradients, among the first four.
COMPARED = (0, 1, 3)


@dataclass
class Step:
    """What one optimizer step did: the error of each parameter, the route, the passes, what was not factored."""

    errors: dict[str, float]
    route: str
    passes: int
    fallback: dict[str, str]


@dataclass
class Outcome:
    """The steps of a case, and the first failure."""

    case: Case
    steps: list[Step] = field(default_factory=list)
    failure: str | None = None

    @property
    def factored(self) -> bool:
        """Whether every step was one pass per term, for all parameters."""
        return bool(self.steps) and all(step.route == "factored" and not step.fallback for step in self.steps)


def collected(opt: Marble) -> dict[Tensor, Tensor]:
    """The rows [K, *shape] of this step by parameter."""
    return opt._collector.bank.blocks


def check(seed: int) -> Outcome:
    """Train the network of a seed for a few steps; the first disagreement or error is the failure."""
    with torch.random.fork_rng(devices=[]):
        return _train(draw(seed))


def _train(case: Case) -> Outcome:
    outcome = Outcome(case)
    names = {parameter: name for name, parameter in case.network.named_parameters()}
    rewards = [str(index) for index in range(case.loss.rewards)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        opt = Marble(torch.optim.AdamW(list(names), lr=1e-2), rewards, model=case.network)
        for number in range(len(case.batches)):
            try:
                step = _step(case, opt, names, number)
            except Exception as error:
                outcome.failure = f"step {number}: {type(error).__name__}: {error}"
                break
            outcome.steps.append(step)
            worst = max(step.errors, key=lambda name: step.errors[name])
            asserted = number in COMPARED or not case.late
            if asserted and not step.errors[worst] <= TOLERANCE[case.dtype]:
                outcome.failure = f"step {number}: {worst} is off by {step.errors[worst]:.1e}"
                break
        opt.unwatch()
    return outcome


def _step(case: Case, opt: Marble, names: dict[Tensor, str], number: int) -> Step:
    case.begin(number)
    truth = Truth(case.loss.rewards, [parameter for parameter in names if parameter.requires_grad])
    for micro, size in enumerate(case.batches[number]):
        seed = (100 * case.seed + 10 * number + micro) % 2**31
        prediction = case.network(case.inputs(size, seed))
        loss = make_loss(case.loss, prediction, case.network.head.weight, number, seed)
        truth.add(loss, case.reentrant)
        opt.backward(loss)
    rows = collected(opt)
    errors = {names[parameter]: truth.error(parameter, rows.get(parameter)) for parameter in truth.rows}
    report = opt.balance()
    assert report is not None
    opt.step()
    opt.zero_grad()
    # Gates open, whatever the step did.
    with torch.no_grad():
        for parameter in names:
            parameter += 0.1 * torch.randn_like(parameter)
    return Step(errors, report.route, report.passes, dict(report.fallback))


def main() -> int:
    """Check one network or many; 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, help="check this network only and print everything")
    parser.add_argument("--count", type=int, default=200, help="how many networks to check")
    parser.add_argument("--start", type=int, default=0, help="the first seed")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    return _many(arguments.start, arguments.count) if arguments.seed is None else _one(arguments.seed)


def _one(seed: int) -> int:
    outcome = check(seed)
    case = outcome.case
    print(f"{case.network}\n{case.loss}\n{case.dtype}, batches {case.batches}, tokens {case.tokens}, late {case.late}")
    for number, step in enumerate(outcome.steps):
        print(f"step {number}: route {step.route}, {step.passes} passes")
        for name, error in step.errors.items():
            print(f"  {error:.1e}  {name}")
        for name, reason in step.fallback.items():
            print(f"  fallback of {name}: {reason}")
    print(outcome.failure or "no failure")
    return int(outcome.failure is not None)


def _many(start: int, count: int) -> int:
    began, drawn, factored, failed = time.monotonic(), Counter[bool](), Counter[bool](), 0
    for seed in range(start, start + count):
        outcome = check(seed)
        case = outcome.case
        drawn[case.odd] += 1
        factored[case.odd] += outcome.factored
        if outcome.failure is not None:
            failed += 1
            print(f"seed {seed} [{' '.join(case.kinds)}] {outcome.failure}", flush=True)
    for odd in sorted(drawn):
        print(f"{'odd' if odd else 'plain'}: {drawn[odd]} networks, {factored[odd]} factored without a fallback")
    print(f"{count} networks, {failed} failed, {time.monotonic() - began:.0f} s")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
