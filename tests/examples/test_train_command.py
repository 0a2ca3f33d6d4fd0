"""`examples/train.py` as a user runs it: killed, interrupted, resumed, finished."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from trainer import checkpoint

SCRIPT = Path(__file__).parents[2] / "examples" / "train.py"
SMALL = "--steps 6 --prompts 1 1 1 --images 3 --sampling-steps 2 --timesteps 1 --eval-prompts 3 --eval-every 3 --rank 2"


def start(output: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(SCRIPT), *SMALL.split(), "--output", str(output), *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(output: Path, *options: str) -> str:
    process = start(output, *options)
    printed, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return printed


def stop_after(output: Path, steps: int, how: signal.Signals) -> tuple[int, str]:
    """Send a signal once ``steps`` steps are saved; returns the exit code and what went to stderr."""
    process = start(output)
    for _ in range(3000):
        state = checkpoint.load(output / "marble-seed0")
        if process.poll() is not None or (state is not None and state["step"] >= steps):
            break
        time.sleep(0.02)
    assert process.poll() is None, "the run ended before it could be stopped"
    process.send_signal(how)
    return process.wait(timeout=60), process.communicate()[1]


def adapters(output: Path) -> list[torch.Tensor]:
    state = checkpoint.load(output / "marble-seed0")
    assert state is not None
    assert state["step"] == 6
    return [weight for name in ("default", "old", "average") for weight in state["adapters"][name].values()]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    output = tmp_path_factory.mktemp("unbroken")
    return output, finish(output)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_and_resumed_run_equals_an_unbroken_one(
    how: signal.Signals, unbroken: tuple[Path, str], tmp_path: Path
) -> None:
    code, errors = stop_after(tmp_path, 2, how)
    assert code != 0
    if how == signal.SIGINT:
        assert "add --resume to continue" in errors
    finish(tmp_path, "--resume")
    assert all(torch.equal(a, b) for a, b in zip(adapters(unbroken[0]), adapters(tmp_path), strict=True))


def test_it_leaves_table_figure_and_rows(unbroken: tuple[Path, str]) -> None:
    output, printed = unbroken
    assert "steps in conflict" in printed
    assert (output / "report.png").read_bytes().startswith(b"\x89PNG")
    rows = [json.loads(line) for line in (output / "rows.jsonl").read_text().splitlines()]
    needed = {"benchmark", "method", "seed", "metric", "value", "hardware", "versions", "commit", "date"}
    assert all(needed <= set(row) for row in rows)
    assert {row["method"] for row in rows} == {"base model", "marble"}


def test_a_second_run_into_the_same_folder_needs_resume(unbroken: tuple[Path, str]) -> None:
    process = start(unbroken[0])
    _, errors = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "holds a run already: continue it with --resume" in errors
