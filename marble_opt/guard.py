"""The step guard: the base optimizer's real step, projected so that it hurts no active reward of the batch.

Min-norm makes the combined *gradient* oppose no reward. Momentum, preconditioning, weight decay and shared terms then
make the step u = θ_before − θ_after another vector. Reward k is not hurt to first order on its batch iff g_kᵀu ≥ 0, so
the guard takes the closest point of that cone,

    u' = argmin (x − u)ᵀ P (x − u)   over   J x ≥ 0          =  u + P⁻¹ Jᵀ λ,
    λ  = argmin ½ λᵀ (J P⁻¹ Jᵀ) λ + λᵀ J u   over   λ ≥ 0,

and sets θ ← θ_after − P⁻¹ Jᵀ λ. With Adam's P = diag(sqrt(v̂) + eps) / lr the correction is a step that Adam could have
taken along a mixture of the rewards' gradients; lr is that of the parameter's group, so that a group at rest stays so.

P is diagonal: under FSDP2 and HSDP each rank corrects its own shards, by the λ of products over the shards of all
ranks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer

from marble_kernels.combine import combine

from .cone import solve_nonnegative
from .distributed import gram_over_shards
from .metric import denominator
from .ranks import local_part

GUARDS = (None, "step")
_ROUNDING = 8.0


@dataclass(frozen=True)
class GuardedStep:
    """What the guard did in one step; tensors stay on the device until read.

    Products are of unit vectors in the metric: g_kᵀu / (|g_k| |u|) with |g|² = gᵀP⁻¹g and |u|² = uᵀPu.

    ``needed`` (bool, 0-d): whether the step was corrected. ``before`` [K]: the products with the base optimizer's step,
    0 for a reward outside the cone; ``after`` [K]: with the corrected one, still in units of the first. ``multipliers``
    [K]: λ of the unit vectors. ``correction`` (0-d): |u' − u| / |u|. ``residual`` (0-d): how far λ is from optimal,
    see :class:`marble_opt.cone.NonNegative`. ``steps`` and ``corrected`` (0-d) count guarded and corrected steps since
    the start.
    """

    needed: Tensor
    before: Tensor
    after: Tensor
    multipliers: Tensor
    correction: Tensor
    residual: Tensor
    steps: Tensor
    corrected: Tensor

    @property
    def violation(self) -> Tensor:
        """The largest violation before the correction, −min_k ``before``, at least 0; 0-d."""
        return (-self.before.min()).clamp_min(0)

    @property
    def share(self) -> Tensor:
        """Share of the guarded steps that needed it, 0-d."""
        return self.corrected.to(self.before) / self.steps.clamp_min(1)


def check_guard(guard: str | None, evaluates: bool) -> None:
    """``ValueError`` for an unknown guard, or if the base optimizer ``evaluates`` a closure itself.

    Such a base (LBFGS) moves several times per step; the rows are those of its last trial point, not of the start.
    """
    if guard not in GUARDS:
        raise ValueError(f"guard must be one of {GUARDS}, got {guard!r}")
    if guard is not None and evaluates:
        raise ValueError("guard='step' needs the gradients where the step starts: use a base that takes no closure")


@dataclass(frozen=True)
class Projection:
    """``raw`` [K]: λ on the rows and the step as they are; the rest as in :class:`GuardedStep`."""

    raw: Tensor
    needed: Tensor
    before: Tensor
    after: Tensor
    multipliers: Tensor
    correction: Tensor
    residual: Tensor


def project(gram: Tensor, active: Tensor) -> Projection:
    """Solve for λ from the Gram [K + 1, K + 1] of the rows and, last, the step:  [[J P⁻¹ Jᵀ, J u], [uᵀJᵀ, uᵀPu]].

    Rows that are not ``active`` (bool [K]), not finite, or whose square is below the normal numbers of ``gram``'s dtype
    are outside the cone, whatever they hold. A violation below 8 roundings of that dtype, relative to |g_k| |u|, does
    not count.
    """
    resolution, smallest = torch.finfo(gram.dtype).eps, torch.finfo(gram.dtype).tiny
    full = gram if gram.device.type == "mps" else gram.double()
    rows, products, length = full[:-1, :-1], full[:-1, -1], full[-1, -1].clamp_min(0).sqrt()
    energy = rows.diagonal()
    keep = active & torch.isfinite(energy) & (energy >= smallest)
    inverse = torch.where(keep, energy.clamp_min(0).rsqrt(), 0.0)
    unit = torch.where(keep.unsqueeze(-1) & keep, inverse.unsqueeze(-1) * rows * inverse, 0.0)
    before = torch.where(keep & (length > 0), products * inverse / length, 0.0)
    needed = (before < -_ROUNDING * resolution).any()
    solved = solve_nonnegative(unit, before, resolution)
    multipliers = torch.where(needed, solved.multipliers, 0.0)
    moved = unit @ multipliers
    return Projection(
        raw=torch.where(needed, multipliers * inverse * length, 0.0),
        needed=needed,
        before=before,
        after=before + moved,
        multipliers=multipliers,
        correction=(multipliers @ moved).clamp_min(0).sqrt(),
        residual=torch.where(needed, solved.residual, 0.0),
    )


@torch.no_grad()
def guard_step(
    base: Optimizer,
    blocks: Mapping[Tensor, Tensor],
    before: Sequence[tuple[Tensor, Tensor]],
    active: Tensor,
    group: dist.ProcessGroup | None = None,
) -> Projection:
    """Correct, in place, the step that ``base`` has just taken; with sharded parameters on all ranks together.

    One pass over the rows gives J P⁻¹ Jᵀ, J u and uᵀPu together, with one all-reduce if there are shards; a second
    one, the correction, is left out on a CPU where no reward is hurt. P⁻¹ and P u exist for the length of this call.

    Args:
        base: the optimizer, after its step.
        blocks: rows [K, *shape] per parameter, of the local shard of a sharded one.
        before: the parameters that were stepped on, each with its value, or its local shard's, before.
        active: bool [K], the rewards that must not be hurt.
        group: the ranks that hold shards.
    """
    groups = {parameter: group for group in base.param_groups for parameter in group["params"]}
    parameters = [parameter for parameter, _ in before]
    weights = [inverse_metric(base.state.get(p, {}), groups[p], p) for p in parameters]
    pairs = zip(before, weights, strict=True)
    steps = [_weighted_step(local_part(p), old, weight, groups[p]) for (p, old), weight in pairs]
    gram = gram_over_shards(len(active), parameters, [blocks.get(p) for p in parameters], steps, group, weights)
    del steps
    found = project(gram, active.to(gram.device))
    if gram.device.type == "cpu" and not bool(found.needed):
        return found
    for device in dict.fromkeys(parameter.device for parameter in parameters):
        here = [(p, w) for p, w in zip(parameters, weights, strict=True) if p in blocks and p.device == device]
        if not here:
            continue
        mixed = combine([blocks[parameter] for parameter, _ in here], found.raw.to(device))
        for (parameter, weight), direction in zip(here, mixed, strict=True):
            assert direction is not None
            # In the precision of the rows: rounded once, at the store.
            local = local_part(parameter)
            local.copy_(local - _sign(groups[parameter]) * weight * direction)
    return found


def inverse_metric(state: Mapping[str, Any], group: Mapping[str, Any], parameter: Tensor) -> Tensor:
    """The diagonal of P⁻¹ = lr / (sqrt(v̂) + eps) for one parameter's local part; lr alone without second moment.

    A group without ``lr`` has lr = 1. Any positive diagonal makes the projection exact; this one makes the correction
    look like the base optimizer's own steps.
    """
    rate = group.get("lr")
    rate = 1.0 if rate is None else rate
    found = denominator(state, group, parameter)
    if found is None:
        dtype = torch.promote_types(parameter.dtype, torch.float32)
        found = torch.ones_like(local_part(parameter), dtype=dtype, memory_format=torch.contiguous_format)
    return rate / found


def _weighted_step(parameter: Tensor, old: Tensor, weight: Tensor, group: Mapping[str, Any]) -> Tensor:
    """P u: its products with the rows in the metric P⁻¹ are J u."""
    moved = old.to(weight.dtype) - parameter.detach().to(weight.dtype)
    return torch.where(weight > 0, _sign(group) * moved / weight, 0.0).contiguous()


def _sign(group: Mapping[str, Any]) -> float:
    """−1 where the base optimizer ascends: there u is θ_after − θ_before."""
    return -1.0 if group.get("maximize", False) else 1.0
