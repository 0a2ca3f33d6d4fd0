"""Twenty convex quadratics in thirty variables, and how far a point is from Pareto optimal, with a certificate."""

import torch
from scipy.optimize import minimize
from torch import Tensor

COUNT, SIZE = 20, 30
_CONDITION = 10.0
_CERTIFIED, _SMALLEST = 1e-3, 1e-6


class Quadratics:
    """f_k(x) = ½ s_k (x − a_k)ᵀ H_k (x − a_k), k = 1..20: a_k normal, H_k of condition 10 in axes of its own.

    ``spread``: s_k = 10^e, e evenly from −spread to spread, in random order. All are strictly convex, so the Pareto set
    is that of the minimisers y_w of Σ w_k f_k over all weights w of the simplex.

    The distance of a point with values f is the most that all objectives could still gain at once, in their units

        max_y min_k (f_k − f_k(y)) / r_k  =  min_w Σ w_k / r_k (f_k − f_k(y_w)),    y_w the minimiser for weights w / r,

    zero iff the point is Pareto optimal (Tanabe, Fukuda and Yamashita 2023, the merit function u₀; duality as all are
    convex). r_k is the range of f_k over the minimisers a_j of the others.
    """

    def __init__(self, spread: float) -> None:
        random = torch.Generator().manual_seed(0)
        self.centres = torch.randn(COUNT, SIZE, generator=random, dtype=torch.float64)
        axes = torch.linalg.qr(torch.randn(COUNT, SIZE, SIZE, generator=random, dtype=torch.float64)).Q
        curvatures = torch.logspace(-0.5, 0.5, SIZE, base=_CONDITION, dtype=torch.float64)
        order = torch.randperm(COUNT, generator=random)
        scales = torch.logspace(-spread, spread, COUNT, dtype=torch.float64)[order]
        self.hessians = scales.view(-1, 1, 1) * (axes * curvatures) @ axes.mT
        self.ideal = torch.zeros(COUNT, dtype=torch.float64)
        self.ranges = torch.stack([self.objectives(centre) for centre in self.centres]).amax(0)
        self._pulls = torch.einsum("kij,kj->ki", self.hessians, self.centres)

    def objectives(self, x: Tensor) -> Tensor:
        """All f_k at x [30]: [20]."""
        offsets = x - self.centres
        return (offsets.unsqueeze(1) @ self.hessians @ offsets.unsqueeze(2)).flatten() / 2

    def start(self, seed: int) -> Tensor:
        """[30], normal, four times as far out as the a_k."""
        random = torch.Generator().manual_seed(1000 + seed)
        return 4 * torch.randn(SIZE, generator=random, dtype=torch.float64)

    def minimiser(self, weights: Tensor) -> Tensor:
        """y_w: argmin Σ w_k f_k for weights [20] ≥ 0, not all zero."""
        return torch.linalg.solve(torch.einsum("k,kij->ij", weights, self.hessians), weights @ self._pulls)

    def distances(self, values: Tensor) -> Tensor:
        """[T] from values [T, 20]."""
        weights = torch.full((COUNT,), 1 / COUNT, dtype=torch.float64)
        found = []
        for own in values:
            weights = self._solve(own, weights)
            found.append((self._gains(own, weights) @ weights).clamp_min(0))
        return torch.stack(found)

    def arrival(self, values: Tensor, tolerance: float) -> int | None:
        """Index of the first within ``tolerance``. Any y gives a lower bound: that of the last solve spares most."""
        weights = torch.full((COUNT,), 1 / COUNT, dtype=torch.float64)
        for index, own in enumerate(values):
            if self._gains(own, weights).min() > tolerance:
                continue
            weights = self._solve(own, weights)
            if self._gains(own, weights) @ weights <= tolerance:
                return index
        return None

    def position(self, values: Tensor) -> None:
        """The front is not one-dimensional."""

    def _gains(self, values: Tensor, weights: Tensor) -> Tensor:
        """(f_k − f_k(y_w)) / r_k, also the gradient in w of what :meth:`_solve` minimises."""
        return (values - self.objectives(self.minimiser(weights / self.ranges))) / self.ranges

    def _solve(self, values: Tensor, weights: Tensor) -> Tensor:
        """The w of the minimum; its bounds min_k gain_k and Σ w_k gain_k enclose the distance.

        Raises ``RuntimeError`` if they are further apart than 1e-6 and 1e-3 of it.
        """

        def dual(point: Tensor) -> tuple[float, Tensor]:
            gains = self._gains(values, torch.as_tensor(point))
            return (gains @ torch.as_tensor(point)).item(), gains.numpy()

        simplex = {"type": "eq", "fun": lambda point: point.sum() - 1, "jac": lambda point: 0 * point + 1}
        options = {"maxiter": 1000, "ftol": 1e-14}
        bounds = [(0, 1)] * COUNT
        result = minimize(dual, weights, jac=True, bounds=bounds, constraints=simplex, method="SLSQP", options=options)
        best = torch.as_tensor(result.x).clamp_min(0)
        best = best / best.sum()
        gains = self._gains(values, best)
        upper = (gains @ best).item()
        if upper - gains.min().item() > _CERTIFIED * upper + _SMALLEST:
            raise RuntimeError(f"no certified distance: between {gains.min().item():.3e} and {upper:.3e}")
        return best
