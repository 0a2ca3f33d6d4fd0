"""Nash-MTL's point, by its own equation."""

import pytest
import torch

from benchmarks.comparison.balancers import nash


@pytest.mark.parametrize("spread", [0.0, 2.0, 4.0])
def test_the_point_solves_its_equation_whatever_the_gradients_lengths(spread: float, random: torch.Generator) -> None:
    rows = torch.randn(5, 40, generator=random, dtype=torch.float64)
    rows[1] -= 0.5 * rows[0]
    rows *= torch.logspace(-spread, spread, 5, dtype=torch.float64).unsqueeze(1)
    alpha = nash()(rows @ rows.T)
    # Gα = 1/α up to the Gram matrix's own scale: α_k g_k · d is the same positive number for all k.
    products = alpha * (rows @ (alpha @ rows))
    torch.testing.assert_close(products, products.mean().expand(5), rtol=1e-5, atol=0)
    assert (alpha > 0).all()
