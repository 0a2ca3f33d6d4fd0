"""K per-reward gradients from one backward pass per term."""

import weakref
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from types import TracebackType

import torch
import torch._functorch.config
import torch.distributed as dist
from torch import Tensor, nn

from ..bank import GradientBank
from ..ranks import agree, any_sharded, everywhere, local_part
from ..separable import SeparableLoss
from .backward_passes import aside, cotangents, ordinary
from .collection import RowCollection
from .comparison import TOLERANCE, Verdict, check_weights, compare
from .fsdp2 import GatheredRows, gradient_sync, sharded_parameters
from .graph_walk import walk
from .module_hooks import ModuleHooks
from .plan import Plan, make_plan
from .row_result import RowResult, label, tell_once, trainable, zeros
from .taps import Shared
from .verifier import PASSING, Verifier


class RowEngine:
    """All K gradients g_k = Σ_m Σ_i weights[m, k, i] · J_iᵀ u_mi of a :class:`SeparableLoss` from M backward passes.

    u_m = ∂ (Σ_i terms[m, i]) / ∂ prediction is propagated once. The output of each layer with trained parameters
    passes through an identity; its backward contracts δ and the layer's input into the K rows, which go straight to
    their bank, in a compiled region as the gradient of a tensor [K + 1, *shape] that takes no memory. To autograd that
    is an ordinary backward: checkpoints, ``torch.compile`` and FSDP2's gathering need nothing special, but that
    compiled regions must keep their buffers for another backward: ``torch._functorch.config.donated_buffer`` is
    switched off in this process. ``.grad`` and hooks on it (DDP's among them) are not touched, and nothing is kept on
    modules. Parameters that a module uses itself are followed through its operations (:mod:`.tracked`).

    The samples must be the leading dimension of layers, once or n times, block after block (``repeat``, ``cat``) or n
    rows of a sample side by side (``repeat_interleave``, frames folded into the batch).

    Rows are used once they have been verified: compared with an ordinary gradient, under weights that differ by sample,
    the first time that a parameter is met in a layout. A gradient that is zero or not finite proves nothing; rows that
    are zero then are used, since they are right, and compared when they are zero no more. Everything is compared
    again on refreshes 1, 2, 4, 8, 16, 32 and every fiftieth (counted from 0), and when hooks or the train mode of a
    module have changed. A comparison costs one backward. What differs is told once by a warning and left to exact
    passes.

    With a reentrant checkpoint in the graph, which refuses ``torch.autograd.grad``, the passes are plain backwards with
    every ``.grad`` put aside: then ordinary gradients are computed too and hooks on ``.grad`` fire; run the
    forward of a DDP model under ``no_sync()``.

    Args:
        model: the model, or several.
        rewards: the number K.
        verify_every: the interval of the repeated comparisons, in refreshes; ``None``: never again.

    Raises:
        TypeError: ``model`` is not made of modules.
        ValueError: an interval below 1.
    """

    def __init__(self, model: nn.Module | Iterable[nn.Module], rewards: int, verify_every: int | None = 50) -> None:
        roots = list(model) if isinstance(model, Iterable) and not isinstance(model, nn.Module) else [model]
        if not roots or not all(isinstance(root, nn.Module) for root in roots):
            raise TypeError(f"need one or several torch.nn.Module, got {[type(root).__name__ for root in roots]}")
        if verify_every is not None and verify_every < 1:
            raise ValueError(f"verify_every must be a whole number >= 1 or None, got {verify_every}")
        self.rewards, self.roots = rewards, roots
        # Several backwards run on one forward. With batches of several sizes torch.compile would let the first one
        # overwrite what it has read, and refuses the others.
        if hasattr(torch._functorch.config, "donated_buffer"):
            torch._functorch.config.donated_buffer = False
        self._shared = Shared(rewards)
        self._hooks = ModuleHooks(roots, self._shared)
        self._verifier = Verifier(verify_every)
        # The hooks on the model do not outlive their engine.
        weakref.finalize(self, self._hooks.close)
        self._told: set[str] = set()

    def gradients(
        self, loss: SeparableLoss, parameters: Iterable[Tensor], retain_graph: bool = False, scale: Tensor | float = 1.0
    ) -> RowResult:
        """The K gradients of ``loss`` by themselves: :meth:`plan` and :meth:`add_rows` into a new bank.

        Args:
            loss: computed from the watched model with gradients enabled.
            parameters: those whose gradients are wanted, not sharded.
            retain_graph: keep the graph for another backward.
            scale: multiplies the cotangents, and so the blocks; for a ``GradScaler``'s factor.

        Raises:
            ValueError: a layer that mixes samples (BatchNorm in train mode, ``scale_grad_by_freq``), a prediction that
                the terms were not computed from, another number of rewards.
        """
        bank = GradientBank(self.rewards)
        plan = self.plan(loss, parameters)
        result = self.add_rows(loss, plan, bank, range(self.rewards), retain_graph, scale)
        uncovered = set(result.uncovered)
        for parameter in plan.wanted:
            called = any(slot.tapped in plan.graph.calls for slot in plan.slots.get(parameter, ()))
            if bank.has(parameter) or (called and parameter not in uncovered):
                result.blocks[parameter] = bank.blocks.get(parameter, zeros(self.rewards, parameter))
        return result

    def plan(
        self,
        loss: SeparableLoss,
        parameters: Iterable[Tensor],
        first: bool = True,
        group: dist.ProcessGroup | None = None,
    ) -> Plan:
        """Find out what the passes of ``loss`` can cover; the graph is kept.

        Args:
            first: whether nothing has been collected in this optimizer step yet.
            group: ranks that share sharded parameters; they agree on everything that is decided here.
        """
        if not loss.prediction.requires_grad:
            raise ValueError("the prediction has no graph: pass the tensor that the terms were computed from")
        if loss.num_rewards != self.rewards:
            raise ValueError(f"the loss has {loss.num_rewards} rewards, the engine was made for {self.rewards}")
        wanted = trainable(parameters)
        self._hooks.restore()
        self._hooks.attach()
        plan = make_plan(loss, wanted, self._hooks, self._verifier, first, group)
        plan.leaves = self._leaves(wanted, plan.sharded or plan.graph.hiding)
        return plan

    def add_rows(
        self,
        loss: SeparableLoss,
        plan: Plan,
        store: GradientBank | GatheredRows,
        offered: Sequence[int],
        retain_graph: bool = False,
        scale: Tensor | float = 1.0,
        group: dist.ProcessGroup | None = None,
    ) -> RowResult:
        """Run the passes and add the rows to ``store``, except those of the parameters that the result calls uncovered.

        Args:
            offered: the rewards that have a loss here; the rows of others are not touched.
        """
        flows, weights = self._flows(loss, plan, scale, group)
        collected = [parameter for parameter in plan.wanted if parameter not in plan.condemned]
        rows = RowCollection(store, len(loss.prediction), offered, collected, plan.judged, plan.unsure)
        # Whether zero rows have stayed zero and all have come shows after the passes only; comparing needs the graph.
        keep = bool(retain_graph or plan.judged or plan.condemned or plan.unsure)
        passes = self._run(loss, plan, rows, flows, weights, keep)
        awake, suspects = self._look(rows, plan, group) if flows else (False, set())
        if suspects and not keep:
            names = sorted(label(self._hooks.names(), parameter) for parameter in suspects)
            raise RuntimeError(
                f"no rows came of {names}, which gave some before, and the graph has been freed: call zero_grad() and "
                "take the step again with retain_graph=True, or use route='loop'"
            )
        plan.judged |= suspects
        refused: dict[Tensor, str] = {}
        if plan.everything and flows:
            self._verifier.due = False
        checking = plan.unknown or awake or (bool(flows) and plan.everything)
        if checking:
            verdicts = self._compare(loss, plan, rows, weights[:, -1], scale, group)
            refused = self._verifier.learn(verdicts, plan.keys, plan.slots, plan.graph, rows)
        for parameter in plan.wanted:
            # In the order of all ranks.
            if parameter in refused:
                rows.reject(parameter)
            else:
                rows.accept(parameter)
        uncovered = {p: (plan.condemned | refused)[p] for p in plan.wanted if p in plan.condemned or p in refused}
        reasons = self.tell(uncovered)
        return RowResult({}, list(uncovered), reasons, passes, int(checking), len(rows.holders), plan.graph.hiding)

    def tell(self, uncovered: Mapping[Tensor, str]) -> dict[str, str]:
        """Reasons by name; warns once about each that stays."""
        names = self._hooks.names() if uncovered else {}
        reasons = {label(names, parameter): reason for parameter, reason in uncovered.items()}
        tell_once({name: reason for name, reason in reasons.items() if reason not in PASSING}, self._told)
        return reasons

    def check(self, loss: SeparableLoss, parameters: Iterable[Tensor], group: dist.ProcessGroup | None = None) -> None:
        """Compare the rows of every parameter with the ordinary gradient of Σ_m Σ_i r_mi terms[m, i], r generic.

        Tolerance relative to the gradient's norm: 1e-6 in fp64, 5e-4 in fp32, 2e-2 in fp16, 5e-2 in bf16, by the
        lowest precision in the model; below the rounding of a gradient of the usual size anything passes. The graph
        is kept.

        Raises:
            RuntimeError: a parameter with an ordinary gradient and no rows, or others; all are named.
        """
        plan = self.plan(loss, parameters, first=False, group=group)
        plan.judged = set(plan.wanted)
        bank = GradientBank(self.rewards)
        store = GatheredRows(bank) if plan.sharded else bank
        rows = RowCollection(store, len(loss.prediction), [], plan.wanted, plan.judged)
        flows, weights = self._flows(loss, plan, 1.0, group)
        self._run(loss, plan, rows, flows, weights, keep=True)
        verdicts = self._compare(loss, plan, rows, weights[:, -1], 1.0, group)
        names = self._hooks.names()
        wrong = [p for p, verdict in verdicts.items() if verdict == Verdict.WRONG]
        if wrong:
            told = "; ".join(f"{label(names, parameter)}: {rows.reason(parameter)}" for parameter in wrong)
            raise RuntimeError(f"rows from one backward per term are wrong or missing. {told}")

    def exact(
        self,
        loss: SeparableLoss,
        parameters: Iterable[Tensor],
        retain_graph: bool = False,
        scale: Tensor | float = 1.0,
    ) -> dict[Tensor, Tensor]:
        """[K, *shape] for each parameter by one backward per reward, the slow twin of :meth:`gradients`.

        Works with reentrant checkpoints too; under FSDP2 the blocks are those of this rank's shards.
        """
        wanted = trainable(parameters)
        leaves = self._leaves(wanted, any_sharded(wanted) or walk([loss.prediction, loss.terms]).hiding)
        blocks = {parameter: zeros(loss.num_rewards, parameter) for parameter in wanted}
        for index, value in enumerate(loss.losses()):
            keep = retain_graph or index + 1 < loss.num_rewards
            for parameter, gradient in zip(wanted, self._ordinary(value * scale, wanted, keep, leaves), strict=True):
                if gradient is not None:
                    blocks[parameter][index] += local_part(gradient)
        return blocks

    def close(self) -> None:
        """Remove all hooks from the model."""
        self._hooks.close()

    def __enter__(self) -> "RowEngine":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _leaves(self, wanted: Sequence[Tensor], plain: bool) -> set[Tensor]:
        """What a plain backward may touch, if one is needed; gathered parameters are FSDP2's own concern."""
        if not plain:
            return set()
        others = sharded_parameters(self.roots).values() if any_sharded(wanted) else self._hooks.names()
        return {*wanted, *others}

    def _flows(
        self, loss: SeparableLoss, plan: Plan, scale: Tensor | float, group: dist.ProcessGroup | None
    ) -> tuple[dict[int, Tensor], Tensor]:
        """The cotangents that say something, by term, and the weights [M, K + 1, B] with those for comparisons last."""
        flows, sizes, silent = cotangents(loss, scale)
        if plan.sharded:
            # Every rank takes part in every pass.
            silent = [not each for each in agree([not each for each in silent], self._device(plan), group)]
        speaking = {index: flow for index, (flow, quiet) in enumerate(zip(flows, silent, strict=True)) if not quiet}
        return speaking, torch.cat([loss.weights, check_weights(loss, sizes, silent)], 1)

    def _run(
        self,
        loss: SeparableLoss,
        plan: Plan,
        rows: RowCollection,
        flows: Mapping[int, Tensor],
        weights: Tensor,
        keep: bool,
    ) -> int:
        """One pass per cotangent; returns their number."""
        markers = list(self._shared.markers.values())
        if not markers:
            return 0
        self._shared.collection = rows
        try:
            for position, (index, flow) in enumerate(flows.items()):
                rows.begin(weights[index])
                if plan.graph.compiled or plan.graph.hiding:
                    self._shared.fill(weights[index])
                retain = keep or position + 1 < len(flows)
                with aside(plan.leaves) if plan.graph.hiding else nullcontext():
                    if plan.graph.hiding:
                        loss.prediction.backward(flow, retain)
                        rows.touched |= {leaf for leaf in plan.leaves if leaf.grad is not None}
                    else:
                        torch.autograd.grad(loss.prediction, markers, flow, retain, allow_unused=True)
        finally:
            self._shared.collection = None
        if isinstance(rows.store, GatheredRows):
            rows.store.land()
        return len(flows)

    def _device(self, plan: Plan) -> torch.device:
        return local_part(plan.wanted[0]).device

    def _look(self, rows: RowCollection, plan: Plan, group: dist.ProcessGroup | None) -> tuple[bool, set[Tensor]]:
        """Whether rows that have been zero so far are zero no more, or some are missing; and of which parameters.

        The device is waited for if there are rows to look at.
        """
        found = [row.any() for row in rows.check_rows().values()]
        devices = {each.device for each in found}
        awake = any(bool(torch.stack([each for each in found if each.device == one]).any()) for one in devices)
        suspects = rows.suspects(plan.present) - set(plan.condemned)
        if plan.sharded:
            flags = agree([awake, *(p in suspects for p in plan.wanted)], self._device(plan), group)
            awake = flags[0]
            suspects = {parameter for parameter, each in zip(plan.wanted, flags[1:], strict=True) if each}
        return awake or bool(suspects), suspects

    def _compare(
        self,
        loss: SeparableLoss,
        plan: Plan,
        rows: RowCollection,
        weights: Tensor,
        scale: Tensor | float,
        group: dist.ProcessGroup | None,
    ) -> dict[Tensor, Verdict]:
        """Rows of the check weights [M, B] beside ordinary gradients of what they weigh."""
        terms = torch.where(weights != 0, loss.terms, 0)
        value = (weights * terms).sum() * scale
        gradients = self._ordinary(value, plan.wanted, True, plan.leaves)
        expected = dict(zip(plan.wanted, gradients, strict=True))
        found, device = rows.check_rows(), self._device(plan)
        if isinstance(rows.store, GatheredRows):
            found = rows.store.take_checks([parameter for parameter in plan.wanted if parameter in plan.judged])
        coarsest = self._coarsest(loss, plan, rows)

        def total(squares: Tensor) -> Tensor:
            return everywhere(squares.to(device), dist.ReduceOp.SUM, group).cpu() if plan.sharded else squares

        return compare(found, expected, plan.judged, coarsest, total)

    def _coarsest(self, loss: SeparableLoss, plan: Plan, rows: RowCollection) -> torch.dtype:
        """The coarsest precision that gradients pass through."""
        kinds = {loss.prediction.dtype, *rows.precisions, *(parameter.dtype for parameter in self._hooks.names())}
        kinds |= plan.graph.precisions
        return max(kinds & set(TOLERANCE), key=lambda kind: torch.finfo(kind).eps)

    def _ordinary(
        self, value: Tensor, parameters: Sequence[Tensor], keep: bool, leaves: Iterable[Tensor]
    ) -> list[Tensor | None]:
        with gradient_sync(self.roots) if any_sharded(parameters) else nullcontext():
            return ordinary(value, parameters, keep, set(leaves) or None)
