"""Whom a step really opposes: the batch's rewards, the expected ones, or the held-out ones."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from statistics import mean

import torch
from torch import Tensor

import marble_opt

from .flow_model import EULER_STEPS
from .flow_task import Dials
from .flow_world import FlowWorld, OptimizerLike

_TOLERANCE = 1e-3
_PROMPTS, _SEED = 512, 50_000


class StepJudge:
    """An optimizer of the flow world, measured on every ``every``-th step from the first.

    Four reasons why a held-out reward falls although the combined gradient d opposes no gradient g_k of its batch, one
    per rung: the step u = θ_before − θ_after is not d; g_k is not its expectation; −E g_k is not the reward's gradient;
    and steps are not infinitesimal. Each rung is a share of (step, reward) pairs:

    - ``batch/gradient``, ``batch/step``: d, or u, opposes g_k;
    - ``expected/gradient``, ``expected/step``: it opposes the same loss's gradient on 512 fresh prompts without reward
      noise, at the same θ and with the same old policy;
    - ``true/gradient``, ``true/step``: it lowers, to first order, the expected reward on held-out prompts, whose
      gradient is taken through the sampler;
    - ``falls/step``: the held-out reward is lower after this very step; ``falls/interval``: at the next measured one.

    ``alignment/batch``: mean cosine of g_k with its expectation; ``alignment/true``: of the latter with minus the true
    gradient. Opposed is a cosine below −0.001.

    Args:
        optimizer: what is measured.
        world: where ``optimizer`` trains; its random numbers are not touched.
        every: steps from one measurement to the next.
    """

    def __init__(self, optimizer: OptimizerLike, world: FlowWorld, every: int = 20) -> None:
        self.optimizer, self.world, self.every = optimizer, world, every
        self.parameters = list(world.model.parameters())
        self.zero_grad = optimizer.zero_grad
        self._steps = 0
        self._fresh = _fresh(world)
        self._cosines: dict[str, list[float]] = {}
        self._before: list[Tensor] = []
        self._after: list[Tensor] = []

    @property
    def report(self) -> object:
        """The optimizer's own."""
        return self.optimizer.report

    @property
    def _measuring(self) -> bool:
        return self._steps % self.every == 0

    def backward(self, losses: marble_opt.SeparableLoss, shared: Tensor | None = None) -> None:
        """The optimizer's; before it, the batch's rows."""
        if self._measuring:
            self._batch = self._rows(losses.losses())
        self.optimizer.backward(losses, shared=shared)

    def step(self) -> None:
        """The optimizer's, compared with the gradients where it started."""
        if self._measuring:
            self._judge(self.optimizer.step)
        else:
            self.optimizer.step()
        self._steps += 1

    def shares(self) -> dict[str, float]:
        """See the class; the rungs of the steps measured so far."""
        values = {
            name: mean(found) if name.startswith("alignment") else mean(float(cosine < -_TOLERANCE) for cosine in found)
            for name, found in self._cosines.items()
        }
        before, after = torch.stack([*self._before, heldout_rewards(self.world)]), torch.stack(self._after)
        falls = {"falls/step": after < before[:-1], "falls/interval": before.diff(dim=0) < 0}
        return values | {name: fell.double().mean().item() for name, fell in falls.items()}

    def _judge(self, step: Callable[[], object]) -> None:
        self._before.append(heldout_rewards(self.world))
        batch = self._fresh.rollout()
        fresh = self._rows(self._fresh.loss(batch, batch.advantages(), batch.counts).losses())
        true = -self._rows(true_rewards(self.world))
        start = flat(self.parameters)
        step()
        self._after.append(heldout_rewards(self.world))
        gradient, moved = flat(p.grad for p in self.parameters), start - flat(self.parameters)
        for name, rows in (("batch", self._batch), ("expected", fresh), ("true", true)):
            self._keep(f"{name}/gradient", _cosine(rows, gradient))
            self._keep(f"{name}/step", _cosine(rows, moved))
        self._keep("alignment/batch", _cosine(self._batch, fresh))
        self._keep("alignment/true", _cosine(fresh, true))

    def _rows(self, losses: Tensor) -> Tensor:
        return torch.stack([flat(torch.autograd.grad(loss, self.parameters, retain_graph=True)) for loss in losses])

    def _keep(self, name: str, cosines: Tensor) -> None:
        # A reward that is absent from the batch has no row there: 0 / 0.
        self._cosines.setdefault(name, []).extend(cosines[~cosines.isnan()].tolist())


def true_rewards(world: FlowWorld) -> Tensor:
    """The held-out rewards E r_k [K], differentiable through the Euler steps of the sampler."""
    yardstick = world.yardstick
    x = yardstick.noise
    for step in range(EULER_STEPS):
        t = torch.full((len(x),), 1 - step / EULER_STEPS)
        x = x - world.model(x, t, yardstick.prompts) / EULER_STEPS
    return (world.aspects.rewards(x, yardstick.prompts) * yardstick.applies).sum(1) / yardstick.applies.sum(1)


def heldout_rewards(world: FlowWorld) -> Tensor:
    """The held-out rewards [K] of the model as it is."""
    measured = world.held_out()
    return torch.tensor([measured[f"heldout/{name}"] for name in world.names], dtype=torch.float64)


def flat(tensors: Iterable[Tensor | None]) -> Tensor:
    """A detached copy as one vector."""
    return torch.cat([tensor.detach().flatten() for tensor in tensors if tensor is not None])


def _fresh(world: FlowWorld) -> FlowWorld:
    """Larger batches without reward noise from the same policy: it shares ``world``'s models."""
    dials: Dials = replace(world.dials, prompts=_PROMPTS, noise=0.0)
    fresh = FlowWorld(dials, _SEED)
    fresh.model, fresh.old, fresh.scales = world.model, world.old, world.scales
    return fresh


def _cosine(rows: Tensor, other: Tensor) -> Tensor:
    """[K], NaN for a zero row."""
    return (rows * other).sum(-1) / (rows.norm(dim=-1) * other.norm(dim=-1))
