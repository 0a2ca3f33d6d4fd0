"""The min-norm kernel in Triton's interpreter, against every face of the simplex."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from min_norm_cases import CASES

pytest.importorskip("triton")


@pytest.fixture(scope="module")
def results() -> dict[str, str | None]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    worker = Path(__file__).with_name("min_norm_worker.py")
    done = subprocess.run([sys.executable, str(worker)], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("case", CASES)
def test_case(case: str, results: dict[str, str | None]) -> None:
    assert results[case] is None, results[case]
