"""What a balancer of our own can be, beside a callable of the active rows' Gram matrix."""

from abc import ABC, abstractmethod

from torch import Tensor


class RowBalancer(ABC):
    """A balancer that is told which rows are absent, and that gives the result its length itself."""

    @property
    @abstractmethod
    def prior(self) -> Tensor:
        """[S], not negative; 0 leaves a slot out of this step."""

    @abstractmethod
    def weights(self, gram: Tensor, active: Tensor) -> tuple[Tensor, Tensor]:
        """α [S], zero where not ``active``, and the gap, from the Gram [S, S] of all slots' raw gradients."""

    @abstractmethod
    def coefficients(self, alpha: Tensor, norms: Tensor, active: Tensor) -> Tensor:
        """Coefficients [S] on the raw gradients, zero where not ``active``, for α [S], smoothed or not."""
