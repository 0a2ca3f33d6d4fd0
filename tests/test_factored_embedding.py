"""Contraction at ``torch.nn.Embedding``."""

import pytest
import torch
from torch import Tensor, nn

from factored_cases import matches_loop


class Words(nn.Module):
    """A table whose rows are looked up, then mixed."""

    def __init__(self, table: nn.Embedding) -> None:
        super().__init__()
        self.table, self.out = table, nn.Linear(table.embedding_dim, 2)

    def forward(self, words: Tensor) -> Tensor:
        y: Tensor = self.out(torch.tanh(self.table(words)))
        return y


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(5, 7), (4, 2, 3), (5, 1)])
@pytest.mark.parametrize(
    "table",
    [
        lambda: nn.Embedding(6, 3),
        lambda: nn.Embedding(6, 3, padding_idx=2),
        lambda: nn.Embedding(6, 3, padding_idx=-1, sparse=True),
        lambda: nn.Embedding(6, 3, max_norm=0.7),
    ],
)
def test_equals_the_loop(table, shape: tuple[int, ...], dtype: torch.dtype) -> None:  # type: ignore[no-untyped-def]
    model = Words(table()).to(dtype)
    matches_loop(model, lambda step: model(torch.randint(0, 6, shape)), layers=2)


def test_indices_without_other_dimensions() -> None:
    model = Words(nn.Embedding(6, 3)).double()
    matches_loop(model, lambda step: model(torch.randint(0, 6, (5,))), layers=2)
