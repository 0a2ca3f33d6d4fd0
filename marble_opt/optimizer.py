"""Marble: an optimizer that balances one gradient per reward and hands the result to a base optimizer."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .balance import BalanceRule, Weighting
from .collector import GradientCollector
from .cycle import BalanceCycle
from .distributed import clip_grads
from .following import follow_step
from .fused import fused_step, obstacle
from .guard import check_guard
from .metric import make_metric
from .options import check_options
from .per_sample.engine import RowEngine
from .ranks import refuse_deepspeed, refuse_layout
from .routes import Losses
from .row_balancer import RowBalancer
from .schedule import MicroSchedule
from .state import MarbleState
from .telemetry import Balance
from .wrapper import OptimizerWrapper


class Marble(OptimizerWrapper):
    """Wraps a torch optimizer so that K rewards are balanced in gradient space (MARBLE, arXiv 2605.06507).

    The gradients g_k of the rewards are accumulated apart. On a refresh the min-norm point α of the convex hull of
    the unit gradients is solved for, and d = Σ c_k g_k with c_k = n̄ α_k / |g_k| (n̄: the mean norm) is added to
    ``.grad``, beside the gradients of shared terms; then the base optimizer steps.

        opt = marble_opt.Marble(torch.optim.AdamW(params, lr=3e-4), rewards=["ocr", "geneval"])
        opt.backward({"ocr": loss_ocr, "geneval": loss_geneval}, shared=kl)
        opt.step()
        opt.zero_grad()

    ``param_groups``, ``state`` and ``defaults`` are those of the base optimizer. ``step()`` with nothing collected is
    the base optimizer's own step on what ``.grad`` holds. A reward whose accumulated gradient is absent, zero or
    not finite leaves the simplex for that step and is counted; if all do, or the result is not finite, no step is
    taken: that is counted and warned about.

    Args:
        optimizer: any ``torch.optim.Optimizer``.
        rewards: names of the K rewards.
        refresh_every: solve on every N-th step (one backward per reward) and reuse the coefficients in between,
            where one backward of Σ c_k loss_k is enough.
        ema: ρ of the weights' moving average ρ α_old + (1 − ρ) α_new; 0 is the exact min-norm step.
        normalize: solve on unit gradients. Off, the smallest gradient dominates.
        weights: prior per reward (or group): progress in proportion to it; 0 switches a reward off.
        floor: smallest α of an active reward; above 0 the update may oppose a reward.
        groups: name → rewards that are balanced as one row, the mean of their gradients.
        balancer: ``None`` (min-norm), ``"equal"``, ``"observe"``, fixed weights by name, or a callable of the
            Gram matrix; :class:`marble_opt.preferences.BucketBalancer`. See :class:`marble_opt.balance.BalanceRule`.
        process_group: ranks that share gradients; default: the default group once torch.distributed is initialised.
            All of them take part in every ``balance()`` or ``step()``, with or without a backward of their own. Sharded
            parameters (FSDP2, HSDP) keep rows of the local shards, where ``fused``, ``guard`` and ``metric`` work too;
            their mesh must hold the same ranks.
        reduction: ``"mean"`` over ranks, as DDP does, or ``"sum"``, for losses whose normalisers count all ranks.
            FSDP2 averages itself: ``"sum"`` multiplies by the number of ranks, so leave its divide factor alone then.
        max_grad_norm: clip the combined gradient to this norm.
        track_step: also report each reward's cosine with the step that the base optimizer really took; keeps
            a copy of the parameters during the step.
        guard: ``"step"`` projects the base optimizer's real step (momentum, weight decay and shared terms included)
            onto the steps that hurt no active reward of the batch, in the base's own metric; a step that hurts none
            is left bit for bit. Its moments are not touched. Steps between refreshes have no rows and are not
            guarded; with ``probe`` the rows are those of the probes' samples. A reward with ``weights`` 0 is not
            protected, one that only ``"observe"`` measures is. Where parameters are stored in half precision,
            rounding undoes small corrections. Keeps a copy of the parameters during the step.
            See :mod:`marble_opt.guard`.
        metric: ``"adam"`` takes the Gram matrix, hence |g_k|, n̄ and α, in M = diag(1 / (sqrt(v̂) + eps)) of the base
            optimizer's second moment: then its preconditioned step M d, rather than d, opposes no reward.
            ``max_grad_norm`` stays Euclidean. Before the first step M = 1. A coordinate that no step has reached yet
            weighs 1 / eps: where rewards first reach parameters late, set ``max_grad_norm``.
        model: the model (or several modules) that makes the predictions; enables the factored route, which gets the
            rows of a :class:`SeparableLoss` from one backward per term instead of one per reward. See :meth:`watch`.
        route: ``"auto"`` takes the factored route where it can, ``"factored"`` insists on it, ``"loop"`` is the slow
            twin: one backward per reward.
        check: compare every factored pass with ordinary gradients, which costs one more backward; an error names the
            parameter that differs. Off, each parameter is compared the first times that it is met.
        micro_steps: ``backward`` calls per optimizer step; needed by ``probe``.
        probe: solve on every step from the first share q of its micro-steps, at no extra backward: these keep one row
            per reward and no shared terms, the others take one backward of Σ c_k loss_k. Micro-steps must be
            exchangeable (timesteps permuted per sample).
        fused: with torch's AdamW or Adam as base, ``step()`` combines, clips and steps in one pass from the rows to the
            parameters, and reads nothing from the device (nor warns about a step not taken: the report counts them);
            ``.grad`` then holds shared terms only. A step after your own :meth:`balance` is the base optimizer's. After
            one ordinary step a CUDA graph can capture it: replays go on with the moments, the average and the counters;
            what is counted on the host, for ``refresh_every`` and ``shared_every``, stands still.
        shared_every: take shared terms on every n-th micro-step, drawn anew for each step, with weight n: unbiased, and
            what they are computed from is needed only where :attr:`wants_shared`.

    Raises:
        TypeError: ``optimizer`` is not an optimizer.
        ValueError: an option out of range, with what to do.
        NotImplementedError: parameters of FSDP1, DeepSpeed or tensor parallelism.
    """

    _state_key = "marble"

    def __init__(
        self,
        optimizer: Optimizer,
        rewards: Sequence[str],
        *,
        refresh_every: int = 1,
        ema: float = 0.0,
        normalize: bool = True,
        weights: Mapping[str, float] | None = None,
        floor: float = 0.0,
        groups: Mapping[str, Sequence[str]] | None = None,
        balancer: Weighting | RowBalancer | Mapping[str, float] | str | None = None,
        process_group: "torch.distributed.ProcessGroup | None" = None,
        reduction: str = "mean",
        max_grad_norm: float | None = None,
        track_step: bool = False,
        guard: str | None = None,
        metric: str | None = None,
        model: nn.Module | Iterable[nn.Module] | None = None,
        route: str = "auto",
        fused: bool = False,
        check: bool = False,
        micro_steps: int | None = None,
        probe: float | None = None,
        shared_every: int = 1,
    ) -> None:
        super().__init__(optimizer)
        refuse_deepspeed(optimizer, model)
        refuse_layout([p for group in optimizer.param_groups for p in group["params"]], process_group)
        check_options(refresh_every, ema, max_grad_norm, reduction, route, model is not None, probe)
        check_guard(guard, self._base_needs_closure())
        rule = BalanceRule(rewards, normalize=normalize, weights=weights, floor=floor, groups=groups, balancer=balancer)
        schedule = MicroSchedule(micro_steps, probe, shared_every)
        self._collector = GradientCollector(rule.rewards, self._parameters, not rule.observing, route, check)
        own = make_metric(metric, optimizer)
        self._cycle = BalanceCycle(rule, schedule, self._collector, refresh_every, ema, process_group, reduction, own)
        self.max_grad_norm, self.track_step, self.fused, self.guard = max_grad_norm, track_step, fused, guard
        if fused and (reason := obstacle(optimizer)) is not None:
            warnings.warn(f"fused=True has no effect: {reason}; steps are combined, then the base's own", stacklevel=2)
        self._warned = False
        if model is not None:
            self.watch(model)

    @property
    def rewards(self) -> tuple[str, ...]:
        """Names of the rewards, in the order of all [K] tensors."""
        return self._cycle.rule.rewards

    @property
    def report(self) -> Balance | None:
        """What the last balance did; ``None`` before the first."""
        return self._cycle.report

    @property
    def refreshing(self) -> bool:
        """Whether this step solves for new coefficients."""
        return self._cycle.refreshing

    @property
    def wants_shared(self) -> bool:
        """Whether the next micro-step uses its shared terms; if not, nothing they need has to be computed."""
        return self._cycle.shared_weight > 0

    def watch(self, model: nn.Module | Iterable[nn.Module], verify_every: int | None = 50) -> None:
        """Hook the layers of ``model`` for the factored route; replaces what was watched before.

        Rows are compared with an ordinary gradient before they are used, and again on every ``verify_every``-th refresh
        (some early ones too, and when hooks or the train mode of a module change; ``None``: never again). Each
        comparison costs one backward, counted in :attr:`marble_opt.Balance.checks`; see
        :class:`marble_opt.per_sample.engine.RowEngine`. A copy or an unpickled optimizer watches nothing until this is
        called with its own model.
        """
        self.unwatch()
        self._collector.engine = RowEngine(model, len(self.rewards), verify_every)

    def unwatch(self) -> None:
        """Take the hooks off the watched model; the route is the loop from now on."""
        if self._collector.engine is not None:
            self._collector.engine.close()
            self._collector.engine = None

    def backward(
        self,
        losses: Losses,
        shared: Tensor | None = None,
        retain_graph: bool = False,
        scaler: "torch.amp.GradScaler | None" = None,
    ) -> None:
        """Accumulate the gradients of one micro-step.

        Args:
            losses: a mapping reward → scalar loss (``None``: the reward does not apply to this batch), a tensor
                [K], or a :class:`SeparableLoss`. What is NaN in one loss of a tensor [K] is NaN in the gradients of
                all: autograd multiplies it by zero. A mapping keeps rewards apart where their graphs are.
            shared: a scalar loss that no reward owns, such as a KL term: it stays outside the QP and enters
                ``.grad`` as it is.
            retain_graph: keep the graph for another backward.
            scaler: a ``GradScaler``; call :meth:`balance` before ``scaler.unscale_`` or ``scaler.step``. A reward
                that overflows sits out; if all do, the overflow is left in ``.grad`` for the scaler to see.

        Raises:
            ValueError: names, shapes or graphs that do not fit.
            RuntimeError: called between ``balance()`` and the end of the step.
        """
        self._cycle.backward(losses, shared, retain_graph, scaler, self._parameters())

    @contextmanager
    def collect(self, reward: str, scaler: "torch.amp.GradScaler | None" = None) -> Iterator[None]:
        """What lands in ``.grad`` inside the block becomes the gradient of ``reward``.

        For loops that call their own backward, such as ``accelerator.backward(loss)``. ``.grad`` itself is as before
        afterwards. Under DDP run forward and backward in ``model.no_sync()``: gradients are reduced once, in
        :meth:`balance`. Without, the result is the same, at one reduction per reward more, if all ranks collect the
        same rewards in the same order; if they do not, :meth:`balance` raises ``RuntimeError``. Under FSDP2 they must.
        ``scaler``: the ``GradScaler`` that scaled the loss (``accelerator.scaler``), so that ``max_grad_norm`` is in
        unscaled units and an overflow of everything reaches it.

        Raises ``ValueError`` for an unknown reward and for a block without a backward.
        """
        if self._cycle.schedule.probes:
            raise ValueError("collect() cannot tell where a micro-step ends: use backward() with probe")
        with self._collector.collect(reward, self._cycle.mixture, scaler):
            yield

    @torch.no_grad()
    def balance(self) -> Balance | None:
        """Reduce over ranks, solve, add the combined gradient to ``.grad`` and clip it; returns the report.

        ``step()`` does this when the caller has not. Call it yourself before ``clip_grad_norm_`` or
        ``scaler.unscale_``. A second call in a step, or one with nothing collected, changes nothing.
        """
        if self._collector.closed or not (self._collector.collected or self._cycle.joint):
            return self.report
        parameters = self._stepped()
        self._cycle.balance(parameters)
        if not self._collector.collected:
            return self.report
        self._cycle.write()
        if self.max_grad_norm is not None and not self._cycle.dropped:
            scaler = self._collector.scaler
            scale = 1.0 if scaler is None else scaler.get_scale()
            clip_grads(parameters, self.max_grad_norm * scale, self._cycle.process_group)
        return self.report

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Balance if that has not been done, then let the base optimizer step.

        ``closure`` re-evaluates the model, calls :meth:`backward` and returns the loss; a base optimizer that
        evaluates it repeatedly (LBFGS) finds the balanced gradient each time.
        """
        if closure is not None and self._base_needs_closure():
            final = self.base.step(lambda: self._balanced_closure(closure))
            self._finish_step()
            return final
        result: Any = None
        if closure is not None:
            with torch.enable_grad():
                result = closure()
        if self._collector.scaler is not None and not self._collector.closed:
            raise RuntimeError("call balance() before scaler.unscale_() or scaler.step(): the bank is still scaled")
        if self._fusible():
            self._fused_step()
        else:
            self.balance()
            if self._cycle.dropped:
                self._warn_dropped()
            else:
                self._follow(self.base.step)
        if not self._collector.collected and not self._warned:
            self._warned = True
            warnings.warn(
                f"step() without any backward() or collect() for the rewards {list(self.rewards)}: this is the "
                "base optimizer's own step on whatever .grad holds",
                stacklevel=3,
            )
        self._finish_step()
        return result

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear ``.grad`` and everything collected."""
        self.base.zero_grad(set_to_none)
        self._cycle.start()

    def _parameters(self) -> list[Tensor]:
        found = [p for group in self.param_groups for p in group["params"] if p.requires_grad]
        if not found:
            raise ValueError("the optimizer holds no parameter that requires a gradient")
        return found

    def _stepped(self) -> list[Tensor]:
        """The trainable parameters, then the frozen ones: the base optimizer steps on any ``.grad`` that they hold."""
        frozen = [p for group in self.param_groups for p in group["params"] if not p.requires_grad]
        return [*self._parameters(), *frozen]

    def _fusible(self) -> bool:
        waiting = (self._collector.collected or self._cycle.joint) and not self._collector.closed
        return self.fused and waiting and not self.track_step and obstacle(self.base) is None

    @torch.no_grad()
    def _fused_step(self) -> None:
        cycle, parameters = self._cycle, self._stepped()
        cycle.balance(parameters)
        if not self._collector.collected:
            self._follow(self.base.step)
            return
        report, usable = self.report, cycle.usable
        if usable is None:
            raise RuntimeError("nothing was balanced: this is a bug in marble_opt")
        # A probed step's Gram is that of its first micro-steps, and clipping is Euclidean. Between refreshes there may
        # be no report yet, after a state was loaded.
        gram = None
        if report is not None:
            known = report.refreshed and not cycle.schedule.probes and cycle.metric is None
            gram = report.gram if known else None
            cycle.report = replace(report, fused=True)
        bank = self._collector.bank
        given = (self.base, bank, cycle.combining, usable, self.max_grad_norm, gram, cycle.process_group)
        self._follow(lambda: fused_step(*given), parameters)

    def _follow(self, step: Callable[[], object], parameters: Sequence[Tensor] | None = None) -> None:
        stepped = self._stepped() if parameters is None else parameters
        follow_step(step, self.base, self._cycle, stepped, self.guard is not None, self.track_step)

    def _balanced_closure(self, closure: Callable[[], Any]) -> Any:
        with torch.enable_grad():
            result = closure()
        self.balance()
        if self._cycle.dropped:
            self._warn_dropped()
            self.base.zero_grad()
        return result

    def _warn_dropped(self) -> None:
        warnings.warn(
            f"step not taken ({self._cycle.memory.dropped_steps} so far): no reward had a usable gradient, or the "
            "combined gradient is not finite; Marble.report counts them per reward",
            stacklevel=4,
        )

    def _finish_step(self) -> None:
        if self._collector.collected:
            self._cycle.finish()

    def _own_state(self) -> dict[str, Any]:
        return self._cycle.memory.state_dict()

    def _checked_own_state(self, state: dict[str, Any] | None) -> MarbleState:
        fresh = MarbleState.new(self.rewards, self._cycle.rule.slots)
        return fresh if state is None else fresh.load(state)

    def _set_own_state(self, own: MarbleState) -> None:
        self._cycle.restore(own)
