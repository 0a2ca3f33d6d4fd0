"""Plays a plan on Marble and checks every call against what the gradients, known in closed form, imply."""

import copy
import io
import pickle
import warnings
from typing import Any

import torch
from fuzz_checks import check_grad, check_state, flat, gradients
from fuzz_mistakes import mistake
from fuzz_plan import Call, Plan
from fuzz_rows import as_seen, linear, offered, row_of
from fuzz_steps import Stepper
from torch import Tensor
from torch.nn import Parameter


class Machine(Stepper):
    """The calls by name."""

    def play(self, call: Call) -> None:
        """One call and its checks."""
        random = torch.Generator().manual_seed(call.seed)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.filterwarnings("ignore", "step not taken")
            warnings.filterwarnings("ignore", r"step\(\) without any")
            getattr(self, f"do_{call.name}")(call.options, random)
        check_state(self.opt, self.parameters, self.steps)

    def do_backward(self, options: dict[str, Any], random: torch.Generator) -> None:
        for micro in options["micro"]:
            self.micro_step(micro, random)

    def do_train(self, options: dict[str, Any], random: torch.Generator) -> None:
        self.do_zero_grad(options, random)
        for micro in options["micro"]:
            self.micro_step(micro, random)
        if options["balance"]:
            self.do_balance(options, random)
        self.do_step({"clip": False}, random)
        self.do_zero_grad(options, random)

    def micro_step(self, micro: dict[str, Any], random: torch.Generator) -> None:
        """``backward``, or one ``collect`` per reward; what reaches ``.grad`` at once is checked."""
        if micro["form"] == "collect" and "probe" not in self.options:
            for index, kind in enumerate(micro["kinds"]):
                if kind not in ("absent", "same", "opposite"):
                    self.do_collect({"reward": index, "kind": kind}, random)
            return
        if self.closed:
            self.do_zero_grad({"set_to_none": True}, random)
        losses, rows, finite = offered(self.parameters, self.names, micro, random)
        wanted = row_of(micro["shared"], self.expected.rows.shape[1], random, ())
        shared = None if wanted is None else linear(self.parameters, wanted)
        weight, probing = self.opt._cycle.shared_weight, self.opt._cycle.schedule.probing(self.expected.micro_steps)
        before = gradients(self.parameters)
        self.opt.backward(losses, shared=shared, scaler=self.scaler)
        extra = torch.zeros_like(before)
        if wanted is not None and weight:
            extra = weight * self.scale * as_seen(self.parameters, wanted)
        self.received(rows, finite, before, extra, probing)
        self.expected.micro_steps += 1

    def do_collect(self, options: dict[str, Any], random: torch.Generator) -> None:
        if "probe" in self.options:
            return
        if self.closed:
            self.do_zero_grad({"set_to_none": True}, random)
        row = row_of(options["kind"], self.expected.rows.shape[1], random, ())
        assert row is not None
        before, loss = gradients(self.parameters), linear(self.parameters, row)
        with self.opt.collect(self.names[options["reward"]], scaler=self.scaler):
            (loss if self.scaler is None else self.scaler.scale(loss)).backward()
        rows: list[Tensor | None] = [None] * len(self.names)
        rows[options["reward"]] = as_seen(self.parameters, row)
        fine = bool(torch.isfinite(as_seen(self.parameters, row)).all())
        self.received(rows, [fine] * len(rows), before, torch.zeros_like(before), False)

    def received(
        self,
        rows: list[Tensor | None],
        finite: list[bool],
        before: Tensor,
        extra: Tensor,
        probing: bool,
    ) -> None:
        """Rows wait in the bank; on mixed micro-steps they are in ``.grad`` already."""
        expected, coefficients, size = self.expected, self.opt._cycle.mixture, 0.0
        expected.collected = True
        rows = [None if row is None else self.scale * row for row in rows]
        if coefficients is None or probing:
            expected.add_rows(rows)
        elif not self.observing:
            weighed = expected.weighed
            mixed, size = expected.mixed(coefficients, rows, finite)
            trainable = torch.cat([torch.full((p.numel(),), p.requires_grad) for p in self.parameters])
            extra = extra + torch.where(trainable, mixed, 0.0)
            if self.scaler is not None and expected.weighed == weighed:
                # Losses that overflow everywhere stay in, for the scaler to see.
                return
        size = max(size, float((before.abs() + extra.abs()).nan_to_num(0.0).max()))
        check_grad(self.parameters, before + extra, self.dtype, size)

    def do_closure(self, options: dict[str, Any], random: torch.Generator) -> None:
        if self.scaler is not None or self.closed:
            return
        holder: list[Any] = []

        def closure() -> Tensor:
            self.micro_step({**options["micro"][0], "form": "mapping"}, random)
            holder.extend((copy.deepcopy(self.opt.base), set(self.opt._collector.bank.blocks), self.opt._fusible()))
            holder.extend((gradients(self.parameters), flat(self.parameters)))
            return torch.tensor(3.0)

        assert self.opt.step(closure) == 3.0
        self.after_step(*holder)

    def do_mistake(self, options: dict[str, Any], random: torch.Generator) -> None:
        mistake(options["kind"], self.opt, self.parameters, self.closed)

    def do_lr(self, options: dict[str, Any], random: torch.Generator) -> None:
        self.opt.param_groups[int(torch.randint(len(self.parameters), (1,), generator=random))]["lr"] = options["lr"]

    def do_freeze(self, options: dict[str, Any], random: torch.Generator) -> None:
        index = int(torch.randint(1, len(self.parameters), (1,), generator=random))
        self.parameters[index].requires_grad_(not self.parameters[index].requires_grad)

    def do_add_group(self, options: dict[str, Any], random: torch.Generator) -> None:
        if len(self.parameters) > 3:
            return
        self.parameters.append(Parameter(torch.randn(3, generator=random).to(self.dtype)))
        self.opt.add_param_group({"params": [self.parameters[-1]], "lr": 0.01})
        self.expected.grow(3)

    def do_save_load(self, options: dict[str, Any], random: torch.Generator) -> None:
        buffer = io.BytesIO()
        torch.save(self.opt.state_dict(), buffer)
        buffer.seek(0)
        old = self.parameters
        self.parameters = [Parameter(parameter.detach().clone(), parameter.requires_grad) for parameter in old]
        self.opt = self.build([{"params": [parameter]} for parameter in self.parameters])
        self.opt.load_state_dict(torch.load(buffer, weights_only=True))
        self.forget()

    def do_copy(self, options: dict[str, Any], random: torch.Generator) -> None:
        grads = [parameter.grad for parameter in self.parameters]
        if options["how"] == "deepcopy":
            self.opt = copy.deepcopy(self.opt)
        else:
            self.opt = pickle.loads(pickle.dumps(self.opt))
        self.parameters = [parameter for group in self.opt.param_groups for parameter in group["params"]]
        for parameter, grad in zip(self.parameters, grads, strict=True):
            parameter.grad = grad


def run(plan: Plan) -> tuple[int, str] | None:
    """Play a plan; the number of the failing call and its message, or ``None``."""
    machine = Machine(plan)
    for number, call in enumerate(plan.calls):
        try:
            machine.play(call)
        except Exception as error:
            return number, f"{call.name}: {type(error).__name__}: {error}"
    return None
