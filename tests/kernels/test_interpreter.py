"""All kernels in Triton's interpreter, between guard bands.

The streaming kernels against fp64, the twin and torch.optim; the min-norm kernel against every face of the simplex.
"""

import min_norm_cases
import pytest
import streaming_cases
from worker import run_worker

pytest.importorskip("triton")

MODULES = (streaming_cases, min_norm_cases)


@pytest.fixture(scope="module")
def results() -> dict[str, str | None]:
    return run_worker("interpreter_worker.py", *(module.__name__ for module in MODULES))[-1]


@pytest.mark.parametrize("name", [name for module in MODULES for name in module.CASES])
def test_case(name: str, results: dict[str, str | None]) -> None:
    assert results[name] is None, results[name]
