"""The factored backward: K per-reward gradients from one pass per term."""

from collections.abc import Hashable, Iterable, Sequence
from types import TracebackType

import torch
from torch import Tensor, nn

from .capture import Watch
from .factored_gradients import FactoredGradients, label, tell_once, trainable, zeros
from .passes import Sink, cotangents, ordinary, run_passes
from .plan import UNWATCHED, Plan, make_plan
from .separable import SeparableLoss
from .trust import WRONG, Trust, check_row, compare, ordinary_gradients

__all__ = ["FactoredEngine", "FactoredGradients"]


class FactoredEngine:
    """All K gradients g_k = Σ_m Σ_i weights[m, k, i] · J_iᵀ u_mi of a :class:`SeparableLoss` from M backward passes.

    u_m = ∂ (Σ_i terms[m, i]) / ∂ prediction is propagated once. Each layer that owns trained parameters multiplies
    its input and the gradient of its output into per-sample gradients and mixes them with weights[m] [K, B].
    Ordinary weight gradients are not computed, ``.grad`` and hooks on it (DDP's among them) are not touched, and
    nothing is kept on modules.

    The samples must be the leading dimension of layers, once or several times block after block (as
    ``torch.cat([x, x])`` makes it). The contraction of a parameter is compared with its ordinary gradient, under
    weights that differ by sample, the first times that it is met in a layout; that costs one more backward in those
    steps. What differs is left uncovered and told once by a warning.

    With a reentrant checkpoint in the graph, which refuses ``torch.autograd.grad``, the passes are plain backwards with
    every ``.grad`` put aside: then ordinary gradients are computed too and hooks on ``.grad`` fire; run the
    forward of a DDP model under ``no_sync()``.

    Args:
        model: the model, or several.
        verify: compare as said above. Off, only layers are compared whose code is not known (subclasses, modules with
            bare parameters).

    Raises:
        TypeError: ``model`` is not made of modules.
    """

    def __init__(self, model: nn.Module | Iterable[nn.Module], *, verify: bool = True) -> None:
        roots = list(model) if isinstance(model, Iterable) and not isinstance(model, nn.Module) else [model]
        if not roots or not all(isinstance(root, nn.Module) for root in roots):
            raise TypeError(f"need one or several torch.nn.Module, got {[type(root).__name__ for root in roots]}")
        self.verify = verify
        self._watch = Watch(roots)
        self._trust = Trust()
        self._told: set[str] = set()

    def gradients(
        self,
        loss: SeparableLoss,
        parameters: Iterable[Tensor],
        retain_graph: bool = False,
        scale: Tensor | float = 1.0,
    ) -> FactoredGradients:
        """The K gradients of ``loss``.

        A pass whose cotangent is zero for every sample with a weight is skipped.

        Args:
            loss: computed from the watched model with gradients enabled.
            parameters: those whose gradients are wanted.
            retain_graph: keep the graph for another backward.
            scale: multiplies the cotangents, and so the blocks; for a ``GradScaler``'s factor.

        Raises:
            ValueError: a layer that mixes samples (BatchNorm in train mode, ``scale_grad_by_freq``), a prediction that
                the terms were not computed from, sharded parameters.
        """
        wanted = trainable(parameters)
        plan = self._plan(loss, wanted)
        keys = self._keys(plan, wanted)
        for parameter, key in keys.items():
            if key in self._trust.wrong:
                plan.covered.pop(parameter, None)
                plan.uncovered[parameter] = "its contraction differs from its ordinary gradient"
        flows = cotangents(loss, scale)
        pending = [] if all(flow is None for flow in flows) else self._pending(plan, keys)
        expected, weights = {}, loss.weights
        if pending:
            expected = ordinary_gradients(loss, pending, scale, plan.leaves)
            weights = torch.cat([weights, check_row(loss)], 1)
        # Whether all will be covered is known after the passes only, and what is not needs the graph.
        unsure = (
            pending or plan.hiding or any(not call.handler.exact for each in plan.covered.values() for call in each)
        )
        keep = bool(retain_graph or plan.uncovered or unsure)
        sink, passes = self._contract(loss, plan, wanted, flows, weights, keep)
        if pending:
            found = {parameter: block[-1] for parameter, block in sink.blocks.items()}
            sink.blocks = {parameter: block[:-1] for parameter, block in sink.blocks.items()}
            compared = {parameter: each for parameter, each in expected.items() if parameter not in sink.failed}
            for parameter, verdict in compare(found, compared, self._precisions(loss, sink)).items():
                self._trust.learn(keys[parameter], verdict)
                if verdict == WRONG:
                    sink.failed[parameter] = "its contraction differs from its ordinary gradient"
        return self._result(plan, sink, passes, loss.num_rewards)

    def check(self, loss: SeparableLoss, parameters: Iterable[Tensor]) -> None:
        """Compare every contraction with the ordinary gradient of Σ_m Σ_i r_i terms[m, i], r different by sample.

        Tolerance relative to the gradient's norm: 1e-6 in fp64, 1e-4 in fp32, 2e-2 in fp16, 5e-2 in bf16, by the
        lowest precision in the model; below the rounding of a gradient of the usual size anything passes. The graph
        is kept.

        Raises:
            RuntimeError: a parameter with an ordinary gradient and no contraction, or another; all are named.
        """
        wanted = trainable(parameters)
        plan = self._plan(loss, wanted)
        sink, _ = self._contract(loss, plan, wanted, cotangents(loss, 1.0), check_row(loss), keep=True)
        expected = ordinary_gradients(loss, wanted, 1.0, plan.leaves)
        found = {parameter: block[0] for parameter, block in sink.blocks.items() if parameter not in sink.failed}
        verdicts = compare(found, expected, self._precisions(loss, sink))
        names, reasons = self._watch.names(), {**plan.uncovered, **sink.failed}
        wrong = [
            f"{label(names, parameter)}: {reasons.get(parameter, 'the per-sample gradients do not sum to it')}"
            for parameter, verdict in verdicts.items()
            if verdict == WRONG
        ]
        if wrong:
            raise RuntimeError("the factored backward misses an ordinary gradient of " + "; ".join(wrong))

    def exact(
        self,
        loss: SeparableLoss,
        parameters: Iterable[Tensor],
        retain_graph: bool = False,
        scale: Tensor | float = 1.0,
    ) -> dict[Tensor, Tensor]:
        """[K, *shape] for each parameter by one backward per reward, the slow twin of :meth:`gradients`.

        Works with reentrant checkpoints too.
        """
        wanted = trainable(parameters)
        plan = self._plan(loss, [])
        blocks = {parameter: zeros(loss.num_rewards, parameter) for parameter in wanted}
        for index, value in enumerate(loss.losses()):
            keep = retain_graph or index + 1 < loss.num_rewards
            for parameter, gradient in zip(wanted, ordinary(value * scale, wanted, keep, plan.leaves), strict=True):
                if gradient is not None:
                    blocks[parameter][index] += gradient
        return blocks

    def close(self) -> None:
        """Remove all hooks from the model."""
        self._watch.close()

    def __enter__(self) -> "FactoredEngine":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _plan(self, loss: SeparableLoss, wanted: Sequence[Tensor]) -> Plan:
        self._watch.attach()
        return make_plan(loss, wanted, self._watch)

    def _keys(self, plan: Plan, wanted: Sequence[Tensor]) -> dict[Tensor, Hashable]:
        """What a comparison holds for: the parameter's name and the multiples of the batch in its layers.

        Not from one sample to several: with one, every layout is right.
        """
        names, several = self._watch.names() if plan.hiding else {}, plan.batch > 1
        keys: dict[Tensor, Hashable] = {}
        for parameter in wanted:
            if plan.hiding and parameter not in plan.uncovered:
                keys[parameter] = (label(names, parameter), several)
            elif parameter in plan.covered:
                calls = plan.covered[parameter]
                own = next(name for name, each in calls[0].names.items() if each is parameter)
                layouts = frozenset((call.path, (call.rows or 0) // plan.batch) for call in calls)
                keys[parameter] = (own, layouts, several)
        return keys

    def _pending(self, plan: Plan, keys: dict[Tensor, Hashable]) -> list[Tensor]:
        open_keys = self._trust.pending(keys.values())
        return [
            parameter
            for parameter, key in keys.items()
            if key in open_keys
            and (self.verify or plan.hiding or any(not call.handler.exact for call in plan.covered[parameter]))
        ]

    def _precisions(self, loss: SeparableLoss, sink: Sink) -> set[torch.dtype]:
        return {loss.prediction.dtype, *sink.precisions, *(parameter.dtype for parameter in self._watch.names())}

    def _contract(
        self,
        loss: SeparableLoss,
        plan: Plan,
        wanted: Sequence[Tensor],
        flows: Sequence[Tensor | None],
        weights: Tensor,
        keep: bool,
    ) -> tuple[Sink, int]:
        sink = Sink(plan.batch, [parameter for parameter in wanted if parameter not in plan.uncovered])
        passes = 0
        if plan.covered or plan.hiding:
            passes, reached = run_passes(loss, flows, weights, sink, self._watch, keep, plan.leaves)
            for parameter in reached & sink.wanted - set(sink.blocks):
                sink.failed.setdefault(parameter, UNWATCHED)
        return sink, passes

    def _result(self, plan: Plan, sink: Sink, passes: int, rewards: int) -> FactoredGradients:
        uncovered = {**plan.uncovered, **sink.failed}
        blocks = {
            parameter: sink.blocks[parameter] if parameter in sink.blocks else zeros(rewards, parameter)
            for parameter in dict.fromkeys([*plan.covered, *sink.blocks])
            if parameter not in uncovered
        }
        names = self._watch.names() if uncovered else {}
        reasons = {label(names, parameter): reason for parameter, reason in uncovered.items()}
        tell_once(reasons, self._told)
        return FactoredGradients(blocks, list(uncovered), reasons, passes, len(sink.modules), plan.hiding)
