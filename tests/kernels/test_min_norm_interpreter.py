"""The min-norm kernel in Triton's interpreter, against every face of the simplex."""

import pytest
from min_norm_cases import CASES
from worker import run_worker

pytest.importorskip("triton")


@pytest.fixture(scope="module")
def results() -> dict[str, str | None]:
    return run_worker("interpreter_worker.py", "min_norm_cases")[-1]


@pytest.mark.parametrize("case", CASES)
def test_case(case: str, results: dict[str, str | None]) -> None:
    assert results[case] is None, results[case]
