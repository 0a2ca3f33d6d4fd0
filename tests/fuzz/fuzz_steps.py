"""The optimizer under test, and what must hold when it balances and steps."""

import copy
from typing import Any

import torch
from fuzz_checks import Expected, check_grad, check_refresh, check_report, check_reuse, flat, gradients
from fuzz_plan import Plan
from torch import Tensor
from torch.amp import GradScaler
from torch.nn import Parameter

from marble_opt import Marble

SHAPES = ((2, 3), (4,))
FAR = 1e6
BASES: dict[str, Any] = {
    "sgd": lambda groups: torch.optim.SGD(groups, lr=0.1),
    "nesterov": lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True),
    "adamw": lambda groups: torch.optim.AdamW(groups, lr=0.1, foreach=False),
    "adam": lambda groups: torch.optim.Adam(groups, lr=0.1, weight_decay=0.01),
    "foreach": lambda groups: torch.optim.AdamW(groups, lr=0.1, foreach=True),
    "rmsprop": lambda groups: torch.optim.RMSprop(groups, lr=0.1),
    "adagrad": lambda groups: torch.optim.Adagrad(groups, lr=0.1),
    "adafactor": lambda groups: torch.optim.Adafactor(groups, lr=0.1),
}
BALANCERS: dict[str, Any] = {
    "fixed": lambda rewards: {name: 1.0 + k for k, name in enumerate(rewards)},
    "callable": lambda _: by_norm,
    "nan": lambda _: sometimes_nan,
}


def by_norm(gram: Tensor) -> Tensor:
    """A stranger's balancer: weights by norm."""
    norms = gram.diagonal().clamp_min(0).sqrt()
    return norms / norms.sum()


def sometimes_nan(gram: Tensor) -> Tensor:
    """A stranger's balancer that fails on part of its inputs."""
    equal = torch.full_like(gram[0], 1 / len(gram))
    return equal * torch.nan if gram[0, -1] < -1 else equal


class Stepper:
    """One optimizer with a model of what it has been given."""

    def __init__(self, plan: Plan) -> None:
        self.settings, self.options = plan.settings, plan.settings["options"]
        self.names: list[str] = plan.settings["rewards"]
        self.dtype: torch.dtype = getattr(torch, plan.settings["dtype"])
        random = torch.Generator().manual_seed(plan.seed)
        self.parameters = [Parameter(torch.randn(shape, generator=random).to(self.dtype)) for shape in SHAPES]
        self.opt = self.build([{"params": [parameter]} for parameter in self.parameters])
        self.scaler = GradScaler("cpu", init_scale=2.0**6) if plan.settings["scaler"] else None
        self.steps = self.dropped_steps = 0
        self.forget()

    def build(self, groups: list[dict[str, Any]]) -> Marble:
        """A new optimizer with the plan's settings."""
        options = dict(self.options)
        slots = ["pair", *self.names[2:]] if "groups" in options else self.names
        if options.get("balancer") in BALANCERS:
            options["balancer"] = BALANCERS[options["balancer"]](slots)
        return Marble(BASES[self.settings["base"]](groups), self.names, **options)

    def forget(self) -> None:
        """What a step starts from."""
        self.expected = Expected(len(self.names), sum(p.numel() for p in self.parameters))
        self.closed = self.dropped = False

    @property
    def scale(self) -> float:
        return 1.0 if self.scaler is None else self.scaler.get_scale()

    @property
    def observing(self) -> bool:
        return self.options.get("balancer") == "observe"

    def do_balance(self, options: dict[str, Any], random: torch.Generator) -> None:
        before, repeated = gradients(self.parameters), self.closed or not self.expected.collected
        self.opt.balance()
        if repeated:
            check_grad(self.parameters, before, self.dtype)
            return
        self.closed = True
        self.balanced(before)
        if not self.dropped:
            check_grad(self.parameters, *self.wanted(before))

    def balanced(self, before: Tensor) -> None:
        """The report of a balance against what was given; ``before``: the gradient without the rewards' rows."""
        count = int(self.opt._cycle.memory.dropped_steps)
        assert count in (self.dropped_steps, self.dropped_steps + 1), "a dropped step was counted twice"
        self.dropped, self.dropped_steps = count > self.dropped_steps, count
        check_report(self.opt, self.dropped)
        report = self.opt.report
        if report is None or not report.refreshed:
            # With nothing to step on an observer's step may count either way.
            if not self.observing or bool(before.any()):
                check_reuse(self.expected, before, self.dtype, self.observing, self.dropped)
        elif self.expected.micro_steps <= self.opt._cycle.schedule.probes or not self.opt._cycle.schedule.probes:
            check_refresh(self.opt, self.expected, before, self.dtype, self.options, self.dropped)

    def wanted(self, before: Tensor) -> tuple[Tensor, torch.dtype, float]:
        """The gradient that the base optimizer is to see, and the scale of its rounding."""
        limit, report = self.options.get("max_grad_norm"), self.opt.report
        coefficients = torch.zeros(len(self.names)) if report is None else report.coefficients
        total, size = self.expected.combined(coefficients, before, None if limit is None else limit * self.scale)
        return total, self.dtype, size

    def do_step(self, options: dict[str, Any], random: torch.Generator) -> None:
        if self.scaler is not None:
            self.scaled_step(options, random)
            return
        before, start = gradients(self.parameters), flat(self.parameters)
        if not self.expected.collected and not torch.isfinite(before).all():
            # Left by a step that was not taken; a bare step() is the base optimizer's own, NaN and all.
            return
        twin, reached, fused = copy.deepcopy(self.opt.base), set(self.opt._collector.bank.blocks), self.opt._fusible()
        self.opt.step()
        self.after_step(twin, reached, fused, before, start)

    def after_step(self, twin: Any, reached: set[Tensor], fused: bool, before: Tensor, start: Tensor) -> None:
        """The base optimizer's own step from the same gradient is the oracle."""
        fresh = self.expected.collected and not self.closed
        self.steps += self.expected.collected
        if fresh:
            self.balanced(before)
        if self.dropped:
            assert torch.equal(flat(self.parameters), start), "a step that was counted as not taken moved parameters"
        elif fused:
            check_grad(self.parameters, before, self.dtype)
            self.compare_fused(twin, reached, before, start)
        else:
            if fresh:
                check_grad(self.parameters, *self.wanted(before))
            theirs = [parameter for group in twin.param_groups for parameter in group["params"]]
            for mine, other in zip(self.parameters, theirs, strict=True):
                other.grad = None if mine.grad is None else mine.grad.clone()
            twin.step()
            assert torch.equal(flat(self.parameters), flat(theirs)), "not the base optimizer's own step on .grad"
        self.forget()
        self.reseat()

    def compare_fused(self, twin: Any, reached: set[Tensor], before: Tensor, start: Tensor) -> None:
        """Ours against the base optimizer's step on the combined gradient, to rounding."""
        written, _, size = self.wanted(before)
        theirs = [parameter for group in twin.param_groups for parameter in group["params"]]
        pieces = written.split([parameter.numel() for parameter in theirs])
        for mine, other, piece in zip(self.parameters, theirs, pieces, strict=True):
            touched = mine.grad is not None or (mine in reached and not self.observing)
            other.grad = piece.view(mine.shape).to(self.dtype) if touched else None
        twin.step()
        after, wanted = flat(self.parameters), flat(theirs)
        # Where rewards cancel, rounding decides the sign that Adam steps by.
        decay = start * (twin.param_groups[0]["weight_decay"] if type(twin) is torch.optim.Adam else 0.0)
        clear = (written + decay).abs() >= 1e-2 * decay.abs() + 1e-3 * size
        loose = 1e-6 if self.dtype == torch.float64 else 2e-2
        bound = loose * (wanted - start).abs() + 4 * torch.finfo(self.dtype).eps * (start.abs() + 1)
        assert bool((((after - wanted).abs() <= bound) | ~clear).all()), "the fused step is another than the base's"

    def scaled_step(self, options: dict[str, Any], random: torch.Generator) -> None:
        """balance, unscale, perhaps clip, step, update: the order that GradScaler asks for."""
        assert self.scaler is not None
        if not self.expected.collected:
            return
        if not self.closed:
            self.do_balance({}, random)
        start = flat(self.parameters)
        if self.observing and all(parameter.grad is None for parameter in self.parameters):
            # GradScaler refuses an optimizer without gradients, as it does the base.
            self.do_zero_grad({"set_to_none": True}, random)
            return
        self.scaler.unscale_(self.opt)
        if options["clip"]:
            torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        overflow = not bool(torch.isfinite(gradients(self.parameters)).all())
        twin, given = copy.deepcopy(self.opt.base), [parameter.grad for parameter in self.parameters]
        given = [None if grad is None else grad.clone() for grad in given]
        self.scaler.step(self.opt)
        self.scaler.update(2.0**6)
        if overflow or self.dropped:
            assert torch.equal(flat(self.parameters), start), "an overflow moved the parameters"
        else:
            theirs = [parameter for group in twin.param_groups for parameter in group["params"]]
            for other, grad in zip(theirs, given, strict=True):
                other.grad = grad
            twin.step()
            assert torch.equal(flat(self.parameters), flat(theirs)), "the scaled step is not the base optimizer's own"
        if overflow:
            # The scaler skipped the step, so the loop's zero_grad ends it.
            self.opt.zero_grad()
        else:
            self.steps += 1
        self.forget()
        self.reseat()

    def reseat(self) -> None:
        """Bring parameters that huge gradients have thrown far away back to where a step is visible."""
        with torch.no_grad():
            for parameter in self.parameters:
                if parameter.abs().max() > FAR:
                    parameter.fill_(0.5)

    def do_zero_grad(self, options: dict[str, Any], random: torch.Generator) -> None:
        self.opt.zero_grad(options["set_to_none"])
        assert not gradients(self.parameters).any()
        self.forget()
