import pytest
import torch


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def random() -> torch.Generator:
    return torch.Generator().manual_seed(1)
