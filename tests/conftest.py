import pytest
import torch

# The files that take longest, of few tests each. Of two processes one would begin them last and end minutes after the
# other: pytest-xdist hands out the files of most tests first unless told not to.
LONGEST = ("test_train_command.py", "test_trainer.py", "test_interpreter.py", "test_sd3_recipe.py", "test_sharded.py")


def pytest_configure(config: pytest.Config) -> None:
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def random() -> torch.Generator:
    return torch.Generator().manual_seed(1)
