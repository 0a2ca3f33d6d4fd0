"""`examples/train.py` as a user runs it: killed, interrupted, resumed, finished."""

import json
import math
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import trainer_cases

from trainer import checkpoint
from trainer.config import load_config

SCRIPT = Path(__file__).parents[2] / "examples" / "train.py"
SMALL = (
    *(option for option in trainer_cases.SMALL if not option.startswith(("epochs", "evaluation", "rollout.prompts"))),
    "epochs=4",
    "evaluation.prompts=3",
    "evaluation.every=2",
    "evaluation.shown=1",
    "rollout.prompts=4",
    "optimizer.micro_batch=6",
)


def words(output: Path, *options: str) -> tuple[str, ...]:
    return (*SMALL, "--output", str(output), *options)


def start(output: Path, *options: str, launcher: Sequence[str] = (sys.executable,)) -> subprocess.Popen[str]:
    command = [*launcher, str(SCRIPT), *words(output, *options)]
    # What a shell starts in the background ignores Ctrl-C, and so would its children.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGINT, before)


def stop_after(output: Path, epochs: int, how: signal.Signals, *options: str) -> tuple[int, str]:
    """Send a signal once ``epochs`` epochs are saved; returns the exit code and what went to stderr."""
    process = start(output, *options)
    for _ in range(600):
        state = checkpoint.load(output / "marble-seed0")
        if process.poll() is not None or (state is not None and state["epoch"] >= epochs):
            break
        time.sleep(0.1)
    assert process.poll() is None, "the run ended before it could be stopped"
    process.send_signal(how)
    return process.wait(timeout=60), process.communicate()[1]


def adapters(output: Path) -> list[torch.Tensor]:
    state = checkpoint.load(output / "marble-seed0")
    assert state is not None
    assert state["epoch"] == 4
    return [weight for name in ("default", "old", "average") for weight in state["adapters"][name].values()]


def epochs_of(output: Path) -> list[dict[str, float]]:
    """The rows of the run's epochs, what is not finite as NaN."""
    rows = [json.loads(line) for line in (output / "marble-seed0" / "metrics.jsonl").read_text().splitlines()]
    return [
        {name: math.nan if value is None else value for name, value in row.items()}
        for row in rows
        if "train/colour" in row
    ]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    output = tmp_path_factory.mktemp("unbroken")
    return output, trainer_cases.run_command(*words(output))


def test_an_interrupted_killed_and_resumed_run_equals_an_unbroken_one(
    unbroken: tuple[Path, str], tmp_path: Path
) -> None:
    code, errors = stop_after(tmp_path, 1, signal.SIGINT)
    assert code != 0
    assert "add --resume to continue" in errors
    code, _ = stop_after(tmp_path, 2, signal.SIGKILL, "--resume")
    assert code == -signal.SIGKILL
    trainer_cases.run_command(*words(tmp_path, "--resume"))
    assert all(torch.equal(a, b) for a, b in zip(adapters(unbroken[0]), adapters(tmp_path), strict=True))


@pytest.mark.parametrize("parallel", ["fsdp2", pytest.param("ddp", marks=pytest.mark.soak)])
def test_ranks_and_sharding_change_nothing(parallel: str, unbroken: tuple[Path, str], tmp_path: Path) -> None:
    """Two epochs on two ranks, with shards or without, two alone: what each saves is whole."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    process = start(tmp_path, "epochs=2", f"parallel={parallel}", launcher=launcher)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    trainer_cases.run_command(*words(tmp_path, "--resume"))
    for a, b in zip(adapters(unbroken[0]), adapters(tmp_path), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    rows, alone = epochs_of(tmp_path), epochs_of(unbroken[0])
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    for row, other in zip(rows, alone, strict=True):
        told = [name for name in other if name.startswith("loss/") or name in ("kl", "lr", "grad_norm", "clipped")]
        assert len(told) == 5 + 4
        # The distance starts at 0, up to rounding.
        expected = pytest.approx([other[name] for name in told], rel=1e-3, abs=1e-8, nan_ok=True)
        assert [row[name] for name in told] == expected


def test_it_leaves_table_figure_and_rows(unbroken: tuple[Path, str]) -> None:
    output, printed = unbroken
    assert "steps in conflict" in printed
    assert "4 epochs without evaluations and rewards: about" in printed
    folder = output / "marble-seed0"
    assert sorted(path.name for path in (folder / "grids").iterdir()) == [f"epoch-000{n}.png" for n in (0, 2, 4)]
    assert load_config(str(folder / "config.yaml")).rollout.prompts == 4
    assert (output / "report.png").read_bytes().startswith(b"\x89PNG")
    rows = [json.loads(line) for line in (output / "rows.jsonl").read_text().splitlines()]
    needed = {"benchmark", "method", "seed", "metric", "value", "hardware", "versions", "commit", "date"}
    assert all(needed <= set(row) for row in rows)
    assert {row["method"] for row in rows} == {"base model", "marble"}


def test_a_second_run_into_the_same_folder_needs_resume(unbroken: tuple[Path, str]) -> None:
    with pytest.raises(SystemExit, match="holds a run already: continue it with --resume"):
        trainer_cases.run_command(*words(unbroken[0]))
