"""Losses that share their terms between rewards."""

from collections.abc import Callable

import torch
from torch import Tensor


class SeparableLoss:
    """K losses that are weighted sums of the same per-sample terms:

        loss_k = Σ_m Σ_i weights[m, k, i] · terms[m, i]        m = 1..M, i = 1..B

    Because the losses differ in constants only, any combination Σ c_k loss_k costs one backward
    (:meth:`combined`), and M passes are enough for all K gradients.

    Args:
        prediction: the model's output [B, ...] that the terms are computed from.
        terms: [M, B], differentiable functions of ``prediction``, each of its own sample.
        weights: [M, K, B], constants (they are detached). A reward that does not apply to a sample
            has weight 0 there; one whose weights are all 0 does not apply to the batch.
        shared: a scalar loss that no reward owns, or a function without arguments that computes it when
            it is wanted.
        values: [K], the losses themselves where the weighted sum has their gradients only, as for a loss that is
            quadratic in its terms. They are what is reported; gradients do not see them.

    Raises:
        ValueError: shapes that disagree, terms without a graph, weights that are not finite.
    """

    def __init__(
        self,
        prediction: Tensor,
        terms: Tensor,
        weights: Tensor,
        shared: Tensor | Callable[[], Tensor] | None = None,
        values: Tensor | None = None,
    ) -> None:
        if terms.dim() != 2 or weights.dim() != 3 or prediction.dim() < 1:
            raise ValueError(
                f"need prediction [B, ...], terms [M, B] and weights [M, K, B], got {list(prediction.shape)}, "
                f"{list(terms.shape)} and {list(weights.shape)}"
            )
        batch = prediction.shape[0]
        if terms.shape[1] != batch or weights.shape[2] != batch or weights.shape[0] != terms.shape[0]:
            raise ValueError(
                f"prediction {list(prediction.shape)}, terms {list(terms.shape)} and weights {list(weights.shape)} "
                "disagree on the M terms or the B samples"
            )
        if not terms.requires_grad:
            raise ValueError("terms have no graph: compute them from the model's prediction with gradients enabled")
        weights = weights.detach()
        if weights.device.type == "cpu" and not torch.isfinite(weights).all():
            raise ValueError("weights hold NaN or inf: give samples to which a reward does not apply the weight 0")
        if values is not None and values.shape != weights.shape[1:2]:
            raise ValueError(f"values must be [{weights.shape[1]}], one loss per reward, got {list(values.shape)}")
        self.prediction = prediction
        self.terms = terms
        self.weights = weights
        self._shared = shared
        self._values = None if values is None else values.detach()

    @property
    def num_rewards(self) -> int:
        """The number K of rewards."""
        return self.weights.shape[1]

    def applies(self) -> list[bool]:
        """Which rewards have a weight in this batch; waits for the device."""
        found: list[bool] = (self.weights != 0).any(-1).any(0).tolist()
        return found

    def losses(self) -> Tensor:
        """All K losses, [K]."""
        sums = (self.weights * self.terms.unsqueeze(1)).sum(dim=(0, 2))
        return sums if self._values is None else _worth(sums, self._values)

    def combined(self, coefficients: Tensor) -> Tensor:
        """Σ_k c_k loss_k as one scalar, for coefficients [K]."""
        mixed = torch.einsum("k,mkb->mb", coefficients.to(self.weights), self.weights)
        loss = (mixed * self.terms).sum()
        return loss if self._values is None else _worth(loss, coefficients.to(self._values) @ self._values)

    def shared(self) -> Tensor | None:
        """The scalar loss that no reward owns, or ``None``."""
        return self._shared() if callable(self._shared) else self._shared


def _worth(loss: Tensor, value: Tensor) -> Tensor:
    """A loss with the gradients of ``loss`` and another value."""
    return loss + (value.to(loss) - loss.detach())
