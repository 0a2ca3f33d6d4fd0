"""The streaming kernels in Triton's interpreter, against fp64, the twin and torch.optim, between guard bands."""

import pytest
from streaming_cases import CASES
from worker import run_worker

pytest.importorskip("triton")


@pytest.fixture(scope="module")
def results() -> dict[str, str | None]:
    return run_worker("interpreter_worker.py", "streaming_cases")[-1]


@pytest.mark.parametrize("name", CASES)
def test_case(name: str, results: dict[str, str | None]) -> None:
    assert results[name] is None, results[name]
