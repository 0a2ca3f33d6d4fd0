"""From the Gram matrix of the rewards' gradients to the coefficients of the update.

Everything here is a function of G = J Jᵀ (MARBLE, arXiv 2605.06507): unit-normalising is D G D, a prior or a
floor changes the vertices of the feasible set, groups are a linear map of the rows.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from marble_kernels.min_norm import min_norm

from .min_norm import check_floor
from .row_balancer import RowBalancer

Weighting = Callable[[Tensor], Tensor]

_ROUNDING = 8.0


@dataclass(frozen=True)
class Solution:
    """What one Gram matrix gives; K rewards in S slots (a slot is a reward or a group of rewards).

    ``alpha`` [S] weights before smoothing, ``norms`` [S] |g_s|, ``active`` bool [S], ``members`` [S, K] the
    mean over each slot's active rewards (``None``: each reward is its own slot), ``gap`` the duality gap (NaN where
    the balancer has none).
    """

    alpha: Tensor
    norms: Tensor
    active: Tensor
    members: Tensor | None
    gap: Tensor


class BalanceRule:
    """The fixed settings of a balance: how a Gram matrix becomes weights, and weights coefficients.

    Args:
        rewards: names of the K rewards, in the order of the Gram's rows.
        normalize: solve on unit gradients ĝ = g / |g|, and give the result the mean norm n̄ of the active
            gradients: c = n̄ α / |g|. Off: solve on the raw gradients, c = α; the smallest gradient then dominates.
        weights: prior per slot, relative to each other; missing slots have 1. In the support of the solution
            the progress dᵀĝ_k is proportional to w_k; 0 leaves the slot out.
        floor: smallest α of an active slot.
        groups: group name → its rewards; a group is balanced as one row, the mean of its members' gradients.
        balancer: ``None`` for the min-norm point; ``"equal"`` or a mapping slot → weight for fixed α;
            ``"observe"`` to measure without acting (all coefficients 0); any callable that takes the
            Gram matrix of the active slots and returns their weights (TorchJD's weightings do); or a
            :class:`~marble_opt.row_balancer.RowBalancer`, which takes all slots and decides on the result's length too.
    """

    def __init__(
        self,
        rewards: Sequence[str],
        *,
        normalize: bool = True,
        weights: Mapping[str, float] | None = None,
        floor: float = 0.0,
        groups: Mapping[str, Sequence[str]] | None = None,
        balancer: "Weighting | RowBalancer | Mapping[str, float] | str | None" = None,
    ) -> None:
        self.rewards = check_rewards(rewards)
        self.slots, self.membership = _slots(self.rewards, groups)
        self.grouped = bool(groups)
        self._constants: dict[tuple[str, torch.device, torch.dtype], Tensor] = {}
        self.normalize, self.floor, self.balancer = normalize, floor, balancer
        check_floor(floor, len(self.slots))
        self.prior = None if weights is None else _by_slot(weights, self.slots, 1.0, "weights")
        self.fixed: Tensor | None = None
        if balancer == "equal":
            self.fixed = torch.ones(len(self.slots), dtype=torch.float64)
        elif isinstance(balancer, Mapping):
            self.fixed = _by_slot(balancer, self.slots, 0.0, "balancer")
        elif isinstance(balancer, RowBalancer):
            if balancer.prior.shape != (len(self.slots),) or not normalize:
                raise ValueError(
                    f"{type(balancer).__name__} balances {len(balancer.prior)} rows and normalises them itself: it "
                    f"needs as many rewards, and normalize=True; got {list(self.slots)} and normalize={normalize}"
                )
        elif balancer is not None and not self.observing and not callable(balancer):
            raise ValueError(
                f"balancer must be None, 'equal', 'observe', a mapping or a callable of the Gram, got {balancer!r}"
            )
        own = callable(balancer) or isinstance(balancer, RowBalancer) or self.fixed is not None
        if own and (floor or weights is not None):
            raise ValueError("floor and weights shape the min-norm problem: they need balancer=None")

    @property
    def on_simplex(self) -> bool:
        """Whether the weights sum to one over the active slots by construction."""
        return not callable(self.balancer) and not isinstance(self.balancer, RowBalancer)

    @property
    def switched_on(self) -> Tensor:
        """The rewards whose prior is not 0, bool [K]."""
        prior = self._prior(self.membership)
        slots = torch.ones(len(self.slots), dtype=torch.bool) if prior is None else prior > 0
        return (self.membership.to(torch.bool) & slots.unsqueeze(-1)).any(0)

    @property
    def observing(self) -> bool:
        """Whether the rewards are measured without acting on the update."""
        return self.balancer == "observe"

    def solve(self, gram: Tensor, active: Tensor, resolution: float = 0.0) -> Solution:
        """Weights from the Gram [K, K] of the rewards; rows that are not ``active`` [K] are ignored.

        ``resolution`` is the relative precision that the Gram was computed with: a group whose members cancel down to
        that level has no direction of its own and leaves the simplex.
        """
        gram = torch.where(active.unsqueeze(-1) & active, gram, 0)
        members: Tensor | None = None
        if self.grouped:
            members = self._constant("membership", gram) * active.to(gram.dtype)
            members = members / members.sum(-1, keepdim=True).clamp_min(1)
            noise = _ROUNDING * resolution * (members @ gram.diagonal())
            gram = members @ gram @ members.mT
        norms = gram.diagonal().clamp_min(0).sqrt()
        running = norms > 0
        if self.grouped:
            running = running & (norms.square() >= noise)
        prior = self._prior(norms)
        if prior is not None:
            running = running & (prior > 0)
        alpha, gap = self._weights(gram, norms, running)
        return Solution(alpha, norms, running, members, gap)

    def coefficients(self, alpha: Tensor, solution: Solution) -> Tensor:
        """Coefficients c [K] on the raw gradients for weights ``alpha`` [S]."""
        if isinstance(self.balancer, RowBalancer):
            alpha = self.balancer.coefficients(alpha, solution.norms, solution.active)
        elif self.normalize:
            on = solution.active.to(alpha)
            mean_norm = (solution.norms * on).sum() / on.sum().clamp_min(1)
            alpha = torch.where(solution.active, mean_norm * alpha / solution.norms, 0.0)
        alpha = torch.where(solution.active, alpha, 0.0)
        return alpha if solution.members is None else alpha @ solution.members

    def _prior(self, like: Tensor) -> Tensor | None:
        if isinstance(self.balancer, RowBalancer):
            return self.balancer.prior.to(like)
        return None if self.prior is None else self._constant("prior", like)

    def _constant(self, name: str, like: Tensor) -> Tensor:
        """One of our own tensors beside ``like``; kept, because a captured graph cannot copy from the host."""
        key = (name, like.device, like.dtype)
        if key not in self._constants:
            self._constants[key] = getattr(self, name).to(like)
        return self._constants[key]

    def _weights(self, gram: Tensor, norms: Tensor, active: Tensor) -> tuple[Tensor, Tensor]:
        if self.balancer is None:
            point = min_norm(gram, active, self.floor, self.normalize, self._prior(gram))
            return point.alpha, point.gap
        if isinstance(self.balancer, RowBalancer):
            return self.balancer.weights(gram, active)
        unknown = gram.new_full((), torch.nan)
        if self.fixed is not None:
            fixed = self._constant("fixed", gram) * active
            total = fixed.sum()
            return fixed / torch.where(total > 0, total, 1.0), unknown
        if not callable(self.balancer):
            return torch.zeros_like(gram[0]), unknown
        inverse = torch.where(active, 1 / norms, 0.0) if self.normalize else active.to(gram)
        gram = inverse.unsqueeze(-1) * gram * inverse
        # A stranger's balancer sees the active rows only: a zero row would take all of MGDA's weight.
        rows = active.nonzero().squeeze(-1)
        alpha = torch.zeros_like(gram[0])
        if len(rows):
            given = self.balancer(gram[rows][:, rows].float())
            if given.shape != rows.shape:
                raise ValueError(f"balancer returned shape {list(given.shape)} for {len(rows)} active rewards")
            alpha[rows] = given.detach().to(alpha)
        return alpha, unknown


def smooth(old: Tensor, seen: Tensor, new: Tensor, active: Tensor, ema: float) -> tuple[Tensor, Tensor]:
    """EMA of the weights: ρ old + (1 − ρ) new for active slots, the first value as it is, absent ones keep theirs.

    Returns the stored weights [S] and the updated ``seen`` flags [S].
    """
    mixed = torch.where(seen, ema * old + (1 - ema) * new, new)
    return torch.where(active, mixed, old), seen | active


def check_rewards(rewards: Sequence[str]) -> tuple[str, ...]:
    """The reward names as a tuple; ``ValueError`` if there is none, one is repeated or is not a string."""
    if isinstance(rewards, str) or not rewards or not all(isinstance(name, str) for name in rewards):
        raise ValueError(f"rewards must be a non-empty list of names, got {rewards!r}")
    if len(set(rewards)) != len(rewards):
        raise ValueError(f"reward names must be unique, got {list(rewards)}")
    return tuple(rewards)


def _slots(rewards: Sequence[str], groups: Mapping[str, Sequence[str]] | None) -> tuple[tuple[str, ...], Tensor]:
    """Slot names and membership [S, K]: groups where their first member stands, other rewards alone."""
    owner: dict[str, str] = {}
    for group, members in (groups or {}).items():
        for reward in members:
            if reward not in rewards:
                raise ValueError(f"group {group!r} names the unknown reward {reward!r}: known are {list(rewards)}")
            if reward in owner:
                raise ValueError(f"reward {reward!r} is in the groups {owner[reward]!r} and {group!r}: keep it in one")
            owner[reward] = group
        if not members or (group in rewards and group not in members):
            raise ValueError(f"group {group!r} is empty or has the name of a reward outside it: rename or drop it")
    names = tuple(dict.fromkeys(owner.get(reward, reward) for reward in rewards))
    membership = torch.zeros(len(names), len(rewards), dtype=torch.float64)
    for column, reward in enumerate(rewards):
        membership[names.index(owner.get(reward, reward)), column] = 1
    return names, membership


def _by_slot(values: Mapping[str, float], slots: Sequence[str], default: float, what: str) -> Tensor:
    unknown = set(values) - set(slots)
    if unknown:
        raise ValueError(f"{what} names {sorted(unknown)}, known are {list(slots)}")
    vector = torch.tensor([float(values.get(slot, default)) for slot in slots], dtype=torch.float64)
    if not torch.isfinite(vector).all() or (vector < 0).any() or vector.sum() <= 0:
        raise ValueError(f"{what} must be finite, not negative and not all zero, got {dict(values)}")
    return vector
