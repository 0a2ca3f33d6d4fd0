"""The streaming kernels in Triton's interpreter, against fp64, the twin and torch.optim, between guard bands."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from streaming_cases import CASES

pytest.importorskip("triton")
HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def results() -> dict[str, str | None]:
    paths = [str(HERE), *(path for path in sys.path if path)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(HERE / "interpreter_worker.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", CASES)
def test_case(name: str, results: dict[str, str | None]) -> None:
    assert results[name] is None, results[name]
