"""CAGrad of the comparison where gradients are of very different lengths."""

import torch

from benchmarks.comparison import balancers


def test_a_short_gradient_does_not_stop_cagrad() -> None:
    rows = torch.randn(3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows = rows * torch.tensor([[1.0], [1.0], [1e-6]])
    weights = balancers.cagrad()(rows @ rows.T)
    mean = rows.mean(0)
    update = weights @ rows
    # The update stays within c of the mean gradient (Liu et al. 2021, equation 1), and on the boundary of that ball.
    torch.testing.assert_close((update - mean).norm(), 0.4 * mean.norm(), rtol=1e-4, atol=0)
